"""Initial states of recurrent layers that are zeros: a layer without one starts at 0, and nothing computes it.

Frameworks write the zeros for as many samples as there are, out of shapes that are computed. One application takes that
computation in, so that verification runs it, at several sizes, against a layer without states.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.passes.computed_shapes import shape_computation
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

STATES: Mapping[str, Sequence[int]] = {"ai.onnx::LSTM": (5, 6), "ai.onnx::GRU": (5,), "ai.onnx::RNN": (5,)}
"""Where a layer has its optional initial states. Source: the ONNX operator specifications."""
_FORMS = frozenset({
    "identity", "cast", "reshape", "unsqueeze", "squeeze", "transpose", "expand", "slice", "tile", "concat",
})  # fmt: skip
"""Ops whose result holds numbers of their operands alone; only a concat takes them from other operands than the
first."""


def drop_zero_states(editor: Editor, settled: set[Hashable]) -> bool:
    """Leave out initial states that are zeros.

    `settled` holds nodes at which that was refused before; it is added to. Returns whether any was left out.
    """
    graph, kept = editor.graph, False
    for node in [n for n in graph.nodes() if graph.raw_name(n) in STATES]:
        if node in settled or editor.ledger.exhausted:
            continue
        operands = graph.raw_call(node).operands
        states = [i for i in STATES[graph.raw_name(node)] if i < len(operands) and _is_zeros(graph, operands[i])]
        nodes = shape_computation(graph, [operands[i] for i in states], node) if states else None
        if nodes is None or not _can_be_drawn(graph, nodes):
            continue
        application, _ = editor.apply("zero-state", Exact(), nodes, _without(graph, node, states, nodes))
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


def _can_be_drawn(graph: Graph, nodes: Sequence[Node]) -> bool:
    """Whether the rank of all that `nodes` read is known, so that it can be drawn; a later round may know more."""
    read = {o for node in nodes for o in graph.raw_call(node).operands if o is not None}
    types = [graph.type(value) for value in read if graph.producer(value) not in nodes]
    return all(type_ is not None and type_.shape is not None for type_ in types)


def _is_zeros(graph: Graph, value: Value | None) -> bool:
    """Whether every number of `value` is 0.0, which -0.0 is not."""
    data = None if value is None else graph.constant(value)
    if data is not None:
        numbers = data.numpy()
        return not numbers.any() and not np.signbit(numbers).any()
    node = None if value is None else graph.producer(value)
    call = None if node is None else graph.call(node)
    if not isinstance(call, Call):
        return False
    if call.op == "fill":
        return call.fields["value"] == 0 and not np.signbit(call.fields["value"])
    operands = call.operands if call.op == "concat" else call.operands[:1]
    return call.op in _FORMS and all(_is_zeros(graph, o) for o in operands)


def _without(graph: Graph, node: Node, states: Sequence[int], nodes: Sequence[Node]) -> Callable[[Journal], None]:
    call = graph.raw_call(node)
    operands = [None if i in states else o for i, o in enumerate(call.operands)]
    while operands[-1] is None:
        operands.pop()

    def write(journal: Journal) -> None:
        types = [None if o is None else graph.type(o) for o in call.outputs]
        results = journal.insert(call.op, operands, call.fields, before=node, types=types)
        for old, new in zip(call.outputs, results, strict=True):
            if old is not None:
                journal.replace(old, new)
        journal.doom(nodes)

    return write
