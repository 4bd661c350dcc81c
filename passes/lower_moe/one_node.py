"""A whole mixture of experts as one node, com.microsoft::MoE, from rows that pick weights:

    gates, i = topk(softmax(scores), k), normalised or not
    y = sum over k of gates * experts(x with each row k times; i)

The node takes the last of equal scores and TopK the first, so that scores and experts are turned round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.weights import Array, ArrayRef, SlicedRef, TensorRef, read_only
from graphopt.passes.lower_moe.all_experts import repeated
from graphopt.passes.lower_moe.picked import NotPicked, Picked
from graphopt.passes.lower_moe.two_products import Activated, Product, two_products
from graphopt.rewrite.journal import Journal

MOE = "com.microsoft::MoE"
"""The op that a target must have."""
FORMS = frozenset({"reshape", "squeeze", "unsqueeze", "identity"})


@dataclass(frozen=True)
class Whole:
    """Everything from the scores of experts to the sum of what those that were chosen made."""

    graph: Graph
    x: Value
    scores: Value
    k: int
    normalize: bool
    made: Product
    total: Value
    nodes: tuple[Node, ...]

    @property
    def experts(self) -> int:
        return self.made.w.shape[0]


def whole(picked: Picked) -> Whole:
    """The mixture that `picked` is the experts of. Raises NotPicked."""
    return _Search(picked).found()


class _Search:
    def __init__(self, picked: Picked) -> None:
        self.picked = picked
        self.graph = picked.graph
        self.nodes = {*picked.nodes}

    def found(self) -> Whole:
        rows, made, value = two_products(self.picked)
        tokens = repeated(self.graph, rows)
        x, k = tokens.tokens, tokens.times
        self.nodes |= {c.node for c in tokens.calls}
        gates, total = self._summed(value, k)
        topk = self._back(self.picked.ids, "topk")
        weights, normalize = self._gates(gates, topk)
        softmax = self._call(topk.operands[0], "softmax", "the choice is not among a softmax of all scores")
        if weights != topk.outputs[0] or topk.fields["k"] != k or not topk.fields["largest"]:
            raise NotPicked("what the experts made is not weighted by the scores that chose them")
        scores = softmax.operands[0]
        type_, size = self.graph.type(scores), made.w.shape[0]
        if (known := self.graph.type(x)) is None or known.rank != 2:
            raise NotPicked("tokens that have more than one axis of features")
        if type_ is None or type_.rank != 2 or type_.shape[1] != size or softmax.fields["axis"] != 1:  # type: ignore[index]
            raise NotPicked("the scores do not have a column for each expert")
        nodes = tuple(n for n in self.graph.nodes() if n in self.nodes)
        return Whole(self.graph, x, scores, k, normalize, made, total, nodes)

    def _summed(self, value: Value, k: int) -> tuple[Value, Value]:
        """What the results are multiplied by, and their sum over the choices of each token."""
        gates: Value | None = None
        while True:
            (user, *more) = self.graph.users(value) or [None]
            call = None if user is None or more or self.graph.is_output(value) else self.graph.call(user)
            if not isinstance(call, Call):
                raise NotPicked("what the experts made is read by several, or not added up")
            self.nodes.add(call.node)
            if call.op == "mul" and gates is None:
                gates = next((o for o in call.operands if o != value), None)
            elif call.op == "reduce_sum" and gates is not None:
                self._require_choices(call, value, k)
                return gates, call.outputs[0]
            elif call.op not in FORMS or call.operands[0] != value:
                raise NotPicked(f"{self.graph.node_name(call.node)}: {call.op} of what the experts made")
            value = call.outputs[0]

    def _require_choices(self, call: Call, value: Value, k: int) -> None:
        type_ = self.graph.type(value)
        fits = type_ is not None and type_.rank == 3 and type_.shape[1] == k  # type: ignore[index]
        if not fits or call.fields["axes"] != (1,) or call.fields["keepdims"]:
            raise NotPicked("what is added up is not what the choices of a token gave")

    def _gates(self, value: Value, topk: Call) -> tuple[Value, bool]:
        """The scores that `value` has, and whether they are divided by their sum."""
        value = self._formless(value)
        if value == topk.outputs[0]:
            return value, False
        div = self._call(value, "div", "the gates are neither scores nor scores divided by their sum")
        sums = self._call(div.operands[1], "reduce_sum", "the gates are divided by something else than their sum")
        along = sums.fields["axes"] == (1,) and sums.fields["keepdims"] and div.fields["rounding"] is None
        if sums.operands[0] != div.operands[0] or not along:
            raise NotPicked("the gates are divided by something else than their sum")
        return div.operands[0], True

    def _formless(self, value: Value) -> Value:
        while (node := self.graph.producer(value)) is not None:
            call = self.graph.call(node)
            if not isinstance(call, Call) or call.op not in FORMS:
                break
            self.nodes.add(node)
            value = call.operands[0]
        return value

    def _back(self, value: Value, op: str) -> Call:
        return self._call(self._formless(value), op, f"the experts are not chosen by {op}")

    def _call(self, value: Value | None, op: str, otherwise: str) -> Call:
        node = None if value is None or isinstance(value, Literal) else self.graph.producer(value)
        call = None if node is None else self.graph.call(node)
        if not isinstance(call, Call) or call.op != op:
            raise NotPicked(otherwise)
        self.nodes.add(call.node)
        return call


# ---- writing -----------------------------------------------------------------------------------------------


def write_one_node(found: Whole, journal: Journal) -> None:
    """Replace the sum by one node."""
    graph, anchor = found.graph, found.graph.producer(found.total)
    scores = graph.type(found.scores)
    assert scores is not None and anchor is not None
    last_first = np.arange(found.experts - 1, -1, -1)
    backwards = journal.add_constant(ArrayRef(last_first), "experts")
    operands = [found.scores, backwards]
    (turned,) = journal.insert("gather", operands, {"axis": 1}, before=anchor, types=[scores])
    weights = [None if w is None else journal.add_constant(w, "experts") for w in _weights(found.made, last_first)]
    hidden = found.made.x
    assert isinstance(hidden, Activated)
    fields = {
        "k": found.k, "activation": hidden.kind, "normalize": found.normalize, "alpha": 1.0, "beta": 0.0, "limit": None,
    }  # fmt: skip
    types = [graph.type(found.total)]
    (total,) = journal.insert("moe", [found.x, turned, *weights], fields, before=anchor, types=types)
    journal.replace(found.total, total)
    journal.doom(found.nodes)


def _weights(made: Product, order: Array) -> Iterator[TensorRef | None]:
    """w1, w2, b1, b2 with the experts in `order`."""
    hidden = made.x
    assert isinstance(hidden, Activated)
    w1, b1 = hidden.a.w, hidden.a.b
    if hidden.b is not None:
        w1 = TurnsRef(w1, hidden.b.w)
        b1 = None if b1 is None or hidden.b.b is None else TurnsRef(b1, hidden.b.b)
    for data in (w1, made.w, b1, made.b):
        yield None if data is None else SlicedRef(data, [order, *[None] * (data.ndim - 1)])


class TurnsRef(TensorRef):
    """Two tensors of one shape [E, f, ...] as [E, 2 f, ...], slices along axis 1 taking turns."""

    def __init__(self, first: TensorRef, second: TensorRef) -> None:
        self._parts = first, second
        experts, size, *inner = first.shape
        self.dtype = first.dtype
        self.shape = (experts, 2 * size, *inner)

    def numpy(self) -> Array:
        return read_only(np.stack([p.numpy() for p in self._parts], axis=2).reshape(self.shape))
