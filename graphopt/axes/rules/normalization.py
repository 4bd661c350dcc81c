"""Normalisations and reductions: what statistics are taken over depends on itself as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.axes.analysis import Axes, Dims, NoRule, rule
from graphopt.axes.rules.products import count_literal
from graphopt.ir.graph import Call


@rule("batch_norm")
def batch_norm(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    _per_channel(axes, call, x)
    if call.fields["training"]:
        axes.couple(call, x[0], *x[2:])
    return [x]


def _per_channel(axes: Axes, call: Call, x: Dims) -> None:
    for operand in call.operands[1:]:
        if operand is not None:
            axes.unify(x[1], axes.dims(operand)[0])


@rule("instance_norm")
def instance_norm(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    _per_channel(axes, call, x)
    axes.couple(call, *x[2:])
    return [x]


@rule("group_norm")
def group_norm(axes: Axes, call: Call) -> Sequence[Dims]:
    """A whole group can go without a trace; the channels of one group depend on each other."""
    x = axes.dims(call.operands[0])
    groups, channels = call.fields["groups"], axes.space.size(x[1])
    if not isinstance(channels, int):
        raise NoRule("the number of channels is not known")
    group, within = axes.space.term(groups), axes.space.term(channels // groups)
    axes.unify(x[1], (*group, *within))
    _per_channel(axes, call, x)
    axes.couple(call, within, *x[2:])
    count_literal(axes, call, "groups", group)
    return [x]


@rule("layer_norm", "rms_norm")
def layer_norm(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    own = x[call.fields["axis"] % len(x) :]
    for operand in call.operands[1:]:
        if operand is None:
            continue
        dims = axes.dims(operand)
        for a, b in zip(own[len(own) - len(dims) :], dims, strict=True):
            if b:
                axes.unify(a, b)
    axes.couple(call, *own)
    return [x]


@rule("quantize", "dequantize")
def quantize(axes: Axes, call: Call) -> Sequence[Dims]:
    """One scale for all, or one for each index of an axis."""
    x = axes.dims(call.operands[0])
    for operand in call.operands[1:]:
        dims = () if operand is None else axes.dims(operand)
        if len(dims) == 1 and call.fields["axis"] is not None:
            axes.unify(x[call.fields["axis"] % len(x)], dims[0])
        elif any(dims):
            raise NoRule("it is quantised in blocks")
    return [x]


@rule("softmax", "log_softmax")
def softmax(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axes.couple(call, x[call.fields["axis"] % len(x)])
    return [x]


@rule("reduce_sum", "reduce_mean", "reduce_l2", "reduce_max", "reduce_min", "reduce_prod")
def reduce(axes: Axes, call: Call) -> Sequence[Dims]:
    """A sum, and a sum of squares, can do without what is zero; other reductions cannot."""
    x = axes.dims(call.operands[0])
    over = {a % len(x) for a in call.fields["axes"]}
    for axis in sorted(over):
        if call.op in ("reduce_sum", "reduce_l2"):
            axes.contract(call, x[axis], 0)
        else:
            axes.couple(call, x[axis])
    keep = call.fields["keepdims"]
    return [tuple(() if i in over else t for i, t in enumerate(x) if keep or i not in over)]
