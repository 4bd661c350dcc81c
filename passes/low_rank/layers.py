"""Layers that may be split, and why others may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.passes.low_rank.rules import (
    Split,
    SplitChannels,
    SplitGather,
    SplitLinear,
    SplitMatmul,
    SplitSpatial,
    SplitTucker,
)
from graphopt.rewrite.contract import Approximate
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Match

CONVOLUTIONS: dict[str, tuple[type[Split], ...]] = {
    "best": (SplitChannels, SplitSpatial, SplitTucker),
    "channels": (SplitChannels,),
    "spatial": (SplitSpatial,),
    "tucker": (SplitTucker,),
    "none": (),
}
"""How convolutions may be split, by the option of the pass. What reads a kernel of 1 is always split by channels."""
_WEIGHT = {"linear": 1, "matmul": 1, "conv": 1, "gather": 0}
"""Position of the weight among the operands."""


@dataclass(frozen=True)
class Layer:
    """A layer of the main graph with a weight of its own."""

    name: str
    """Name of the node: equal in copies of the model."""
    op: str
    kinds: tuple[type[Split], ...]
    """How it may be split."""
    weight: TensorRef
    transposed: bool
    x: Value
    out: Value
    bias: TensorRef | None
    window: tuple[tuple[int, ...], ...]
    """Kernel, stride, pads and dilation of a convolution; empty for others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[in, out]; [out, in, *kernel] of a convolution; [entries, width] of a table."""
        return self.weight.shape[::-1] if self.transposed else self.weight.shape

    def matrix(self) -> Array:
        """The weight as [in, out] in float64; of a convolution, `in` counts all that one output reads."""
        stored = self.weight.numpy().astype(np.float64)
        if self.op == "conv":
            return stored.reshape(len(stored), -1).T
        return stored.T if self.transposed else stored

    @property
    def source(self) -> tuple[Any, ...]:
        """What the layer reads: layers of equal sources see the same rows. Tables are as long as they are."""
        return (self.x, self.shape[0] if self.op == "gather" else 0, self.window)


def find_layers(
    model: Model, ledger: Ledger, *, conv: str, embedding: bool, skip: Sequence[str]
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """The layers of the main graph that may be split; the names of others, each with the reason.

    Args:
        conv: a key of `CONVOLUTIONS`.
        embedding: whether tables are layers.
        skip: patterns of names of nodes or weights that are left alone.
    """
    graph = model.main
    kinds: dict[str, tuple[type[Split], ...]] = {
        "linear": (SplitLinear,),
        "matmul": (SplitMatmul,),
        "conv": CONVOLUTIONS[conv],
        "gather": (SplitGather,) if embedding else (),
    }
    readers = _readers(model)
    found: list[Layer] = []
    left: list[tuple[str, str]] = []
    for call in _weighted(graph, kinds):
        name, weight = graph.node_name(call.node), call.operands[_WEIGHT[call.op]]
        matches, reason = _matches(graph, call, kinds[call.op], ledger)
        if any(fnmatchcase(n, pattern) for n in (name, graph.name(weight)) for pattern in skip):
            reason = "skipped by name"
        elif matches and readers[_identity(graph, weight)] > 1:
            reason = f"the weight {graph.name(weight)} is shared: it would stay beside its factors"
        elif matches and graph.type(x := call.operands[1 - _WEIGHT[call.op]]) is None:
            reason = f"the type of its input {graph.name(x)} is not known, so that it cannot be run by itself"
        elif matches:
            found.append(_layer(graph, call, matches))
            continue
        left.append((name, reason))
    left += _outside(model, kinds)
    return found, left


def _weighted(graph: Graph, kinds: dict[str, tuple[type[Split], ...]]) -> Iterator[Call]:
    """Calls of layers with a constant matrix or kernel of real numbers."""
    for node in graph.nodes():
        call = graph.call(node)
        if isinstance(call, Call) and kinds.get(call.op):
            weight = call.operands[_WEIGHT[call.op]]
            data = None if weight is None or isinstance(weight, Literal) else graph.constant(weight)
            if data is not None and data.dtype in FLOATS and data.ndim > 1:
                yield call


def _matches(
    graph: Graph, call: Call, kinds: Sequence[type[Split]], ledger: Ledger
) -> tuple[dict[type[Split], Match], str]:
    """The kinds of split that apply at `call`, and why the first that does not does not."""
    matches, refusal = {}, ""
    for kind in kinds:
        stats = ledger.rule(kind.name)
        stats.tried += 1
        match = kind().rule(Approximate()).match(graph, call.node)
        if isinstance(match, Match):
            stats.matched += 1
            matches[kind] = match
        else:
            stats.refused[match.kind] += 1
            refusal = refusal or match.reason
    return matches, refusal


def _layer(graph: Graph, call: Call, matches: dict[type[Split], Match]) -> Layer:
    position, match = _WEIGHT[call.op], next(iter(matches.values()))
    window: tuple[tuple[int, ...], ...] = ()
    if call.op == "conv":
        window = (match.w.shape[2:], *(tuple(call.fields[name]) for name in ("stride", "pads", "dilation")))
    return Layer(
        name=graph.node_name(call.node),
        op=call.op,
        kinds=tuple(matches),
        weight=match.w,
        transposed=bool(call.fields.get("trans_w", False)),
        x=call.operands[1 - position],
        out=call.outputs[0],
        bias=match.bindings.constants.get("b"),
        window=window,
    )


def _readers(model: Model) -> Counter[object]:
    """How many nodes and outputs of graphs read each stored tensor, under whatever names."""
    counted: Counter[object] = Counter()
    for graph in model.regions():
        for node in graph.nodes():
            operands = {o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)}
            counted.update(_identity(graph, o) for o in operands if graph.constant(o) is not None)
        counted.update(_identity(graph, o) for o in graph.outputs() if graph.constant(o) is not None)
    return counted


def _identity(graph: Graph, value: Value) -> object:
    data = graph.constant(value)
    return None if data is None else data.identity


def _outside(model: Model, kinds: dict[str, tuple[type[Split], ...]]) -> list[tuple[str, str]]:
    """The layers in control-flow bodies and functions."""
    others = [g for g in model.regions() if g is not model.main]
    reason = "in a control-flow body or function, whose inputs are not gathered"
    return [(graph.node_name(call.node), reason) for graph in others for call in _weighted(graph, kinds)]


def node_called(graph: Graph, name: str) -> Node:
    """The node of `graph` with this name."""
    return next(node for node in graph.nodes() if graph.node_name(node) == name)
