"""Single layers of every kind, as scratch graphs that both storages can say, with inputs that favour directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import Array, ArrayRef, numpy_dtype
from graphopt.verify.execute import evaluate

IN, OUT = 32, 40
INFINITE = float("inf")
RUNTIMES = {"onnx": "onnxruntime", "fx": "torch"}


@dataclass(frozen=True)
class Kind:
    """A layer of IN features or channels to `out` of them."""

    op: str
    shape: tuple[int, ...]
    """Of the input."""
    weight: tuple[int, ...]
    bias: bool = True
    fields: tuple[tuple[str, Any], ...] = ()
    options: str = ""
    storages: tuple[str, ...] = ("onnx", "fx")
    out: int = OUT

    @property
    def size(self) -> int:
        return int(np.prod(self.weight))

    def graph(self, weight: Array | None = None, dtype: str = "float32") -> ScratchGraph:
        """The layer alone, with random weights of falling singular values if none is given."""
        graph = ScratchGraph()
        x = self.input(graph, dtype)
        graph.add_output(self.append(graph, x, np.random.default_rng(5), weight, dtype))
        return graph

    def input(self, graph: ScratchGraph, dtype: str = "float32") -> Any:
        return graph.add_input(TensorType("int64" if self.op == "gather" else dtype, self.shape))

    def append(
        self,
        graph: ScratchGraph,
        x: Any,
        rng: np.random.Generator,
        weight: Array | None = None,
        dtype: str = "float32",
    ) -> Any:
        """The layer on `x`; returns its output."""
        made = falling(rng, self.weight) if weight is None else weight
        w = ArrayRef(made.astype(numpy_dtype(dtype)))
        b = ArrayRef(rng.standard_normal(self.out).astype(numpy_dtype(dtype)))
        fields = dict(self.fields)
        out = TensorType(dtype, self._out(fields))
        match self.op:
            case "gather":
                return graph.append("gather", w, x, types=[out], axis=0)
            case "matmul":
                y = graph.append("matmul", x, w, types=[out])
                return graph.append("add", y, b, types=[out]) if self.bias else y
        return graph.append(self.op, x, w, b if self.bias else None, types=[out], **fields)

    def _out(self, fields: dict[str, Any]) -> tuple[int, ...]:
        if self.op != "conv":
            return (*self.shape, self.out) if self.op == "gather" else (*self.shape[:-1], self.out)
        stride, pads, dilation = (fields[name] for name in ("stride", "pads", "dilation"))
        axes = zip(self.shape[2:], self.weight[2:], stride, pads, pads[len(stride) :], dilation, strict=False)
        return (self.shape[0], self.out, *[(n + a + z - d * (k - 1) - 1) // s + 1 for n, k, s, a, z, d in axes])

    def batches(self, dtype: str = "float32", count: int = 4) -> list[Array]:
        rng = np.random.default_rng(6)
        if self.op == "gather":
            return [rng.integers(-IN, IN, self.shape) // 2 for _ in range(count)]
        scale = np.linspace(0.1, 2.0, IN)
        scale = scale.reshape(-1, *[1] * (len(self.shape) - 2)) if self.op == "conv" else scale
        return [(rng.standard_normal(self.shape) * scale).astype(numpy_dtype(dtype)) for _ in range(count)]


def falling(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """A weight whose singular values fall, along inputs as along outputs."""
    first, second = (0.9 ** np.arange(n) for n in shape[:2])
    grid = first[:, None] * second
    return rng.standard_normal(shape) * grid.reshape(*grid.shape, *[1] * (len(shape) - 2))


def conv(
    *kernel: int,
    out: int = OUT,
    stride: Any = 1,
    pads: Any = 0,
    dilation: Any = 1,
    bias: bool = True,
    split: str = "channels",
) -> Kind:
    n = len(kernel)
    stride, dilation = ((v,) * n if isinstance(v, int) else v for v in (stride, dilation))
    pads = (pads,) * 2 * n if isinstance(pads, int) else pads
    fields = (("stride", stride), ("pads", pads), ("dilation", dilation), ("groups", 1))
    # torch pads both ends alike.
    storages = ("onnx", "fx") if pads[:n] == pads[n:] else ("onnx",)
    sizes = [{1: 24, 2: 9, 3: 6}[n]] * n
    return Kind("conv", (3, IN, *sizes), (out, IN, *kernel), bias, fields, f" conv={split}", storages, out)


WINDOW: dict[str, Any] = {"stride": (2, 1), "pads": (1, 2, 1, 2), "dilation": (1, 2)}
TRANSPOSED, PLAIN = (("trans_w", True),), (("trans_w", False),)
KINDS = {
    "linear": Kind("linear", (96, IN), (OUT, IN), True, TRANSPOSED),
    "linear, no bias": Kind("linear", (96, IN), (OUT, IN), False, TRANSPOSED),
    "linear, untransposed": Kind("linear", (96, IN), (IN, OUT), True, PLAIN),
    # In three dimensions ONNX has products only.
    "linear, three axes": Kind("linear", (4, 24, IN), (OUT, IN), True, TRANSPOSED, storages=("fx",)),
    "matmul": Kind("matmul", (96, IN), (IN, OUT), False),
    "matmul and sum": Kind("matmul", (96, IN), (IN, OUT)),
    "matmul, three axes": Kind("matmul", (4, 24, IN), (IN, OUT)),
    "table": Kind("gather", (8, 12), (IN, OUT), False, options=" embedding=true"),
    "conv 1x1": conv(1, 1),
    "conv 1x1, strided": conv(1, 1, stride=2, bias=False),
    "conv 3": conv(3, pads=1, stride=2),
    "conv 3x3x3": conv(3, 3, 3, pads=1),
    "conv 3x2, channels": conv(3, 2, **WINDOW),
    "conv 3x2, spatial": conv(3, 2, **WINDOW, split="spatial"),
    "conv 3x2, tucker": conv(3, 2, **WINDOW, split="tucker"),
    "conv 3x3, tucker": conv(3, 3, out=IN, bias=False, split="tucker"),
    "conv 3, tucker": conv(3, pads=1, split="tucker"),
    "conv 3x3, padded on one side, channels": conv(3, 3, pads=(0, 1, 2, 0)),
    "conv 3x3, padded on one side, spatial": conv(3, 3, pads=(0, 1, 2, 0), split="spatial"),
    "conv 3x3, padded on one side, tucker": conv(3, 3, pads=(0, 1, 2, 0), split="tucker"),
}
PLACES = [(name, storage) for name, kind in KINDS.items() for storage in kind.storages]


@dataclass(frozen=True)
class Ran:
    """What the pass made of one layer."""

    result: Any
    run: Callable[[Array], Array]

    @property
    def notes(self) -> str:
        return "\n".join(self.result.report.passes[0].notes)

    @property
    def kept(self) -> list[str]:
        return [a.rule for a in self.result.report.kept]

    @property
    def errors(self) -> tuple[float, float]:
        """Predicted and measured, as they are printed."""
        ((predicted, measured),) = re.findall(r"predicted error ([-\d.e]+), measured ([-\d.e]+)", self.notes)
        return float(predicted), float(measured)

    @property
    def ranks(self) -> tuple[int, ...]:
        (found,) = re.findall(r" of rank (\d+(?: and \d+)?)", self.notes)
        return tuple(map(int, found.split(" and ")))

    @property
    def parameters(self) -> tuple[int, int]:
        record = self.result.report.passes[0]
        return record.before.parameters, record.after.parameters


def ran(
    kind: Kind,
    storage: str,
    spec: str,
    *,
    weight: Array | None = None,
    dtype: str = "float32",
    data: Sequence[Array] | None = None,
    budget: Any = INFINITE,
) -> Ran:
    """`low-rank{spec}` on a layer of `kind`."""
    batches = kind.batches(dtype) if data is None else data
    model = from_scratch(kind.graph(weight, dtype), storage)
    text = f"low-rank{{{spec}{kind.options}}}"
    result = graphopt.optimize(model, [text], budget=budget, calibration=[(x,) for x in batches])
    return Ran(result, runner(result, storage))


def runner(result: Any, storage: str) -> Callable[[Array], Array]:
    """The result on its storage's own runtime."""
    lowered = result.lower(RUNTIMES[storage])
    if storage == "onnx":
        return lambda x: np.asarray(lowered(x)[0])

    from graphopt.ir.fx.tensors import to_numpy, to_torch

    def run(x: Array) -> Array:
        (y,) = lowered(to_torch(x))
        return to_numpy(y)

    return run


def error_on_tuning_data(kind: Kind, found: Ran, weight: Array | None = None, dtype: str = "float32") -> float:
    """|y' - y| / |y - b| over every second batch, with y in float64 from the original's meaning."""
    graph = kind.graph(weight, dtype)
    apart = size = 0.0
    for x in kind.batches(dtype)[::2]:
        y = evaluate(graph, [x])[0]
        bias = 0.0 if kind.op == "gather" else evaluate(graph, [np.zeros_like(x)])[0]
        apart += float(np.square(found.run(x).astype(np.float64) - y).sum())
        size += float(np.square(y - bias).sum())
    return float(np.sqrt(apart / size))
