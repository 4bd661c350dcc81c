"""Calibration data of every kind, its split, and what is said of data that does not fit."""

import numpy as np
import pytest
import torch

from graphopt import Calibration
from graphopt.errors import ModelError, PipelineError
from graphopt.ir.graph import TensorType
from graphopt.verify.calibration import Input

ONE = [Input("x", TensorType("float32", ("batch", 3)))]
FIXED = [Input("x", TensorType("float32", (2, 3)))]
TWO = [Input("x", TensorType("float32", ("batch", 3))), Input("t", TensorType("int64", ("batch",)))]


def samples(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def pair(count, seed=0):
    return samples(count, seed), np.arange(count)


def parts(calibration, inputs=ONE):
    """The rows of "x" in the tuning and in the held-out part."""
    return tuple(np.concatenate([batch["x"] for batch in part]) for part in calibration.split(inputs))


def same_rows(a, b):
    return sorted(map(tuple, a)) == sorted(map(tuple, b))


BATCHES = [samples(4, seed) for seed in range(6)]
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.tensor(np.concatenate(BATCHES))), 4)


@pytest.mark.parametrize(
    "data",
    [
        np.concatenate(BATCHES),
        torch.tensor(np.concatenate(BATCHES)),
        {"x": np.concatenate(BATCHES)},
        BATCHES,
        tuple(BATCHES),
        [{"x": torch.tensor(batch)} for batch in BATCHES],
        [(batch,) for batch in BATCHES],
        iter(BATCHES),
        lambda: (batch for batch in BATCHES),
        lambda: BATCHES,
        LOADER,
    ],
    ids=["array", "tensor", "dict", "list", "tuple", "dicts", "tuples", "iterator", "function", "lists", "loader"],
)  # fmt: skip
def test_every_kind_of_data_is_read_whole_and_split_without_overlap(data):
    calibration = Calibration(data)
    tuning, held_out = parts(calibration)
    assert same_rows(np.concatenate([tuning, held_out]), np.concatenate(BATCHES))
    assert len(tuning) == len(held_out)
    again = parts(calibration)  # an iterator is read once and remembered
    assert np.array_equal(again[0], tuning) and np.array_equal(again[1], held_out)


def test_every_second_batch_is_held_out():
    tuning, held_out = Calibration(BATCHES).split(ONE)
    assert [b["x"] is BATCHES[i] for b, i in zip(tuning, (0, 2, 4), strict=True)] == [True] * 3
    assert [b["x"] is BATCHES[i] for b, i in zip(held_out, (1, 3, 5), strict=True)] == [True] * 3


@pytest.mark.parametrize(("share", "held_out"), [(0.5, 3), (0.34, 2), (0.01, 1), (0.99, 5), (2 / 3, 4)])
def test_the_share_that_is_held_out_leaves_something_on_both_sides(share, held_out):
    tuning, held = Calibration(BATCHES, held_out=share).split(ONE)
    assert (len(tuning), len(held)) == (6 - held_out, held_out)


def test_a_single_batch_is_split_along_its_first_axis():
    x, t = pair(5)
    tuning, held_out = Calibration((x, t)).split(TWO)
    assert np.array_equal(tuning[0]["x"], x[[0, 2, 4]]) and np.array_equal(tuning[0]["t"], t[[0, 2, 4]])
    assert np.array_equal(held_out[0]["x"], x[[1, 3]]) and np.array_equal(held_out[0]["t"], t[[1, 3]])


def test_what_has_no_first_axis_of_its_own_is_in_both_parts():
    inputs = [*ONE, Input("scale", TensorType("float32", ())), Input("ids", TensorType("int64", (7,)))]
    batch = {"x": samples(4), "scale": np.float32(2.0), "ids": np.arange(7)}
    for part in Calibration(batch).split(inputs):
        assert part[0]["x"].shape == (2, 3) and part[0]["scale"] == 2.0 and len(part[0]["ids"]) == 7


def test_arrays_of_several_fixed_batches_are_cut():
    x = samples(8)
    tuning, held_out = Calibration(x).split(FIXED)
    assert [b["x"].shape for b in (*tuning, *held_out)] == [(2, 3)] * 4
    assert np.array_equal(np.concatenate([b["x"] for b in tuning]), x[[0, 1, 4, 5]])
    shared = [*FIXED, Input("ids", TensorType("int64", (7,)))]
    assert all(len(b["ids"]) == 7 for b in Calibration({"x": x, "ids": np.arange(7)}).batches(shared))


def test_items_with_labels_are_taken_apart():
    labelled = torch.utils.data.TensorDataset(torch.tensor(np.concatenate(BATCHES)), torch.arange(24))
    loader = torch.utils.data.DataLoader(labelled, 4)
    assert len(Calibration(loader, take=lambda batch: batch[0]).batches(ONE)) == 6
    with pytest.raises(ModelError, match=r"2 arrays and the model 1 inputs, x; .*take=lambda batch: batch\[0\]"):
        Calibration(loader).batches(ONE)


def test_a_limit_ends_endless_data_and_what_is_cut():
    def endless():
        while True:
            yield samples(4)

    assert len(Calibration(endless, limit=3).batches(ONE)) == 3
    assert len(Calibration(samples(64), limit=3).batches(FIXED)) == 3


def test_a_list_of_arrays_is_one_batch_where_the_model_has_several_inputs():
    x, t = pair(4)
    for data in ([x, t], (x, t), [(x, t)], [[x, t]]):
        (batch,) = Calibration(data).batches(TWO)
        assert batch["x"] is x and batch["t"] is t


@pytest.mark.parametrize("data", [[], (), iter(()), list, samples(0), {"x": samples(0)}])
def test_no_data_is_refused(data):
    with pytest.raises(ModelError, match="empty|cannot be split"):
        Calibration(data).split(ONE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (3, "calibration is a int: expected an array"),
        ("inputs.npz", "calibration is a str"),
        (lambda: 3, "calibration is a int"),
        ([3], "calibration batch 0 is a int"),
        ([pair(2), "x"], "calibration batch 1 is a str"),
        ([{"y": samples(2)}], r"batch 0 has 'y', which is no input.*the inputs are x, t"),
        ([{"xx": samples(2)}], r"did you mean 'x'\?"),
        ([{"x": samples(2)}], "batch 0 lacks 't'"),
        ([{"x": samples(2), "t": [1, 2]}], "'t': expected an array or a tensor, got list"),
        ([samples(2)], "1 arrays and the model 2 inputs"),
        ([(samples(2).astype(np.float64), np.arange(2))], r"expected float32\[batch,3\], got float64\[2,3\]; convert"),
        ([(samples(2), np.arange(2).astype(np.int32))], "convert it to int64"),
        ([(samples(2).T, np.arange(2))], r"input 'x': expected float32\[batch,3\], got float32\[3,2\]"),
        ([(samples(2)[0], np.arange(2))], r"got float32\[3\]"),
        ([(samples(2), np.arange(3))], r"got int64\[3\], and batch is 2 in another input"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_batch_and_input(data, says):
    with pytest.raises(ModelError, match=says):
        Calibration(data).batches(TWO)


def test_a_single_batch_that_cannot_be_split_is_refused():
    with pytest.raises(ModelError, match="cannot be split .* give two batches or more"):
        Calibration(samples(1)).split(ONE)
    with pytest.raises(ModelError, match=r"x \[2, 3\].*it has none"):
        Calibration(samples(2)).split(FIXED)
    square = [*ONE, Input("adjacency", TensorType("float32", ("batch", "batch")))]
    with pytest.raises(ModelError, match="cannot be split"):
        Calibration((samples(4), np.ones((4, 4), np.float32))).split(square)


def test_rows_that_do_not_belong_together_are_refused():
    mixed = [*FIXED, Input("t", TensorType("int64", ("n",)))]
    with pytest.raises(ModelError, match="which rows belong together"):
        Calibration((samples(4), np.arange(4))).batches(mixed)
    both = [*FIXED, Input("t", TensorType("int64", (2,)))]
    with pytest.raises(ModelError, match="the same number of samples in all"):
        Calibration((samples(8), np.arange(4))).batches(both)


@pytest.mark.parametrize(
    "options", [{"held_out": 0}, {"held_out": 1.0}, {"held_out": "half"}, {"limit": 0}, {"limit": 1.5}, {"take": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(PipelineError, match="expected a"):
        Calibration(BATCHES, **options)


def test_numbers_of_numpy_are_numbers():
    data = Calibration(BATCHES, held_out=np.float32(0.5), limit=np.int64(2))
    assert [len(part) for part in data.split(FIXED)] == [1, 1]


def test_what_the_users_own_data_raises_is_said():
    def broken():
        yield BATCHES[0]
        raise OSError("the disk is gone")

    for data, message in (
        (Calibration(broken), "calibration data cannot be read: OSError: the disk is gone"),
        (Calibration([(1,)], take=lambda item: item[1]), "read and given to `take`: IndexError: tuple index"),
    ):
        with pytest.raises(ModelError, match=message):
            data.batches(FIXED)


def test_unknown_step_weights_are_refused_with_the_nearest_name():
    with pytest.raises(PipelineError, match=r"did you mean 'coefficient'\?"):
        Calibration(step_weights="coefficients")


def test_bfloat16_tensors_keep_their_dtype():
    inputs = [Input("x", TensorType("bfloat16", ("batch", 3)))]
    (batch,) = Calibration(torch.ones(2, 3, dtype=torch.bfloat16)).batches(inputs)
    assert batch["x"].dtype.name == "bfloat16"
