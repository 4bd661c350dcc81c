"""Matrix products, convolutions and attention: what is summed over is one axis of both operands."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.axes.analysis import Axes, Dims, NoRule, rule
from graphopt.axes.rules.elementwise import broadcast
from graphopt.axes.terms import Term
from graphopt.ir.graph import Call

SPATIAL = "it is spatial"
KERNEL = "it is the extent of a kernel"


@rule("matmul")
def matmul(axes: Axes, call: Call) -> Sequence[Dims]:
    a, b = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    inner = b[-2] if len(b) > 1 else b[-1]
    axes.unify(a[-1], inner)
    axes.contract(call, inner, 0, 1)
    batch = broadcast(axes, [a[:-2], b[:-2]])
    return [(*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))]


@rule("linear")
def linear(axes: Axes, call: Call) -> Sequence[Dims]:
    x, w = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    out, inner = w if call.fields["trans_w"] else reversed(w)
    axes.unify(x[-1], inner)
    axes.contract(call, inner, 0, 1)
    _add_bias(axes, call, out)
    return [(*x[:-1], out)]


def _add_bias(axes: Axes, call: Call, out: Term, operand: int = 2) -> None:
    if call.operands[operand] is not None:
        dims = axes.dims(call.operands[operand])
        axes.unify(out, dims[-1] if dims else ())


@rule("einsum")
def einsum(axes: Axes, call: Call) -> Sequence[Dims]:
    """Equal letters are equal dimensions; what the result lacks is summed over."""
    inputs, arrow, output = call.fields["equation"].replace(" ", "").partition("->")
    if "." in inputs or not arrow:
        raise NoRule("an einsum with an ellipsis or without a result says nothing about axes")
    found: dict[str, Term] = {}
    for letters, operand in zip(inputs.split(","), call.operands, strict=True):
        for letter, term in zip(letters, axes.dims(operand), strict=True):
            axes.unify(found.setdefault(letter, term), term)
    for letter, term in found.items():
        if letter not in output:
            own = [i for i, text in enumerate(inputs.split(",")) if letter in text]
            axes.contract(call, term, *own)
    return [tuple(found[letter] for letter in output)]


@rule("conv", "fused_conv")
def conv(axes: Axes, call: Call) -> Sequence[Dims]:
    """A group is the outer factor of the channels of both sides; with one channel a group, it is all of them."""
    x, w = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    groups = call.fields["groups"]
    group = axes.space.term(groups)
    outer = axes.space.size(w[0])
    if not isinstance(outer, int):
        raise NoRule("the number of filters is not known")
    axes.unify(w[0], (*group, *axes.space.term(outer // groups)))
    axes.unify(x[1], (*group, *w[1]))
    count_literal(axes, call, "groups", group)
    return [_image(axes, call, x, w, w[0], w[1])]


@rule("conv_transpose")
def conv_transpose(axes: Axes, call: Call) -> Sequence[Dims]:
    """Filters are [in, out / groups, *kernel]."""
    x, w = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    groups = call.fields["groups"]
    group, inner = axes.space.term(groups), axes.space.size(w[0])
    if not isinstance(inner, int):
        raise NoRule("the number of filters is not known")
    within = axes.space.term(inner // groups)
    axes.unify(w[0], (*group, *within))
    axes.unify(x[1], w[0])
    count_literal(axes, call, "groups", group)
    return [_image(axes, call, x, w, (*group, *w[1]), within)]


def count_literal(axes: Axes, call: Call, field: str, term: Term) -> None:
    """A field of `call` is the size of `term`."""
    if term:
        axes.literals[call.node][field] = lambda kept: kept.count(term)


def _image(axes: Axes, call: Call, x: Dims, w: Dims, channels: Term, summed: Term) -> Dims:
    """The result of a convolution that sums over `summed` channels."""
    axes.freeze(w[2:], KERNEL)
    axes.freeze(x[2:], SPATIAL)
    axes.contract(call, summed, 0, 1)
    _add_bias(axes, call, channels)
    return (x[0], channels, *axes.fresh(axes.result(call)[2:], SPATIAL))


@rule("avg_pool", "max_pool")
def pool(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axes.freeze(x[2:], SPATIAL)
    return [(*x[:2], *axes.fresh(axes.result(call)[2:], SPATIAL))]


@rule("attention")
def attention(axes: Axes, call: Call) -> Sequence[Dims]:
    """Heads, the width of queries and keys, and the width of values are three axes; the keys are summed over after a
    softmax, so they depend on each other."""
    q, k, v = (axes.dims(o) for o in call.operands[:3])
    if not len(q) == len(k) == len(v) == 4:
        raise NoRule("attention without an axis of heads says nothing about axes")
    heads = k[1]
    if call.fields["gqa"]:
        served = axes.space.size(q[1]), axes.space.size(heads)
        if not all(isinstance(n, int) and n for n in served):
            raise NoRule("the number of heads is not known")
        heads = (*heads, *axes.space.term(served[0] // served[1]))  # type: ignore[operator]
    axes.unify(q[1], heads)
    axes.unify(k[1], v[1])
    batch = broadcast(axes, [q[:1], k[:1], v[:1]])
    _attend(axes, call, q[2], (q[3], k[3]), (k[2], v[2]))
    if call.operands[3] is not None:
        broadcast(axes, [axes.dims(call.operands[3]), (*batch, q[1], q[2], k[2])])
    return [(*batch, q[1], q[2], v[3])]


def _attend(axes: Axes, call: Call, queries: Term, width: tuple[Term, Term], keys: tuple[Term, Term]) -> None:
    axes.unify(*width)
    axes.contract(call, width[0], 0, 1)
    axes.unify(*keys)
    if call.fields.get("causal"):
        axes.freeze((queries, keys[0]), "attention is causal")
    axes.couple(call, keys[0])


@rule("multi_head_attention")
def multi_head_attention(axes: Axes, call: Call) -> Sequence[Dims]:
    """The last dimension is heads times the width of one."""
    q, k, v = (axes.dims(o) for o in call.operands[:3])
    count = call.fields["heads"]
    heads = axes.space.term(count)
    widths = []
    for dims in (q, v):
        size = axes.space.size(dims[2])
        if not isinstance(size, int):
            raise NoRule("the width of a head is not known")
        widths.append(axes.space.term(size // count))
        axes.unify(dims[2], (*heads, *widths[-1]))
    axes.unify(k[2], (*heads, *widths[0]))
    batch = broadcast(axes, [q[:1], k[:1], v[:1]])
    _attend(axes, call, q[1], (widths[0], widths[0]), (k[1], v[1]))
    count_literal(axes, call, "heads", heads)
    if call.operands[3] is not None:
        broadcast(axes, [axes.dims(call.operands[3]), (*batch, heads, q[1], k[1])])
    return [(*batch, q[1], (*heads, *widths[1]))]
