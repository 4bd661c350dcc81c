"""Where zeros in the weights are zeros in the results: what tells a slice that can go without a trace.

If the slices of an axis are zero in every weight that has it, a value is *silent* if its slices are zero too. A sum
over the axis may leave silent terms out; a sum of terms that are not silent may not, nor may a statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from graphopt.axes.analysis import Axes, Dims
from graphopt.axes.terms import Axis, Term
from graphopt.ir.graph import Call, Literal, Node, Value

THROUGH_ZERO = frozenset({
    "abs", "cast", "ceil", "elu", "erf", "floor", "gelu", "hard_swish", "identity", "leaky_relu", "mish", "neg",
    "relu", "round", "sign", "silu", "sin", "softsign", "sqrt", "tanh",
    "avg_pool", "max_pool", "reshape", "transpose", "unsqueeze", "squeeze", "expand", "tile", "split",
    "repeat_interleave", "roll", "slice",
    "depth_to_space", "space_to_depth", "cumsum", "trilu", "div", "prelu", "gather", "gather_nd", "gather_elements",
    "reduce_sum", "reduce_mean", "reduce_l2", "reduce_max", "reduce_min", "reduce_prod",
})  # fmt: skip
"""Ops that give zero where their first operand is zero."""


POLES = frozenset({"reciprocal", "rsqrt", "log"})
"""Ops that give no finite number where their operand is zero."""


class Silence:
    """What is silent, and which nodes must be restricted to what stays, for one leaf."""

    def __init__(
        self, axes: Axes, leaf: Axis, nodes: Sequence[Node], zero: Callable[[Value], bool] = lambda stored: True
    ) -> None:
        """`nodes` are those that the leaf touches, in topological order; `zero` tells whether the slices of a stored
        tensor are zero, by default of all."""
        self._axes = axes
        self._leaf = leaf
        self._zero = zero
        self._silent: set[Value] = set()
        self._wild: set[Value] = set()
        """Values whose slices need not be finite, which no product with zero makes zero."""
        self._node: Node | None = None
        self.coupling: list[Node] = []
        """Nodes whose results at what stays depend on what goes."""
        for node in nodes:
            call = axes.graph.call(node)
            assert isinstance(call, Call), "a node that cannot be read freezes what it touches"
            self._visit(call)

    def _visit(self, call: Call) -> None:
        self._node = call.node
        restricted = self._couples(call)
        if restricted:
            self.coupling.append(call.node)
        found = self._silent if restricted or self._is_zero(call) else None
        if not restricted and self._is_wild(call):
            found = self._wild
        if found is not None:
            found.update(o for o in call.outputs if o is not None and self._has(o))

    def _is_wild(self, call: Call) -> bool:
        if any(o in self._wild for o in call.operands if o is not None):
            return True
        if call.op == "pow":
            return self.silent(call.operands[0]) and not self._power(call)
        divided = call.operands[:1] if call.op in POLES else call.operands[1:2] if call.op in ("div", "mod") else ()
        return any(self.silent(o) for o in divided)

    def _couples(self, call: Call) -> bool:
        axes = self._axes
        if any(self._in(term) for term in axes.couplings.get(call.node, ())):
            return True
        sums = [c for c in axes.contractions.get(call.node, ()) if self._in(c.term)]
        wild = any(o in self._wild for o in call.operands if o is not None)
        return any(wild or not any(self.silent(call.operands[i]) for i in c.operands) for c in sums)

    def silent(self, value: Value | None) -> bool:
        """Whether the slices of `value` are zero. Of what is computed and has the leaf in several places, as an outer
        product has, nothing is said."""
        if value is None or isinstance(value, Literal) or not self._has(value):
            return False
        if self._axes.graph.constant(value) is not None:
            return self._zero(value)
        made = self._axes.copied_fill(value)
        if made is not None:
            return bool(made.fields["value"] == 0)
        return value in self._silent and self._occurrences(self._axes.dims_or_none(value, self._node) or ()) == 1

    def _occurrences(self, terms: Iterable[Term]) -> int:
        """In how many factors the leaf occurs; of summands, the most."""
        axes = [axis for term in terms for axis in self._axes.space.factors(term)]
        return sum(
            int(axis is self._leaf) if axis.terms is None else max(self._occurrences([t]) for t in axis.terms)
            for axis in axes
        )

    def _has(self, value: Value) -> bool:
        return any(self._in(term) for term in self._axes.dims_or_none(value, self._node) or ())

    def _in(self, term: Term) -> bool:
        return self._leaf in self._axes.space.leaves(term)

    def _is_zero(self, call: Call) -> bool:
        if call.op in THROUGH_ZERO:
            return self.silent(call.operands[0])
        found = _ZERO.get(call.op)
        return found is not None and found(self, call)

    # ---- what ops make of zeros --------------------------------------------------------------------------

    def _any(self, call: Call) -> bool:
        return any(self.silent(o) for o in call.operands)

    def _all(self, call: Call) -> bool:
        return all(self.silent(o) or _is_zero_literal(o) for o in call.operands)

    def _branches(self, call: Call) -> bool:
        return all(self.silent(o) or _is_zero_literal(o) for o in call.operands[1:])

    def _pieces(self, call: Call) -> bool:
        return all(self.silent(o) for o in call.operands if o is not None and self._has(o))

    def _power(self, call: Call) -> bool:
        exponent = call.operands[1]
        data = None if exponent is None else self._axes.graph.constant(exponent)
        return self.silent(call.operands[0]) and data is not None and bool((data.numpy() > 0).all())

    def _clamp(self, call: Call) -> bool:
        low, high = (None if o is None else self._axes.graph.constant(o) for o in call.operands[1:3])
        below = call.operands[1] is None or (low is not None and bool((low.numpy() <= 0).all()))
        above = call.operands[2] is None or (high is not None and bool((high.numpy() >= 0).all()))
        return self.silent(call.operands[0]) and below and above

    def _dequantized(self, call: Call) -> bool:
        x, scale, zero = call.operands
        data = None if zero is None else self._axes.graph.constant(zero)
        centred = zero is None or (data is not None and not data.numpy().any())
        return self.silent(scale) or (self.silent(x) and centred)

    def _padded(self, call: Call) -> bool:
        value = call.operands[1]
        return self.silent(call.operands[0]) and (value is None or _is_zero_literal(value))

    def _filled(self, call: Call) -> bool:
        return bool(call.fields["value"] == 0)

    def _affine(self, call: Call) -> bool:
        """Zero scaled and shifted by nothing: what is constant over its statistics is standardised to zero, but a
        batch norm subtracts a mean that it was given."""
        x, scale, shift = call.operands[:3]
        given = call.op == "batch_norm" and not call.fields["training"]
        standardised = self.silent(x) and (not given or self.silent(call.operands[3]))
        return (self.silent(scale) or standardised) and (shift is None or self.silent(shift))

    def _rms(self, call: Call) -> bool:
        return self.silent(call.operands[0]) or self.silent(call.operands[1])

    def _product(self, call: Call) -> bool:
        """Zero where an operand is, in a dimension that is not summed over; and so must the bias be."""
        x, w = call.operands[:2]
        bias = call.operands[2] if len(call.operands) > 2 else None
        return self._reaches(x, w, call) and (bias is None or self.silent(bias))

    def _reaches(self, x: Value | None, w: Value | None, call: Call) -> bool:
        a, b = self._axes.dims(x, call.node), self._axes.dims(w, call.node)
        kept: tuple[Dims, Dims]
        match call.op:
            case "linear":
                kept = a[:-1], (b[0 if call.fields["trans_w"] else 1],)
            case "matmul":
                kept = a[:-1], (*b[:-2], *(b[-1:] if len(b) > 1 else ()))
            case "conv_transpose":
                kept = (*a[:1], a[1]) if call.fields["groups"] > 1 else a[:1], (b[1],)
            case _:
                kept = a[:1], (b[0],)
        pairs = zip((x, w), kept, strict=True)
        return any(self.silent(o) and any(self._in(t) for t in terms) for o, terms in pairs)

    def _lstm(self, call: Call) -> bool:
        """With gates of 0, what is forgotten of nothing is nothing."""
        _, w, r, b, _, c = call.operands
        return all(self.silent(o) for o in (w, r)) and all(o is None or self.silent(o) for o in (b, c))

    def _gru(self, call: Call) -> bool:
        """With gates of 0, a share of what was, which was nothing."""
        _, w, r, b, h = call.operands
        return all(self.silent(o) for o in (w, r)) and all(o is None or self.silent(o) for o in (b, h))

    def _lstm_layer(self, call: Call) -> bool:
        return all(self.silent(o) for o in call.operands[2:])

    def _attention(self, call: Call) -> bool:
        return self.silent(call.operands[2])

    def _einsum(self, call: Call) -> bool:
        inputs, _, output = call.fields["equation"].replace(" ", "").partition("->")
        for letters, operand in zip(inputs.split(","), call.operands, strict=True):
            terms = [t for name, t in zip(letters, self._axes.dims(operand, call.node), strict=True) if name in output]
            if self.silent(operand) and any(self._in(t) for t in terms):
                return True
        return False


def _is_zero_literal(value: Value | None) -> bool:
    return isinstance(value, Literal) and value.value == 0


_ZERO: dict[str, Callable[[Silence, Call], bool]] = {
    "mul": Silence._any,
    **dict.fromkeys(("add", "sub", "maximum", "minimum"), Silence._all),
    "where": Silence._branches,
    **dict.fromkeys(("concat", "stack"), Silence._pieces),
    "pow": Silence._power,
    "clamp": Silence._clamp,
    "dequantize": Silence._dequantized,
    "pad": Silence._padded,
    "fill": Silence._filled,
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "layer_norm"), Silence._affine),
    "rms_norm": Silence._rms,
    **dict.fromkeys(("linear", "matmul", "conv", "conv_transpose"), Silence._product),
    **dict.fromkeys(("attention", "multi_head_attention"), Silence._attention),
    "einsum": Silence._einsum,
    "lstm": Silence._lstm,
    "gru": Silence._gru,
    "lstm_layer": Silence._lstm_layer,
}
