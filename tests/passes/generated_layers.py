"""Graphs generated from a rule's own pattern: every field that it leaves open, every operand that it lets be
absent and every alternative is drawn; then the same graph is said in ONNX and in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from conv_graphs import Layers
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.graph import Call, Literal
from graphopt.ir.weights import as_ref
from graphopt.rewrite.pattern import AnyOf, OpPattern, Opt, Pattern, Var, walk
from graphopt.rewrite.rule import Rule


@st.composite
def layers(
    draw: Any, rule: Rule, *, symmetric: bool = False, pads: bool = True, affine: bool | None = None
) -> Layers:
    """A graph in which `rule` has to apply exactly once.

    Args:
        symmetric: pad both ends of an axis alike, as torch does.
        pads: whether convolutions may pad at all.
        affine: whether a batch norm has scale and shift; drawn if None.
    """
    ops = {p.op for p in walk(rule.roots[0]) if isinstance(p, OpPattern)}
    matrix = bool(ops & {"linear", "matmul"})
    spatial = [] if matrix else draw(st.lists(st.integers(7, 9), min_size=1, max_size=3))
    # A result of a few numbers can cancel in all of them, and then no rounding is small beside it.
    batch = draw(st.integers(4, 6)) * (8 if matrix else 1)
    graph = Layers((batch, draw(st.sampled_from([1, 2, 4, 6])), *spatial), draw(st.integers(0, 99)))
    _Generator(draw, graph, symmetric, pads, affine).emit(rule.roots[0])
    return graph.done()


class _Generator:
    def __init__(self, draw: Any, graph: Layers, symmetric: bool, pads: bool, affine: bool | None) -> None:
        self.draw = draw
        self.graph = graph
        self.symmetric = symmetric
        self.pads = pads
        self.affine = affine

    def emit(self, pattern: Pattern) -> None:
        """Append what `pattern` stands for to the end of the graph."""
        if isinstance(pattern, AnyOf):
            self.emit(self.draw(st.sampled_from(pattern.alternatives)))
        elif isinstance(pattern, OpPattern):
            self.emit(pattern.operands[0])
            getattr(self, pattern.op, self._activation)(pattern)
        else:
            assert isinstance(pattern, Var)

    def _maybe(self, pattern: Pattern, ref: Any) -> Any:
        return ref if not isinstance(pattern, Opt) or self.draw(st.booleans()) else None

    def _window(self, n: int) -> dict[str, tuple[int, ...]]:
        def per_axis(low: int, high: int, count: int = n) -> tuple[int, ...]:
            return tuple(self.draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

        begin = per_axis(0, 2 if self.pads else 0)
        end = begin if self.symmetric else per_axis(0, 2 if self.pads else 0)
        return {
            "kernel": per_axis(1, 3),
            "stride": per_axis(1, 2),
            "dilation": per_axis(1, 2),
            "pads": begin + end,
        }

    def _groups(self) -> int:
        channels = self.graph.shape[1]
        return int(self.draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0])))

    def conv(self, pattern: OpPattern) -> None:
        batch, channels, *spatial = self.graph.shape
        fields, groups, n = self._window(len(spatial)), self._groups(), len(spatial)
        out, kernel, p = groups * self.draw(st.integers(1, 3)), fields.pop("kernel"), fields["pads"]
        size = [
            (spatial[i] + p[i] + p[n + i] - fields["dilation"][i] * (kernel[i] - 1) - 1)
            // fields["stride"][i]
            + 1
            for i in range(n)
        ]
        weight, bias = self.graph.ref(out, channels // groups, *kernel), self.graph.ref(out)
        bias = self._maybe(pattern.operands[2], bias)
        self.graph.then("conv", weight, bias, shape=(batch, out, *size), groups=groups, **fields)

    def conv_transpose(self, pattern: OpPattern) -> None:
        batch, channels, *spatial = self.graph.shape
        fields, groups, n = self._window(len(spatial)), self._groups(), len(spatial)
        out, kernel, p = self.draw(st.integers(1, 3)), fields.pop("kernel"), fields["pads"]
        fields["output_padding"] = tuple(self.draw(st.integers(0, s - 1)) for s in fields["stride"])
        size = [
            (spatial[i] - 1) * fields["stride"][i] + fields["dilation"][i] * (kernel[i] - 1) + 1
            + fields["output_padding"][i] - p[i] - p[n + i]
            for i in range(n)
        ]  # fmt: skip
        bias = self._maybe(pattern.operands[2], self.graph.ref(out * groups))
        weight, shape = self.graph.ref(channels, out, *kernel), (batch, out * groups, *size)
        self.graph.then("conv_transpose", weight, bias, shape=shape, groups=groups, **fields)

    def linear(self, pattern: OpPattern) -> None:
        bias = isinstance(pattern.operands[2], Opt) and self.draw(st.booleans())
        # torch keeps the weight of a layer as [out, in].
        self.graph.linear(
            self.draw(st.integers(1, 5)), bias=bias, trans_w=self.symmetric or self.draw(st.booleans())
        )

    def matmul(self, pattern: OpPattern) -> None:
        out = self.draw(st.integers(1, 5))
        self.graph.then("matmul", self.graph.ref(self.graph.shape[1], out), shape=(self.graph.shape[0], out))

    def batch_norm(self, pattern: OpPattern) -> None:
        eps = self.draw(st.sampled_from([1e-5, 1e-3, 0.0]))
        affine = self.draw(st.booleans()) if self.affine is None else self.affine
        self.graph.batch_norm(affine=affine, eps=float(np.float32(eps)))

    def mul(self, pattern: OpPattern) -> None:
        channels, rank = self.graph.shape[1], len(self.graph.shape)
        ones = (1,) * (rank - 2)
        shape = self.draw(st.sampled_from([(channels, *ones), (1, channels, *ones), (1,), ()]))
        operands = [self.graph.end, self.graph.add_constant(self.graph.ref(*shape), "c")[0]]
        self.graph.end = operands.pop(self.draw(st.integers(0, 1)))
        self.graph.then(pattern.op, *operands)

    add = mul

    def clamp(self, pattern: OpPattern) -> None:
        low, high = (self.graph.add_constant(as_ref(v, "float32"), "bound")[0] for v in (-0.5, 0.75))
        self.graph.then(
            "clamp", self._maybe(pattern.operands[1], low), self._maybe(pattern.operands[2], high)
        )

    def _activation(self, pattern: OpPattern) -> None:
        self.graph.then(
            pattern.op, **{f: float(np.float32(self.draw(st.floats(0.125, 0.75)))) for f in pattern.fields}
        )


# ---- the same graph elsewhere ------------------------------------------------------------------------------


def _window_attributes(f: Any) -> dict[str, Any]:
    return {"strides": f["stride"], "pads": f["pads"], "dilations": f["dilation"], "group": f["groups"]}


ONNX_OPS: dict[str, tuple[str, Any]] = {
    "conv": ("Conv", _window_attributes),
    "conv_transpose": (
        "ConvTranspose", lambda f: _window_attributes(f) | {"output_padding": f["output_padding"]}
    ),
    "batch_norm": ("BatchNormalization", lambda f: {"epsilon": f["eps"]}),
    "linear": ("Gemm", lambda f: {"transB": int(f["trans_w"])}),
    "matmul": ("MatMul", lambda f: {}),
    "mul": ("Mul", lambda f: {}),
    "add": ("Add", lambda f: {}),
    "relu": ("Relu", lambda f: {}),
    "sigmoid": ("Sigmoid", lambda f: {}),
    "tanh": ("Tanh", lambda f: {}),
    "leaky_relu": ("LeakyRelu", lambda f: {"alpha": f["slope"]}),
    "hard_sigmoid": ("HardSigmoid", lambda f: {"alpha": f["alpha"], "beta": f["beta"]}),
    "clamp": ("Clip", lambda f: {}),
}  # fmt: skip


def to_onnx(graph: Layers) -> onnx.ModelProto:
    """`graph` as an ONNX model; a batch norm in it must have scale and shift."""
    initializers: dict[str, Any] = {}

    def name(value: Any) -> str:
        if value is None:
            return ""
        if value.data is not None:
            initializers[value.name] = numpy_helper.from_array(value.data.numpy(), value.name)
        return str(value.name)

    nodes = []
    for node in graph.nodes():
        op_type, attributes = ONNX_OPS[node.call.op]
        inputs = [name(o) for o in node.call.operands]
        while not inputs[-1]:
            inputs.pop()
        outputs = [o.name for o in node.call.outputs]
        nodes.append(helper.make_node(op_type, inputs, outputs, **attributes(node.call.fields)))
    infos = [[helper.make_tensor_value_info(v.name, TensorProto.FLOAT, v.type.shape) for v in vs]
             for vs in (graph.inputs(), graph.outputs())]  # fmt: skip
    proto = helper.make_graph(nodes, "generated", *infos, list(initializers.values()))
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


class TorchLayers(torch.nn.Module):
    """`graph` as a torch module that owns its constants; padding must be symmetric."""

    def __init__(self, graph: Layers) -> None:
        super().__init__()
        self.graph_nodes: list[Call] = [n.call for n in graph.nodes()]
        self.source = graph.inputs()[0]
        for call in self.graph_nodes:
            for operand in call.operands:
                if operand is not None and not isinstance(operand, Literal) and operand.data is not None:
                    self.register_buffer(operand.name, torch.from_numpy(np.array(operand.data.numpy())))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        env = {self.source: x}
        for call in self.graph_nodes:
            operands = [
                None if o is None else getattr(self, o.name) if o.data is not None else env[o]
                for o in call.operands
            ]
            env[call.outputs[0]] = x = _torch_call(call, operands)
        return x


def _torch_call(call: Call, operands: list[Any]) -> torch.Tensor:
    f = call.fields
    match call.op:
        case "conv" | "conv_transpose":
            n = len(f["stride"])
            extra = {"output_padding": f["output_padding"]} if call.op == "conv_transpose" else {}
            window = {
                "stride": f["stride"],
                "padding": f["pads"][:n],
                "dilation": f["dilation"],
                "groups": f["groups"],
            }
            return getattr(F, f"{call.op}{n}d")(*operands, **window, **extra)
        case "batch_norm":
            x, scale, shift, mean, var = operands
            return F.batch_norm(x, mean, var, scale, shift, False, 0.0, f["eps"])
        case "linear":
            return F.linear(*operands)
        case op:
            return getattr(torch, op)(*operands)
