"""Schedules as files and as text: bit for bit, whole or not at all, and nothing hostile gets through."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedule_cases import Case
from graphopt.errors import ModelError
from graphopt.program.schedule import Schedule

CASES = [
    Case("DDIM", steps=5),
    Case("DDPM", steps=5),
    Case("UniPCMultistep", steps=5),
    Case("EulerDiscrete", steps=5),
    Case("IPNDM", steps=5),
    Case("FlowMatchEulerDiscrete", steps=1),
]


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Case("DDPM", steps=3).read()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_file_gives_back_the_same_bits(case, tmp_path):
    schedule = case.read()
    schedule.save(tmp_path / "schedule.json")
    again = Schedule.load(tmp_path / "schedule.json")
    for field in dataclasses.fields(Schedule):
        ours, theirs = getattr(schedule, field.name), getattr(again, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()
        elif field.name != "clip":
            assert ours == theirs
    assert again.to_dict() == schedule.to_dict()


def test_saving_leaves_no_other_file(schedule, tmp_path):
    schedule.save(tmp_path / "schedule.json")
    schedule.save(tmp_path / "schedule.json")
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]


def test_a_failed_save_leaves_the_old_file(schedule, tmp_path, monkeypatch):
    path = tmp_path / "schedule.json"
    schedule.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        schedule.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["schedule.json"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "other", "format 'graphopt.schedule' is expected"),
        ("version", 99, "version 99 is not known"),
        ("timesteps", [1, 2], r"timesteps must be float64\[3\], but is float64\[2\]"),
        ("timesteps", "999", "timesteps must hold numbers"),
        ("timesteps", [[1], [2, 3]], "timesteps is ragged"),
        ("timesteps", [1, None, 2], "timesteps must hold numbers"),
        ("timesteps", [True, False, True], "timesteps must hold numbers"),
        ("timesteps", [10**400, 1, 2], "timesteps"),
        ("model_gain", [[float("nan")]] * 3, "model_gain holds a value that is not finite"),
        ("init_noise_sigma", [1.0], "init_noise_sigma"),
        ("init_noise_sigma", float("inf"), "init_noise_sigma"),
        ("draws", [1.5, 1, 1], "draws must hold integers"),
        ("draws", [-1, 1, 1], "draws must lie in 0..1"),
        ("draws", [5, 1, 1], "draws must lie in 0..1"),
        ("timestep_dtype", "object", "timestep_dtype is 'object'"),
        ("timestep_dtype", None, "timestep_dtype must be a string"),
        ("noise_dtype", "float8", "noise_dtype"),
        ("state_names", ["x", "y"], "2 state_names for 1 live tensors"),
        ("state_names", "x", "state_names must be a list"),
        ("signal", [1.0], "signal must be"),
        ("clip", {"low": [1]}, "clip must be null or an object"),
        ("clip", [], "clip must be null or an object"),
        ("noise_gain", [[1.0]], "noise_gain must be an object"),
        ("noise_gain", {"shape": [3, 1, 10**9], "values": [1.0]}, "noise_gain has 1 values"),
        ("noise_gain", {"shape": [3, -1], "values": []}, "noise_gain.shape"),
        ("noise_gain", {"shape": [0, 1, 1], "values": []}, "noise_gain has shape"),
    ],
)
def test_broken_data_is_named(schedule, field, value, message):
    data = schedule.to_dict() | {field: value}
    with pytest.raises(ModelError, match=message):
        Schedule.from_dict(data)


def test_missing_and_unknown_fields_are_named(schedule):
    data = schedule.to_dict()
    with pytest.raises(ModelError, match="'colour' is unknown"):
        Schedule.from_dict(data | {"colour": 1})
    del data["sigma"]
    with pytest.raises(ModelError, match="'sigma' is missing"):
        Schedule.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "[" * 100000, '{"format": 1}', "\x00\xff"])
def test_files_that_are_no_schedule_are_refused(text, tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="schedule.json"):
        Schedule.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="none.json"):
        Schedule.load(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_change_gives_a_schedule_or_a_clear_error(schedule, data):
    changed = copy.deepcopy(schedule.to_dict())
    changed[data.draw(st.sampled_from(sorted(changed)))] = data.draw(JSON)
    try:
        found = Schedule.from_dict(changed)
    except ModelError as error:
        assert str(error)
    else:
        assert Schedule.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()


@pytest.mark.parametrize("shape", [[2**70, 0], [0] * 100], ids=["long", "deep"])
def test_a_shape_that_no_array_can_have_is_refused(schedule, shape):
    changed = schedule.to_dict() | {"noise_gain": {"shape": shape, "values": []}}
    with pytest.raises(ModelError, match="no array can have"):
        Schedule.from_dict(changed)


def test_a_schedule_is_not_saved_where_there_is_no_place_for_a_file(schedule, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        schedule.save(tmp_path / "no" / "schedule.json")
    with pytest.raises(ModelError, match="got a folder"):
        schedule.save(tmp_path)


def test_wrong_arrays_are_refused_when_a_schedule_is_made(schedule):
    with pytest.raises(ModelError, match=r"transition must be float64\[3, 1, 1\]"):
        dataclasses.replace(schedule, transition=np.zeros((3, 2, 2)))
    with pytest.raises(ModelError, match="timesteps must be float64"):
        dataclasses.replace(schedule, timesteps=schedule.timesteps.astype(np.float32))
    with pytest.raises(ModelError, match="low is above"):
        dataclasses.replace(schedule, clip=dataclasses.replace(schedule.clip, low=schedule.clip.high + 1))


def test_the_table_reads_as_the_update():
    lines = str(Case("DPMSolverMultistep", steps=4).read()).splitlines()
    assert lines[0].startswith("DPMSolverMultistepScheduler(4 steps): 4 denoiser calls, 2 live tensors (x, x0[-1])")
    assert lines[1].split() == ["row", "t", "x<-x", "x<-x0[-1]", "x<-m", "x0[-1]<-x", "x0[-1]<-m"]
    assert [line.split()[:2] for line in lines[2:]] == [["0", "999"], ["1", "749"], ["2", "500"], ["3", "250"]]


def test_the_table_shows_noise_clip_and_scale():
    assert {"x<-z0", "x<-clip", "clip<-m", "low", "high", "draws"} <= set(str(Case("DDPM").read()).split())
    assert "scale" in str(Case("EulerDiscrete").read()).split()


def test_the_middle_of_a_long_table_is_left_out():
    schedule = Case("EulerDiscrete", steps=100).read()
    lines = schedule.table(10).splitlines()
    assert len(lines) == 2 + 11
    assert lines[7] == "... 90 rows ..."
    assert lines[-1].split()[0] == "99"
    assert len(schedule.table(rows=100).splitlines()) == 102
