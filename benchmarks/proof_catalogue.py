"""A catalogue of rewrites as pairs of expressions: right ones that algebra can prove, and wrong ones of each kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.verify.fragment import Fragment, Side

Build = Callable[..., Any]
EXP = "proof+exp"


class Ops:
    """`o.conv(x, w, ...)` appends an op; numbers become constants, and weights are the same ones on both sides."""

    def __init__(self, graph: ScratchGraph) -> None:
        self.graph = graph
        self.weights: dict[str, Any] = {}

    def __getattr__(self, op: str) -> Build:
        return lambda *operands, **fields: self.graph.append(op.rstrip("_"), *map(self.value, operands), **fields)

    def value(self, operand: Any) -> Any:
        if isinstance(operand, float | np.ndarray):
            return self.constant(operand)
        return operand

    def constant(self, value: Any) -> Any:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        return self.graph.add_constant(ArrayRef(array), "c")[0]

    def weight(self, name: str, *shape: int) -> Any:
        if name not in self.weights:
            rng = np.random.default_rng(len(self.weights) + 5)
            data = np.abs(rng.standard_normal(shape)) + 0.5
            self.weights[name] = self.constant(data)
        return self.weights[name]

    # ---- what many entries use -------------------------------------------------------------------------------

    def sum(self, x: Any, *axes: int) -> Any:
        return self.reduce_sum(x, axes=axes, keepdims=True)

    def mean(self, x: Any, *axes: int) -> Any:
        return self.reduce_mean(x, axes=axes, keepdims=True)

    def cut(self, x: Any, start: int, end: int, axis: int) -> Any:
        return self.slice(x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))

    def turned(self, x: Any, *perm: int) -> Any:
        return self.transpose(x, perm=perm)

    def shaped(self, x: Any, *shape: int) -> Any:
        return self.reshape(x, shape=shape)

    def convolved(self, x: Any, w: Any, b: Any = None, *, pad: int = 1, stride: int = 1, **more: Any) -> Any:
        fields = {"stride": (stride,) * 2, "pads": (pad,) * 4, "dilation": (1, 1), "groups": 1} | more
        return self.conv(x, w, b, **fields)


@dataclass
class Entry:
    """One rewrite, what it should have been, and how it is got wrong."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    before: Build
    after: Build | None
    wrong: dict[str, Build] = field(default_factory=dict)
    level: str = "proof"

    def fragment(self, after: Build) -> Fragment:
        graph = ScratchGraph()
        ops = Ops(graph)
        inputs = [graph.add_input(TensorType("float32", s)) for s in self.shapes]
        sides = []
        for build in (self.before, after):
            known = set(graph.nodes())
            result = build(ops, *inputs)
            roots = result if isinstance(result, tuple) else (result,)
            sides.append(Side(tuple(n for n in graph.nodes() if n not in known), roots))
        return Fragment(graph, tuple(inputs), *sides)

    def feeds(self) -> list[Any]:
        return [np.zeros(s, np.float32) for s in self.shapes]


CATALOGUE: list[Entry] = []


def entry(
    name: str, shapes: list[tuple[int, ...]], before: Build, after: Build | None, level: str = "proof", **wrong: Build
) -> None:
    CATALOGUE.append(Entry(name, tuple(shapes), before, after, wrong, level))


# ---- convolutions ------------------------------------------------------------------------------------------------

X = (2, 4, 6, 7)


def bn(o: Ops, y: Any, c: int, eps: float = 2**-10) -> Any:
    return o.batch_norm(y, *(o.weight(n, c) for n in ("scale", "shift", "mean", "var")), eps=eps)


def folded(
    o: Ops, x: Any, m: int, c: int, *, groups: int = 1, eps: float = 2**-10, sign: float = -1.0, beta: bool = True,
    root: bool = True, biased: bool = True, scaled: bool = True, **more: Any,
) -> Any:  # fmt: skip
    w, b = o.weight("w", m, c // groups, 3, 3), o.weight("b", m)
    deviation = o.add(o.weight("var", m), eps)
    factor = o.div(o.weight("scale", m), o.sqrt(deviation) if root else deviation)
    if not scaled:
        factor = o.div(1.0, o.sqrt(deviation))
    offset = o.add(b, o.mul(sign, o.weight("mean", m))) if biased else o.mul(sign, o.weight("mean", m))
    offset = o.mul(offset, factor)
    if beta:
        offset = o.add(offset, o.weight("shift", m))
    return o.convolved(x, o.mul(w, o.shaped(factor, m, 1, 1, 1)), offset, groups=groups, **more)


def conv(o: Ops, x: Any, m: int = 6, c: int = 4, groups: int = 1, **more: Any) -> Any:
    return o.convolved(x, o.weight("w", m, c // groups, 3, 3), o.weight("b", m), groups=groups, **more)


entry(
    "conv and batch norm", [X], lambda o, x: bn(o, conv(o, x), 6), lambda o, x: folded(o, x, 6, 4),
    eps_tenfold=lambda o, x: folded(o, x, 6, 4, eps=0.01),
    mean_added=lambda o, x: folded(o, x, 6, 4, sign=1.0),
    shift_dropped=lambda o, x: folded(o, x, 6, 4, beta=False),
    scale_dropped=lambda o, x: folded(o, x, 6, 4, scaled=False),
    bias_dropped=lambda o, x: folded(o, x, 6, 4, biased=False),
    root_missing=lambda o, x: folded(o, x, 6, 4, root=False),
    padding_lost=lambda o, x: folded(o, o.pad(x, pads=(0, 0, 0, 0, 0, 0, 1, 1)), 6, 4, pads=(0, 0, 1, 1)),
    dilation=lambda o, x: folded(o, x, 6, 4, dilation=(2, 2), pad=2),
)  # fmt: skip
entry(
    "grouped conv and batch norm", [X], lambda o, x: bn(o, conv(o, x, 4, 4, 2), 4),
    lambda o, x: folded(o, x, 4, 4, groups=2),
    factor_on_inputs=lambda o, x: o.convolved(
        x, o.mul(o.weight("w", 4, 2, 3, 3), o.shaped(o.cut(o.weight("scale", 4), 0, 2, 0), 1, 2, 1, 1)),
        o.weight("b", 4), groups=2),
)  # fmt: skip


def dense(o: Ops, x: Any, swap: bool = False) -> Any:
    w = o.weight("w", 4, 2, 3, 3)
    zeros = o.constant(np.zeros((2, 2, 3, 3)))
    top, bottom = o.cut(w, 0, 2, 0), o.cut(w, 2, 4, 0)
    rows = [o.concat(top, zeros, axis=1), o.concat(zeros, bottom, axis=1)]
    return o.convolved(x, o.concat(*(rows[::-1] if swap else rows), axis=0), o.weight("b", 4))


entry("grouped conv as a dense one", [X], lambda o, x: conv(o, x, 4, 4, 2), dense,
      groups_swapped=lambda o, x: dense(o, x, swap=True))  # fmt: skip
entry(
    "conv of one place as a product", [X],
    lambda o, x: o.convolved(x, o.weight("w", 3, 4, 1, 1), pad=0),
    lambda o, x: o.shaped(o.matmul(o.shaped(o.weight("w", 3, 4, 1, 1), 3, 4), o.shaped(x, 2, 4, 42)), 2, 3, 6, 7),
    sizes_swapped=lambda o, x: o.shaped(
        o.matmul(o.shaped(o.weight("w", 3, 4, 1, 1), 3, 4), o.shaped(o.turned(x, 0, 1, 3, 2), 2, 4, 42)), 2, 3, 6, 7),
)  # fmt: skip


def centred(o: Ops, w: Any, place: tuple[int, int, int, int] = (1, 1, 1, 1)) -> Any:
    return o.pad(w, pads=(0, 0, *place[:2], 0, 0, *place[2:]))


def branches(o: Ops, x: Any, identity: bool) -> Any:
    y = o.add(conv(o, x, 4), o.convolved(x, o.weight("one", 4, 4, 1, 1), pad=0))
    return o.add(y, x) if identity else y


def merged(o: Ops, x: Any, identity: bool, place: tuple[int, int, int, int] = (1, 1, 1, 1)) -> Any:
    w = o.add(o.weight("w", 4, 4, 3, 3), centred(o, o.weight("one", 4, 4, 1, 1), place))
    if identity:
        w = o.add(w, centred(o, o.constant(np.eye(4).reshape(4, 4, 1, 1))))
    return o.convolved(x, w, o.weight("b", 4))


entry("branches of RepVGG", [X], lambda o, x: branches(o, x, True), lambda o, x: merged(o, x, True),
      identity_dropped=lambda o, x: merged(o, x, False))  # fmt: skip
entry("convs of three places and of one", [X], lambda o, x: branches(o, x, False), lambda o, x: merged(o, x, False),
      off_centre=lambda o, x: merged(o, x, False, (0, 1, 2, 1)))  # fmt: skip


def padded(o: Ops, x: Any, value: float = 0.0, pads: tuple[int, ...] = (1, 2, 0, 1), mode: str = "constant") -> Any:
    y = o.pad(x, o.value(value) if mode == "constant" else None, pads=(0, 0, *pads[:2], 0, 0, *pads[2:]), mode=mode)
    return o.convolved(y, o.weight("w", 3, 4, 3, 3), pad=0)


entry(
    "a pad into a conv", [X], padded, lambda o, x: o.convolved(x, o.weight("w", 3, 4, 3, 3), pads=(1, 2, 0, 1)),
    mirrored=lambda o, x: o.convolved(x, o.weight("w", 3, 4, 3, 3), pads=(0, 1, 1, 2)),
    ones=lambda o, x: padded(o, x, 1.0),
    edge=lambda o, x: padded(o, x, mode="edge"),
)  # fmt: skip
entry(
    "average pooling as a conv", [X],
    lambda o, x: o.avg_pool(x, kernel=(2, 2), stride=(1, 1), pads=(0,) * 4, dilation=(1, 1)),
    lambda o, x: o.convolved(x, o.constant(np.eye(4)[..., None, None] * np.full((2, 2), 0.25)), pad=0),
    of_nine=lambda o, x: o.convolved(x, o.constant(np.eye(4)[..., None, None] * np.full((2, 2), 1 / 9)), pad=0),
)  # fmt: skip


def pooled(o: Ops, x: Any, include: bool = True, pad: int = 1) -> Any:
    return o.avg_pool(x, kernel=(3, 3), stride=(1, 1), pads=(pad,) * 4, dilation=(1, 1), count_include_pad=include)


entry("a pad into an average", [X], lambda o, x: pooled(o, o.pad(x, pads=(0, 0, 1, 1, 0, 0, 1, 1)), pad=0), pooled,
      padding_not_counted=lambda o, x: pooled(o, x, include=False))  # fmt: skip


def zero_inserted(o: Ops, x: Any, flip: bool = True, turn: bool = True) -> Any:
    spread = o.pad(o.shaped(x, 1, 3, 4, 1, 5, 1), pads=(0,) * 6 + (0, 0, 0, 1, 0, 1))
    spread = o.cut(o.cut(o.shaped(spread, 1, 3, 8, 10), 0, 7, 2), 0, 9, 3)
    w = o.weight("w", 3, 2, 3, 3)
    if flip:
        w = o.slice(w, starts=(-1, -1), ends=(-(2**62),) * 2, axes=(2, 3), steps=(-1, -1))
    w = o.turned(w, 1, 0, 2, 3) if turn else o.shaped(w, 2, 3, 3, 3)
    return o.convolved(spread, w, pad=2)


entry(
    "a transposed conv by inserted zeros", [(1, 3, 4, 5)],
    lambda o, x: o.conv_transpose(x, o.weight("w", 3, 2, 3, 3), stride=(2, 2), pads=(0,) * 4, dilation=(1, 1),
                                  output_padding=(0, 0)),
    zero_inserted,
    kernel_not_flipped=lambda o, x: zero_inserted(o, x, flip=False),
    channels_not_turned=lambda o, x: zero_inserted(o, x, turn=False),
)  # fmt: skip


def to_space(o: Ops, x: Any, perm: tuple[int, ...] = (0, 3, 4, 1, 5, 2)) -> Any:
    return o.shaped(o.turned(o.shaped(x, 2, 2, 2, 2, 3, 5), *perm), 2, 2, 6, 10)


entry("depth to space", [(2, 8, 3, 5)], lambda o, x: o.depth_to_space(x, block=2), to_space,
      the_other_mode=lambda o, x: o.depth_to_space(x, block=2, mode="CRD"),
      wrong_order=lambda o, x: to_space(o, x, (0, 3, 4, 2, 5, 1)))  # fmt: skip
entry("a shift before a conv", [X],
      lambda o, x: o.convolved(o.add(x, o.weight("s", 1, 4, 1, 1)), o.weight("w", 3, 4, 3, 3), pad=0),
      lambda o, x: o.add(o.convolved(x, o.weight("w", 3, 4, 3, 3), pad=0),
                         o.shaped(o.sum(o.mul(o.weight("w", 3, 4, 3, 3), o.weight("s", 1, 4, 1, 1)), 1, 2, 3),
                                  1, 3, 1, 1)))  # fmt: skip
entry("a shift before a padded conv", [X],
      lambda o, x: o.convolved(o.add(x, o.weight("s", 1, 4, 1, 1)), o.weight("w", 3, 4, 3, 3)), None,
      border_forgotten=lambda o, x: o.add(
          o.convolved(x, o.weight("w", 3, 4, 3, 3)),
          o.shaped(o.sum(o.mul(o.weight("w", 3, 4, 3, 3), o.weight("s", 1, 4, 1, 1)), 1, 2, 3), 1, 3, 1, 1),
      ))  # fmt: skip
entry("a conv of the negative", [X], lambda o, x: o.convolved(o.neg(x), o.weight("w", 3, 4, 3, 3)),
      lambda o, x: o.neg(o.convolved(x, o.weight("w", 3, 4, 3, 3))),
      sign_lost=lambda o, x: o.convolved(x, o.weight("w", 3, 4, 3, 3)))  # fmt: skip
