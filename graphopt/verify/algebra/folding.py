"""Models in which a tool folded what follows a convolution or a linear layer, channel by channel, into its weights.

conv(x, w) * a + b is conv(x, a w) + b for numbers a, b of each output channel: convolution is linear, and so is a
product with a constant matrix. So a convolution with the batch norms, products and sums of constants behind it is one
expression of x, whatever part of the numbers a file has folded. Folded numbers are rounded; those of the second model
are read as the products and sums of the first that they are within `UNITS` of. That reading is all that is assumed, and
its largest deviation is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, Literal, Value
from graphopt.ir.weights import Array
from graphopt.verify.algebra.sides import spelled
from graphopt.verify.algebra.terms import Terms, hashed

UNITS = 16.0
"""Units of rounding by which a folded number may differ from what it is read as: a weight in relation to itself, an
offset in relation to the sum of the magnitudes of what it is the sum of. A batch norm and a scale behind it take nine
roundings at most."""
UNIT = 2.0**-24
"""Of float32, the one dtype for which this is done: in double precision these numbers are exact beside it."""


@dataclass(frozen=True, eq=False)
class Linear:
    """factor * conv(x, weight) + offset, where factor and offset are numbers of each output channel, in float64. Of a
    linear layer x W^T stands for conv(x, W), and the channels are on the last axis."""

    core: bytes
    """A hash of x and of how it is convolved."""
    weight: Array
    """Of the output channels first; of two axes in a linear layer."""
    factor: Array
    offset: Array
    size: Array
    """The sum of the magnitudes of the terms of the offset."""
    rank: int | None
    """How many axes the result has, where that is known."""

    def then(self, factor: Any, offset: Any) -> Linear:
        scaled = self.offset * factor + offset
        return replace(
            self, factor=self.factor * factor, offset=scaled, size=self.size * np.abs(factor) + np.abs(offset)
        )

    @property
    def is_finite(self) -> bool:
        return all(bool(np.isfinite(a).all()) for a in (self.weight, self.factor, self.offset))

    @property
    def weights(self) -> Array:
        """With the factor multiplied into them, in float64."""
        return self.weight.astype(np.float64) * self.factor.reshape(-1, *[1] * (self.weight.ndim - 1))

    def deviation(self, other: Linear) -> float:
        """By how many units of rounding the numbers of `other` differ from these at most."""
        if self.weight.shape != other.weight.shape:
            return float("inf")
        mine = self.weights
        pairs = ((mine, other.weights, np.abs(mine)), (self.offset, other.offset, self.size))
        with np.errstate(divide="ignore", invalid="ignore"):
            return max(
                float(np.max(np.where(a == b, 0.0, np.abs(a - b) / (UNIT * scale)), initial=0.0))
                for a, b, scale in pairs
            )


@dataclass
class Readings:
    """The convolutions of the first model, and as which of them those of the second were read."""

    closed: bool = False
    """Whether the first model has been seen, so that no more are added."""
    read: set[tuple[bytes, bytes]] = field(default_factory=set)
    """Convolutions of the second model whose numbers were read as others."""
    units: float = 0.0
    """The largest deviation."""
    _known: dict[bytes, dict[bytes, Linear]] = field(default_factory=dict)
    _taken: dict[bytes, bytes] = field(default_factory=dict)

    def name(self, form: Linear) -> bytes:
        """A hash that is equal for equal expressions. In the first model only the same numbers are equal; in the
        second no two different ones are read as the same."""
        parts = [hashed(np.ascontiguousarray(a).tobytes()) for a in (form.weight, form.factor, form.offset)]
        exact = hashed("linear", form.core, *parts)
        known = self._known.setdefault(form.core, {})
        if not self.closed:
            known.setdefault(exact, form)
            return exact
        units, name = 0.0, exact
        if exact not in known:
            units, name = min(((one.deviation(form), name) for name, one in known.items()), default=(np.inf, exact))
        if self._taken.setdefault(name, exact) != exact:
            return hashed("another", exact)
        if units > UNITS:
            return exact
        if name != exact:
            self.read.add((form.core, parts[0]))
            self.units = max(self.units, units)
        return name


class FoldingTerms(Terms):
    """Terms that are the same whatever was folded into convolutions."""

    def __init__(
        self, graph: Any, sizes: Mapping[str, tuple[int, ...]], expired: Callable[[], bool], readings: Readings
    ) -> None:
        super().__init__(graph, sizes, expired)
        self._readings = readings
        self._forms: dict[Value, Linear] = {}

    def _operation(self, node: Any) -> bytes | None:
        padding = node.attributes.get("auto_pad")
        if padding is not None and padding.as_string() != "NOTSET":
            return None  # how it is padded is read from sizes that the file states, and may state wrongly
        call = self._graph.call(node)
        form = self._form(call) if isinstance(call, Call) else None
        if form is None or not form.is_finite:
            return None
        self._forms[call.outputs[0]] = form
        return self._readings.name(form)

    def _form(self, call: Call) -> Linear | None:
        match call.op:
            case "conv":
                return self._convolved(call)
            case "linear" | "matmul":
                return self._multiplied(call)
            case "batch_norm":
                return self._normalised(call)
            case "add" | "mul" | "sub" | "div":
                return self._scaled(call)
        return None

    def _convolved(self, call: Call) -> Linear | None:
        x, w, b = call.operands
        assert x is not None and w is not None
        weight, bias = self._real(w), None if b is None else self._real(b)
        if weight is None or (b is not None and bias is None) or isinstance(x, Literal):
            return None
        channels = weight.shape[0]
        offset = np.zeros(channels) if bias is None else bias.astype(np.float64)
        if offset.shape != (channels,):
            return None
        core = hashed("conv", spelled(call.fields), str(weight.shape), self._of(x))
        return Linear(core, weight, np.ones(channels), offset, np.abs(offset), weight.ndim)

    def _multiplied(self, call: Call) -> Linear | None:
        """A linear layer; Gemm is one of matrices, of a MatMul that is known only if it reads an input."""
        x, w, *bias = call.operands
        weight = None if w is None or isinstance(w, Literal) else self._real(w)
        if x is None or isinstance(x, Literal) or weight is None or weight.ndim != 2:
            return None
        if call.op == "matmul" or not call.fields["trans_w"]:
            weight = weight.T
        channels, rank = len(weight), 2 if call.op == "linear" else None
        if x in self._shapes:
            rank = len(self._shapes[x])
        offset = np.zeros(channels)
        if bias and bias[0] is not None:
            stored = None if isinstance(bias[0], Literal) else self._real(bias[0])
            if stored is None or stored.shape not in ((channels,), (1, channels)):
                return None
            offset = stored.astype(np.float64).reshape(-1)
        core = hashed("linear", str(weight.shape), self._of(x))
        return Linear(core, weight, np.ones(channels), offset, np.abs(offset), rank)

    def _normalised(self, call: Call) -> Linear | None:
        form = self._forms.get(call.operands[0])
        given = [None if o is None else self._channels(o, form, column=False) for o in call.operands[1:]]
        if form is None or call.fields["training"] or any(g is None for g in given):
            return None
        scale, shift, mean, var = (np.asarray(g) for g in given)
        variance = var + float(call.fields["eps"])
        if not np.all(variance > 0.0):
            return None
        return form.then(1.0, -mean).then(scale / np.sqrt(variance), 0.0).then(1.0, shift)

    def _scaled(self, call: Call) -> Linear | None:
        """A sum with, or a product by, a constant for each channel."""
        x, y = call.operands
        if x not in self._forms and call.op in ("add", "mul"):
            x, y = y, x
        form = self._forms.get(x)
        given = None if y is None else self._channels(y, form, column=True)
        if form is None or given is None or (call.op == "div" and not np.all(given)):
            return None
        match call.op:
            case "add":
                return form.then(1.0, given)
            case "sub":
                return form.then(1.0, -given)
            case "mul":
                return form.then(given, 0.0)
        return form.then(1.0 / given, 0.0)

    def _channels(self, value: Value, form: Linear | None, *, column: bool) -> Array | None:
        """The constant `value` as a number for each channel of `form`; None if it is anything else.

        Args:
            column: whether it is broadcast against the images, rather than read channel by channel.
        """
        data = None if form is None or isinstance(value, Literal) else self._real(value)
        if form is None or data is None:
            return None
        channels, rank = len(form.factor), form.weight.ndim
        if rank == 2:
            return self._last_axis(data, form, column=column)
        shape = (1,) * (rank - data.ndim) + data.shape if column else (1, *data.shape, *[1] * (rank - 2))
        if len(shape) != rank or any(n != 1 for i, n in enumerate(shape) if i != 1) or shape[1] not in (1, channels):
            return None
        if not column and data.shape != (channels,):
            return None
        return np.broadcast_to(data.astype(np.float64).reshape(-1), (channels,))

    @staticmethod
    def _last_axis(data: Array, form: Linear, *, column: bool) -> Array | None:
        """`data` as a number for each channel of a linear layer."""
        channels = len(form.factor)
        if not column:  # a batch norm has its channels on the second axis
            return data.astype(np.float64) if form.rank == 2 and data.shape == (channels,) else None
        if data.ndim > (form.rank or 1) or data.size not in (1, channels) or data.shape[-1:] not in ((), (data.size,)):
            return None
        return np.broadcast_to(data.astype(np.float64).reshape(-1), (channels,))

    def _real(self, value: Value) -> Array | None:
        """The numbers of a constant of float32."""
        data = self._number(value)
        return data if data is not None and data.dtype == np.float32 else None


def same_when_folded(
    before: Any, after: Any, sizes: Mapping[str, tuple[int, ...]], expired: Callable[[], bool]
) -> tuple[set[str], Readings] | None:
    """As `same_expressions`, but for what was folded into convolutions; also how the second model's were read."""
    readings = Readings()
    sides = []
    found = []
    for graph in (before, after):
        sides.append(FoldingTerms(graph, sizes, expired, readings))
        found.append(sides[-1].outputs())
        readings.closed = True
    if None in found or found[0] != found[1]:
        return None
    return sides[0].computed | sides[1].computed, readings
