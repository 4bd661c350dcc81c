"""Arguments of `optimize` that make no sense are refused before a model is taken, with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch

from graphopt.compiler import load, lower, optimize, save
from graphopt.errors import ModelError, PipelineError, RegistryError
from graphopt.pipeline.backend import Backend
from graphopt.pipeline.pass_ import GraphPass
from graphopt.pipeline.registration import register
from graphopt.pipeline.registry import backends

MODEL = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 18]>
    agraph (float[3] x) => (float[3] y) { a = Identity(x)  b = Identity(a)  y = Relu(b) }
""")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("limit", value) for value in ("a", -1, 1.5, True)]
    + [("skip", value) for value in (3, "clean-up/identity#1", [3], None)]
    + [("repro", value) for value in (3, ["folder"])]
    + [("prove", value) for value in ("x", 1, None)]
    + [("instruments", value) for value in (3, "ab", [3], None)]
    + [("verify", value) for value in ("everything", 3, [])],
)
def test_a_wrong_argument_is_named_with_what_was_expected(argument: str, value: Any) -> None:
    with pytest.raises(PipelineError) as error:
        optimize("no model is read", "clean-up", **{argument: value})
    assert f"{argument}={value!r}: expected" in str(error.value)


@pytest.mark.parametrize("passes", [{"clean-up": {"rounds": 2}}, {"clean-up"}, b"clean-up"])
def test_passes_without_an_order_or_with_options_that_nothing_reads_are_refused(passes: Any) -> None:
    with pytest.raises(PipelineError, match=rf"passes is a {type(passes).__name__}: expected .*clean-up{{rounds=2}}"):
        optimize(MODEL, passes)


def test_a_pass_without_a_name_and_a_backend_that_cannot_be_made_are_refused() -> None:
    class Nameless(GraphPass):
        def run(self, context: Any) -> None: ...

    class Needy(Backend):
        name = "needy"

        def __init__(self, address: str) -> None: ...

        def lower(self, model: Any, **options: Any) -> Any: ...

    with pytest.raises(PipelineError, match="Nameless has no name; write name"):
        optimize(MODEL, [Nameless()])
    try:
        register(Needy)
        with pytest.raises(RegistryError, match="'needy', .*Needy .* cannot be made: .*'address'"):
            lower(MODEL, "needy")
    finally:
        backends.cache_clear()


class Unready(Backend):
    name = "odd"

    def __init__(self) -> None:
        raise OSError("no device")

    def lower(self, model: Any, **options: Any) -> Any: ...


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (object, "'odd', .* is not a backend: expected a subclass of graphopt.Backend, got <class 'object'>"),
        (3, "'odd', .* is not a backend: expected a subclass of graphopt.Backend, got 3"),
        (Unready, "backend 'odd', .*Unready .* cannot be made: OSError: no device"),
    ],
)
def test_what_an_entry_point_leads_to_must_be_a_backend(found: Any, said: str) -> None:
    try:
        backends().register(found, "odd")
        for ask in (lambda: lower(MODEL, "odd"), lambda: optimize(MODEL, "clean-up", target="odd")):
            with pytest.raises(RegistryError, match=said):
                ask()
    finally:
        backends.cache_clear()


@pytest.mark.parametrize("path", [None, 3, b"m.onnx", "m\0.onnx", optimize(MODEL, [])])
def test_what_is_no_path_is_not_saved_to(path: Any) -> None:
    for write in (optimize(MODEL, []).save, lambda path: save(MODEL, path)):
        with pytest.raises(ModelError, match=r"is no path to save to; expected .* as in save\(model, 'm.onnx'\)"):
            write(path)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (None, "NoneType as a model; expected the path"),
        (torch.nn.Linear, "Linear is a class; give an object of it"),
        (MODEL.SerializeToString(), "onnx.load_model_from_string"),
        (torch.nn.Linear(2, 2).state_dict(), "torch.nn.Module"),
    ],
)
def test_what_is_no_model_is_told_what_is_one(source: Any, advice: str) -> None:
    for take in (optimize, load, lower):
        with pytest.raises(ModelError, match=advice):
            take(source)


def test_sizes_cannot_be_opened_where_nothing_is_traced() -> None:
    exported = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),))
    for source in (MODEL, load(MODEL), optimize(MODEL, []), exported):
        for take in (optimize, load, lower):
            with pytest.raises(ModelError, match="dynamic_shapes=.* has its sizes already"):
                take(source, dynamic_shapes={"x": {0: "n"}})


def test_what_optimize_returned_can_be_given_again() -> None:
    first = optimize(MODEL, "clean-up", limit=1)
    second = optimize(first, "clean-up", verify="model")
    assert [a.id for a in second.report.kept] == ["clean-up/remove-identity#1"]
    assert [len(optimized.model.graph.node) for optimized in (first, second)] == [2, 1]
    assert len(list(load(first).main.nodes())) == 2


@pytest.mark.parametrize("name", [3, [], None])
def test_a_backend_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(PipelineError, match="expected one of onnxruntime"):
        lower(MODEL, name)


def test_what_is_read_once_may_say_what_to_leave_out(tmp_path: Path) -> None:
    (first, *_) = optimize(MODEL, "clean-up").report.kept
    skipped = optimize(MODEL, "clean-up", skip=(i for i in [first.id]), limit=np.int64(5), repro=tmp_path)
    assert first.id not in [a.id for a in skipped.report.kept]
    assert not optimize(MODEL, "clean-up", limit=0).report.kept
