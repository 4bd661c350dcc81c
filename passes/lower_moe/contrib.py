"""Mixtures of experts that are one node already, com.microsoft::MoE, as nodes of the standard:

    gates, i = topk(softmax(logits), k), of equals the last;  gates normalised or not
    y = sum over k of gate * (act(x @ W1[i]^T + b1[i]) @ W2[i]^T + b2[i])

TopK finds the first of equals, so that scores and experts are turned round: expert 0 is the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from graphopt.ir.graph import Call, Dim, Graph, TensorType, Value
from graphopt.ir.weights import ArrayRef, TensorRef
from graphopt.passes.lower_moe.by_expert import ExpertWriter
from graphopt.passes.lower_moe.stacks import Stack
from graphopt.rewrite.journal import Journal


def contrib_mixtures(graph: Graph) -> Iterator[Call | tuple[Call, str]]:
    """Every node that is a mixture of experts; where one cannot be written as others, the node and why."""
    for node in graph.nodes():
        call = graph.call(node) if graph.raw_name(node) in ("com.microsoft::MoE", "com.microsoft::QMoE") else None
        if call is None:
            continue
        if not isinstance(call, Call):
            yield graph.raw_call(node), call.reason
            continue
        weights = [o for o in call.operands[2:] if o is not None]
        scores = graph.type(call.operands[1])
        computed = [graph.name(o) for o in weights if graph.constant(o) is None]
        if computed:
            yield call, f"{', '.join(computed)} is not constant"
        elif scores is None or scores.shape is None or not isinstance(scores.shape[1], int):
            yield call, "the number of scores is not known"
        else:
            yield call


def experts_of(graph: Graph, call: Call) -> tuple[int, int]:
    """How many experts there are, and how many of them a token has."""
    scores = graph.type(call.operands[1])
    assert scores is not None and scores.shape is not None and isinstance(scores.shape[1], int)
    return scores.shape[1], int(call.fields["k"])


def is_batch(graph: Graph, call: Call) -> bool:
    """Whether the tokens have two axes."""
    type_ = graph.type(call.operands[0])
    return type_ is not None and type_.rank == 3


def write_rows(graph: Graph, call: Call, journal: Journal) -> None:
    """The same node of tokens along one axis, as the scores have them."""
    x, (result,) = call.operands[0], call.outputs
    type_, scores = graph.type(x), graph.type(call.operands[1])
    assert type_ is not None and type_.shape is not None and scores is not None and scores.shape is not None
    flat = TensorType(type_.dtype, (scores.shape[0], type_.shape[-1]))

    def insert(op: str, operands: Sequence[Value | None], fields: Mapping[str, object], like: TensorType) -> Value:
        return journal.insert(op, operands, fields, before=call.node, types=[like])[0]

    rows = insert("reshape", [x], {"shape": (-1, type_.shape[-1])}, flat)
    made = insert("moe", [rows, *call.operands[1:]], call.fields, flat)
    shape = insert("shape", [x], {"start": 0, "end": None}, TensorType("int64", (3,)))
    journal.replace(result, insert("reshape", [made, shape], {"shape": None}, type_))
    journal.doom([call.node])


def write_contrib(graph: Graph, call: Call, form: str, journal: Journal) -> None:
    """Replace the result of `call` by what its experts compute, "sorted" or "dense"."""
    writer = _Writer(graph, call, journal)
    journal.replace(call.outputs[0], writer.dense() if form == "dense" else writer.by_expert())
    journal.doom([call.node])


class _Writer(ExpertWriter):
    def __init__(self, graph: Graph, call: Call, journal: Journal) -> None:
        self.call = call
        experts, self.k = experts_of(graph, call)
        super().__init__(graph, journal, call.node, experts)
        type_ = graph.type(call.operands[0])
        assert type_ is not None and type_.shape is not None and isinstance(type_.shape[-1], int)
        self.type = type_
        self.width = type_.shape[-1]
        self.tokens = graph.type(call.operands[1]).shape[0]  # type: ignore[union-attr, index]
        self.places, self.gates = self._routed()
        self.x = call.operands[0]

    def by_expert(self) -> Value:
        """Each expert computes the tokens that chose it."""
        flat = TensorType("int64", (None,))
        order, inverse, counts = self.orders(self.insert("reshape", [self.places], {"shape": (-1,)}, flat))
        token = self.insert("div", [order, self._number(self.k)], {"rounding": "trunc"}, flat)
        ordered = self.insert("gather", [self.x, token], {"axis": 0}, self._rows(None))
        made = [self._expert(e, part) for e, part in enumerate(self.portions(ordered, counts, self._rows(None)))]
        joined = self.insert("concat", made, {"axis": 0}, self._rows(None))
        back = self.insert("gather", [joined, inverse], {"axis": 0}, self._rows(None))
        by_choice = self._typed(self.tokens, self.k, self.width)
        return self._summed(self.insert("reshape", [back], {"shape": (-1, self.k, self.width)}, by_choice), self.gates)

    def dense(self) -> Value:
        """Each expert computes every token, and adds as much as its gate says."""
        by_expert, column = self._typed(self.tokens, self.experts, self.width), self._typed(self.tokens, 1, self.width)
        made = [
            self.insert("unsqueeze", [self._expert(expert, self.x)], {"axes": (1,)}, column)
            for expert in range(self.experts)
        ]
        scores = self._typed(self.tokens, self.experts)
        zeros = self.insert("mul", [self.scores, self._real(0.0)], {}, scores)
        operands = [zeros, self.places, self.gates]
        gates = self.insert("scatter_elements", operands, {"axis": 1, "reduction": None}, scores)
        return self._summed(self.insert("concat", made, {"axis": 1}, by_expert), gates)

    def _routed(self) -> tuple[Value, Value]:
        """Numbers of experts, counted from the last, and their gates; tokens by choices."""
        scores, chosen = self._typed(self.tokens, self.experts), (self.tokens, self.k)
        backwards = self.numbers(*range(self.experts - 1, -1, -1))
        turned = self.insert("gather", [self.call.operands[1], backwards], {"axis": 1}, scores)
        self.scores = self.insert("softmax", [turned], {"axis": 1}, scores)
        types = [self._typed(*chosen), TensorType("int64", chosen)]
        by_score = {"k": self.k, "axis": 1, "largest": True}
        gates, places = self.journal.insert("topk", [self.scores], by_score, before=self.anchor, types=types)
        if self.call.fields["normalize"]:
            fields = {"axes": (1,), "keepdims": True}
            sums = self.insert("reduce_sum", [gates], fields, self._typed(self.tokens, 1))
            gates = self.insert("div", [gates, sums], {"rounding": None}, self._typed(*chosen))
        return places, gates

    def _summed(self, made: Value, gates: Value) -> Value:
        """The sum along axis 1 of what experts made, by gates; a gate of zero adds nothing, infinities neither."""
        known = self.graph.type(made)
        assert known is not None and known.shape is not None
        sizes = known.shape[:2]
        column = self.insert("unsqueeze", [gates], {"axes": (2,)}, self._typed(*sizes, 1))
        weighted = self.insert("mul", [made, column], {}, known)
        off = self.insert("equal", [column, self._real(0.0)], {}, TensorType("bool", (*sizes, 1)))
        weighted = self.insert("where", [off, self._real(0.0), weighted], {}, known)
        fields = {"axes": (1,), "keepdims": False}
        return self.insert("reduce_sum", [weighted], fields, self._rows(self.tokens))

    # ---- one expert ----------------------------------------------------------------------------------------

    def _expert(self, place: int, x: Value) -> Value:
        """What the expert at `place`, counted from the last, makes of the rows x."""
        expert = self.experts - 1 - place
        _, _, w1, w2, b1, b2 = (self.graph.constant(o) if o is not None else None for o in self.call.operands)
        assert w1 is not None and w2 is not None
        rows = (self.graph.type(x) or self._rows(None)).shape
        if self.call.fields["activation"] == "swiglu":
            w1, b1 = _halves(w1), None if b1 is None else _halves(b1)
        hidden = self._activated(self._product(x, w1, b1, expert, rows), rows, w1.shape[1])
        return self._product(hidden, w2, b2, expert, rows)

    def _product(
        self, x: Value, weights: TensorRef, biases: TensorRef | None, expert: int, rows: tuple[Dim, ...] | None
    ) -> Value:
        stack = Stack(weights, tuple(range(weights.ndim)))
        type_ = self._typed(rows[0] if rows else None, weights.shape[1])
        matrix = self.journal.add_constant(stack.of(expert, transposed=True), "expert")
        product = self.insert("matmul", [x, matrix], {}, type_)
        if biases is None:
            return product
        bias = self.journal.add_constant(Stack(biases, (0, 1)).of(expert), "expert")
        return self.insert("add", [product, bias], {}, type_)

    def _activated(self, x: Value, rows: tuple[Dim, ...] | None, width: int) -> Value:
        fields, count = self.call.fields, rows[0] if rows else None
        type_, activation = self._typed(count, width), fields["activation"]
        if activation == "relu":
            return self.insert("relu", [x], {}, type_)
        if activation == "silu":
            return self._mul(x, self.insert("sigmoid", [x], {}, type_), type_)
        if activation == "gelu":
            return self._gelu(x, type_)
        return x if activation == "identity" else self._swiglu(x, self._typed(count, width // 2))

    def _gelu(self, x: Value, type_: TensorType) -> Value:
        """With tanh, of ops that every opset has."""
        cube = self._mul(self._mul(x, x, type_), x, type_)
        inner = self.insert("add", [x, self._mul(cube, self._real(0.044715), type_)], {}, type_)
        bent = self.insert("tanh", [self._mul(inner, self._real(float(np.sqrt(2.0 / np.pi))), type_)], {}, type_)
        return self._mul(self._mul(x, self._real(0.5), type_), self._plus(bent, 1.0, type_), type_)

    def _swiglu(self, x: Value, type_: TensorType) -> Value:
        fields, half = self.call.fields, type_.shape[1]  # type: ignore[index]
        a, b = self.journal.insert(
            "split", [x], {"sizes": (half, half), "axis": 1}, before=self.anchor, types=[type_, type_]
        )
        if (limit := fields["limit"]) is not None:
            high, low = self._real(limit), self._real(-limit)
            a = self.insert("minimum", [a, high], {}, type_)
            b = self.insert("maximum", [self.insert("minimum", [b, high], {}, type_), low], {}, type_)
        steep = a if fields["alpha"] == 1.0 else self._mul(a, self._real(fields["alpha"]), type_)
        gate = self._mul(a, self.insert("sigmoid", [steep], {}, type_), type_)
        return self._mul(gate, b if fields["beta"] == 0.0 else self._plus(b, fields["beta"], type_), type_)

    # ---- words ---------------------------------------------------------------------------------------------

    def _mul(self, a: Value, b: Value, type_: TensorType) -> Value:
        return self.insert("mul", [a, b], {}, type_)

    def _plus(self, x: Value, number: float, type_: TensorType) -> Value:
        return self.insert("add", [x, self._real(number)], {}, type_)

    def _real(self, number: float) -> Value:
        dtype = np.dtype(self.type.dtype)
        return self.journal.add_constant(ArrayRef(np.asarray(number, dtype)), "number")

    def _number(self, number: int) -> Value:
        return self.journal.add_constant(ArrayRef(np.asarray(number, np.int64)), "choices")

    def _typed(self, *sizes: Dim) -> TensorType:
        return TensorType(self.type.dtype, sizes)

    def _rows(self, count: Dim) -> TensorType:
        return self._typed(count, self.width)


def _halves(stack: TensorRef) -> TensorRef:
    """[E, 2 f, ...] in which two halves take turns as one after the other."""
    experts, both, *inner = stack.shape
    apart = stack.reshape(experts, both // 2, 2, *inner)
    return apart.transpose(0, 2, 1, *range(3, apart.ndim)).reshape(experts, both, *inner)
