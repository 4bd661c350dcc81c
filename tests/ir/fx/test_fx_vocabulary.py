"""Every reader of the torch storage against the meaning of the vocabulary, and back through the writers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from benchmarks.op_cases.torch_ops import CASES
from graphopt.ir.fx.load import load_torch
from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.fx.tensors import to_numpy
from graphopt.ir.fx.vocabulary import READERS, WRITERS
from graphopt.ir.graph import Call, Literal, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS


class RunsAll(torch.nn.Module):
    def forward(self, inputs: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        return {name: case.run(*inputs[name]) for name, case in CASES.items()}


class Loaded(NamedTuple):
    graph: FxGraph
    calls: dict[str, Call]
    values: dict[Value, np.ndarray]
    """What the operands and results of the calls are in a run of the whole graph."""


@cache
def loaded() -> Loaded:
    """All cases in one graph, since tracing takes long."""
    examples = {name: case.inputs for name, case in CASES.items()}
    expected = RunsAll()(examples)
    graph = load_torch(RunsAll(), (examples,)).main
    calls = {}
    outputs = iter(graph.outputs())
    for name in CASES:
        returned = [next(outputs) for _ in torch.utils._pytree.tree_leaves(expected[name])]
        calls[name] = the_call(graph, returned[0], CASES[name].op)
    wanted = [v for c in calls.values() for v in (*c.operands, *c.outputs) if isinstance(v, torch.fx.Node)]
    feeds = [to_numpy(t) for case in CASES.values() for t in case.inputs]
    run = graph.cut(graph.nodes(), graph.inputs(), wanted).run(feeds)
    return Loaded(graph, calls, dict(zip(wanted, run, strict=True)))


def the_call(graph: FxGraph, result: Value, op: str) -> Call:
    """The call of `op` that computes `result`, or the nearest one before it."""
    pending = [result]
    seen = []
    while pending:
        node = graph.producer(pending.pop(0))
        if node is None:
            continue
        seen.append((graph.key(node), graph.call(node)))
        if graph.key(node) == op:
            found = graph.call(node)
            assert isinstance(found, Call), (op, found)
            return found
        pending.extend(node.all_input_nodes)
    raise AssertionError(f"no {op} among {seen}")


def arrays(values: dict[Value, np.ndarray], operands: Sequence[Value | None]) -> list[Any]:
    return [
        np.asarray(v.value, v.dtype) if isinstance(v, Literal) else None if v is None else values[v]
        for v in operands
    ]


@pytest.mark.parametrize("name", CASES)
def test_reading_agrees_with_the_meaning(name: str) -> None:
    graph, calls, values = loaded()
    call = calls[name]
    assert call.op == CASES[name].op == graph.key(call.node)
    assert set(call.fields) == set(OPS[call.op].fields)
    operands = arrays(values, call.operands)
    exact = [v.astype(np.float64) if v is not None and v.dtype.name in FLOATS else v for v in operands]
    with np.errstate(all="ignore"):
        meaning = OPS[call.op].meaning(Float64(), *exact, **call.fields)
    expected = meaning if isinstance(meaning, (tuple, list)) else [meaning]
    assert len(expected) == len(call.outputs)
    assert any(v is not None for v in call.outputs)
    for value, want in zip(call.outputs, expected, strict=True):
        if value is None:
            continue
        got = values[value]
        assert got.shape == np.shape(want) == graph.type(value).shape
        assert got.dtype.name == graph.type(value).dtype
        if got.dtype.name in FLOATS:
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.writable])
def test_what_was_read_can_be_written_and_computes_the_same_bits(name: str) -> None:
    graph, calls, values = loaded()
    call = calls[name]
    before = graph.fingerprint()
    types = [None if v is None else graph.type(v) for v in call.operands]
    assert graph.can_emit(call.op, call.fields, types) is None
    expected = [None if v is None else graph.type(v) for v in call.outputs]
    written, nodes, undo = graph.insert(call.op, call.operands, call.fields, before=call.node, types=expected)
    assert len(nodes) == 1
    again = graph.call(nodes[0])
    assert again, again
    if again.op == call.op:
        assert dict(again.fields) == dict(call.fields)
        assert again.operands == call.operands
    pairs = [(values[v], w) for v, w in zip(call.outputs, written, strict=True) if v is not None]
    inputs = list(dict.fromkeys(v for v in call.operands if isinstance(v, torch.fx.Node)))
    fragment = graph.cut(nodes, inputs, [w for _, w in pairs])
    undo()
    assert graph.fingerprint() == before
    for (want, _), got in zip(pairs, fragment.run([values[v] for v in inputs]), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_what_torch_cannot_say_is_refused_with_the_reason() -> None:
    graph, calls, _ = loaded()
    call = calls["conv2d_same_even"]
    types = [None if v is None else graph.type(v) for v in call.operands]
    assert "asymmetric pads" in str(graph.can_emit("conv", call.fields, types))


def test_the_tables_name_ops_of_the_vocabulary_and_every_writer_is_tried() -> None:
    assert {entry.op for entry in READERS.values()} | set(WRITERS) <= set(OPS)
    assert {entry.op for entry in READERS.values()} == {c.op for c in CASES.values()}
    assert len({c.op for c in CASES.values()}) >= 70
    assert set(WRITERS) <= {c.op for c in CASES.values() if c.writable}
