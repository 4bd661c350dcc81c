"""Which dimensions of a fragment are one and the same, which may be made smaller, and what that makes of its shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from graphopt.ir.graph import Call, Graph, Literal, Value
from graphopt.ir.ops import ELEMENTWISE
from graphopt.ir.weights import FLOATS
from graphopt.verify.fragment import Fragment
from graphopt.verify.inputs import Sizes


class Size:
    """One size of a fragment, wherever it occurs. Sizes that an op needs to be equal are merged."""

    def __init__(self, length: int, *, frozen: bool = False) -> None:
        self.length = length
        self._frozen = frozen or length < 3
        self._same: Size | None = None

    def root(self) -> Size:
        found = self
        while found._same is not None:
            found = found._same
        return found

    @property
    def frozen(self) -> bool:
        return self.root()._frozen

    def freeze(self) -> None:
        self.root()._frozen = True

    def merge(self, other: Size) -> None:
        a, b = self.root(), other.root()
        if a is not b:
            if a.length != b.length:
                a._frozen = b._frozen = True
                return
            a._frozen = a._frozen or b._frozen
            b._same = a


Shape = list[Size]


class Unknown(Exception):
    """A shape is not known."""


class Dimensions:
    """The shapes of all values of the side before a change, in terms of common sizes.

    An op that is not known here freezes every size of what it reads and gives: it may mean something by it.
    """

    def __init__(self, fragment: Fragment, sizes: Sizes) -> None:
        """Raises Unknown."""
        self.graph: Graph = fragment.graph
        self.side = fragment.before
        self.shapes: dict[Value, Shape] = {v: [Size(n) for n in sizes[v]] for v in fragment.inputs}
        self.work = 0
        """Multiplications that the side takes."""
        for node in self.side.nodes:
            call = self.graph.call(node)
            if not isinstance(call, Call):
                raise Unknown
            operands = [None if o is None else self.shape(o) for o in call.operands]
            results = _RULES.get(call.op, _opaque)(self, call, operands)
            self.shapes.update({o: s for o, s in zip(call.outputs, results, strict=True) if o is not None})
            for result in results:
                self.work += _count(result)

    def shape(self, value: Value) -> Shape:
        if isinstance(value, Literal):
            return []
        if value not in self.shapes:
            data = self.side.declared.get(value) or self.graph.constant(value)
            if data is None:
                raise Unknown
            self.shapes[value] = [Size(n, frozen=data.dtype not in FLOATS) for n in data.shape]
        return self.shapes[value]

    def typed(self, value: Value | None) -> Shape:
        """Frozen sizes of an output, by its type."""
        type_ = None if value is None else self.graph.type(value)
        if value is None:
            return []
        if type_ is None or type_.shape is None or not type_.is_static:
            raise Unknown
        return [Size(int(n), frozen=True) for n in type_.shape if isinstance(n, int)]

    def smaller(self) -> Mapping[Size, int]:
        """Smaller sizes by root, pairwise different, different from those that stay, and at least 2; empty if there
        is nothing to gain."""
        roots = dict.fromkeys(s.root() for shape in self.shapes.values() for s in shape)
        taken = {r.length for r in roots if r.frozen}
        chosen: dict[Size, int] = {}
        for root in sorted((r for r in roots if not r.frozen), key=lambda r: r.length):
            length = next(n for n in range(2, root.length + len(taken) + 2) if n not in taken)
            chosen[root] = length = min(length, root.length)
            taken.add(length)
        return chosen if any(n < r.length for r, n in chosen.items()) else {}


def freeze(sizes: Iterable[Size]) -> None:
    for size in sizes:
        size.freeze()


def _count(shape: Sequence[Size]) -> int:
    return math.prod(s.length for s in shape)


def _merge_all(sizes: Sequence[Size]) -> None:
    for other in sizes[1:]:
        sizes[0].merge(other)


Operands = Sequence[Shape | None]


def _opaque(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    for shape in operands:
        freeze(shape or ())
    return [d.typed(o) for o in call.outputs]


def _broadcast(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    shapes = [s for s in operands if s is not None]
    rank = max(map(len, shapes))
    result = []
    for axis in range(rank):
        met = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        large = [s for s in met if s.length != 1]
        _merge_all(large)
        result.append((large or met)[0])
    return [result]


def _conv(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    x, w, b = (*operands, None)[:3]
    if x is None or w is None:
        raise Unknown
    transposed = call.op == "conv_transpose"
    given, made = (w[0], w[1]) if transposed else (w[1], w[0])
    freeze([*x[2:], *w[2:]])
    if call.fields["groups"] == 1:
        x[1].merge(given)
        _merge_all([made, *(b or ())])
        out = made
    else:
        freeze([x[1], w[0], w[1], *(b or ())])
        out = Size(w[1].length * call.fields["groups"], frozen=True) if transposed else w[0]
    for shape in operands[3:]:
        freeze(shape or ())
    spatial = [
        Size(_transposed_extent(call, i, n.length, k.length) if transposed else _extent(call, i, n.length, k.length),
             frozen=True)
        for i, (n, k) in enumerate(zip(x[2:], w[2:], strict=True))
    ]  # fmt: skip
    result = [x[0], out, *spatial]
    d.work += _count(result) * given.length * _count(w[2:])
    return [result]


def _extent(call: Call, axis: int, n: int, k: int) -> int:
    pads, rank = call.fields["pads"], len(call.fields["stride"])
    reach = call.fields["dilation"][axis] * (k - 1) + 1
    return int((n + pads[axis] + pads[axis + rank] - reach) // call.fields["stride"][axis]) + 1


def _transposed_extent(call: Call, axis: int, n: int, k: int) -> int:
    fields, rank = call.fields, len(call.fields["stride"])
    reach = fields["dilation"][axis] * (k - 1) + 1
    inner = (n - 1) * fields["stride"][axis] + reach + fields["output_padding"][axis]
    return int(inner - fields["pads"][axis] - fields["pads"][axis + rank])


def _channels(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    """Statistics or scales of one number per channel."""
    x, *rest = operands
    if x is None:
        raise Unknown
    _merge_all([x[1], *(s for shape in rest for s in shape or ())])
    return [x]


def _linear(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    x, w, b = (*operands, None)[:3]
    if x is None or w is None or len(w) != 2:
        raise Unknown
    made, given = (w[0], w[1]) if call.fields["trans_w"] else (w[1], w[0])
    x[-1].merge(given)
    _merge_all([made, *(b or ())])
    result = [*x[:-1], made]
    d.work += _count(result) * given.length
    return [result]


def _matmul(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    x, y = operands
    if x is None or y is None or min(len(x), len(y)) < 2:
        return _opaque(d, call, operands)
    x[-1].merge(y[-2])
    (batch,) = _broadcast(d, call, [x[:-2], y[:-2]]) if len(x) + len(y) > 4 else [[]]
    result = [*batch, x[-2], y[-1]]
    d.work += _count(result) * x[-1].length
    return [result]


def _transpose(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    x = operands[0]
    return [[(x or [])[p] for p in call.fields["perm"]]]


def _same(d: Dimensions, call: Call, operands: Operands) -> list[Shape]:
    return [list(operands[0] or ())]


_RULES: dict[str, Callable[[Dimensions, Call, Operands], list[Shape]]] = {
    **dict.fromkeys(ELEMENTWISE, _broadcast),
    **dict.fromkeys(("conv", "conv_transpose", "fused_conv"), _conv),
    **dict.fromkeys(("batch_norm", "instance_norm"), _channels),
    **dict.fromkeys(("layer_norm", "rms_norm"), _broadcast),
    **dict.fromkeys(("softmax", "log_softmax"), _same),
    "linear": _linear,
    "matmul": _matmul,
    "transpose": _transpose,
}
"""The ops whose dimensions may be made smaller: the meaning of each is the same for every size, and says of no size
anything but that it equals another."""
