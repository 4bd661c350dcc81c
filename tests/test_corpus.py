"""A sample of the ONNX backend tests: right results, valid models, nothing lost. All of them: benchmarks/corpus.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice

import numpy as np
import onnx
import pytest
from onnx import helper

from benchmarks import corpus as benchmark
from benchmarks.corpus_cases import Case, corpus
from benchmarks.corpus_worker import TOOLS, Verdict, difference, judge

STEP = 29
"""Every 29th case: some 190, in a few seconds."""
HARD = ("affine_grid_2d_expanded", "affine_grid_3d_align_corners_expanded", "loop16_seq_none", "if_seq", "range_float")
"""Models of which all variants are tried."""


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(corpus())


@pytest.fixture(scope="module")
def verdicts(cases: list[Case]) -> list[Verdict]:
    hard = [c for c in cases if c.name.split("/")[1].removeprefix("test_") in HARD]
    return [judge(c, TOOLS["graphopt"]) for c in (*islice(cases, 0, None, STEP), *hard)]


def test_no_case_of_the_sample_fails(verdicts: list[Verdict]):
    assert [v for v in verdicts if v.status not in ("ok", "not run")] == []


def test_most_of_the_sample_runs_and_becomes_smaller(verdicts: list[Verdict]):
    right = [v for v in verdicts if v.status == "ok"]
    assert len(right) > 0.8 * len(verdicts)
    assert sum(v.after for v in right) < 0.6 * sum(v.before for v in right)


def test_every_kind_and_variant_is_in_the_corpus(cases: list[Case]):
    found = {(c.name.split("/")[0], c.name.split("/")[2]) for c in cases}
    assert {kind for kind, _ in found} == {"node", "simple", "pytorch-converted", "pytorch-operator"}
    assert {variant for _, variant in found} == {"as-is", "rest-constant", "all-constant"}
    assert len(cases) > 4500 and len({c.name for c in cases}) == len(cases)


# ---- the judge: what it is for is seeing mistakes ----------------------------------------------------------------


def small_case() -> Case:
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [3]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Case("small", model, {"x": np.array([1, -2, np.nan], np.float32)})


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        change(copy)
        return copy

    return tool


def fail(model: onnx.ModelProto) -> None:
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda m: None, "ok"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Abs"), "wrong"),
        (lambda m: m.graph.node[0].output.__setitem__(0, "z"), "invalid"),
        (
            lambda m: (setattr(m.graph.node[0], "domain", "far"), m.opset_import.add(domain="far", version=1)),
            "unloadable",
        ),
        (lambda m: setattr(m, "ir_version", 9), "lost"),
        (lambda m: setattr(m.graph.node[0], "doc_string", "x" * 999), "larger"),
        (fail, "exception"),
    ],
)
def test_the_judge_sees_what_a_tool_did(change: Callable[[onnx.ModelProto], object], status: str):
    assert judge(small_case(), changed(change)).status == status


def test_a_tool_that_modifies_what_it_was_given_is_told():
    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        model.producer_name = "me"
        return copy

    verdict = judge(small_case(), tool)
    assert verdict.status == "lost" and "modified" in verdict.detail


@pytest.mark.parametrize(
    ("new", "old", "equal"),
    [
        ([np.float32(1.0)], [np.float32(1.0005)], True),
        ([np.float32(1.0)], [np.float32(1.002)], False),
        ([np.array([np.nan])], [np.array([np.nan])], True),
        ([np.array([1])], [np.array([1], np.int32)], False),
        ([np.zeros((2, 1))], [np.zeros(2)], False),
        ([[np.array([1]), np.array([2])]], [[np.array([1]), np.array([2])]], True),
        ([[np.array([1])]], [[np.array([1]), np.array([2])]], False),
    ],
)
def test_outputs_are_compared_by_type_shape_and_value(new: list, old: list, equal: bool):
    assert (difference(new, old) == "") is equal


def test_a_process_that_dies_costs_one_case(monkeypatch: pytest.MonkeyPatch):
    names = [f"case{i}" for i in range(7)]

    def lines(tool: str, first: int, limit: float):
        for position in range(first, len(names), benchmark.WORKERS):
            if position in (2, 3):
                if position == 3:
                    yield None
                return
            yield Verdict(names[position], "ok")

    monkeypatch.setattr(benchmark, "_lines", lines)
    found = benchmark.run_tool("any", names, 1.0)
    assert [v.case for v in found] == names
    assert [v.status for v in found] == ["ok", "ok", "crash", "timeout", "ok", "ok", "ok"]


def test_verdicts_survive_the_way_between_processes():
    verdict = judge(small_case(), changed(lambda m: None))
    assert Verdict(**json.loads(json.dumps(verdict.__dict__))) == verdict
