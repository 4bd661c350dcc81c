"""FLOPs of a graph: two per multiply-add of convolutions, matrix products and attention; all else is free.

A number is given only when it is known: a symbolic size, an op whose cost cannot be told, or such ops inside
a loop make it None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from graphopt.ir.graph import Call, Graph, Node
from graphopt.ir.ops.spec import OPS

Shape: TypeAlias = tuple[int, ...]


class _Unknown(Exception):
    """The cost of a node cannot be told."""


def count_flops(graph: Graph) -> int | None:
    """Floating-point operations of one run of `graph`, None if they cannot be told.

    Of the branches of an `If` the dearest counts. Causal attention counts in full.
    """
    try:
        return sum(_node_flops(graph, node) for node in graph.nodes())
    except _Unknown:
        return None


def node_flops(graph: Graph, node: Node) -> int | None:
    """Floating-point operations of one node, bodies included; None if they cannot be told."""
    try:
        return _node_flops(graph, node)
    except _Unknown:
        return None


def _node_flops(graph: Graph, node: Node) -> int:
    bodies = graph.subgraphs(node)
    if bodies:
        return _body_flops(graph.raw_name(node), bodies)
    call = graph.call(node)
    if isinstance(call, Call):
        return _product_flops(_COUNTED[call.op], graph, call) if call.op in _COUNTED else 0
    raw_name = graph.raw_name(node)
    if raw_name in _RAW_PRODUCTS:
        return _product_flops(_RAW_PRODUCTS[raw_name], graph, graph.raw_call(node))
    if _may_cost(raw_name):
        raise _Unknown(raw_name)
    return 0


def _product_flops(multiply_adds: Callable[[Graph, Call], int], graph: Graph, call: Call) -> int:
    try:
        return 2 * multiply_adds(graph, call)
    except (ValueError, IndexError) as error:
        raise _Unknown(f"{call.op}: shapes of other ranks than it takes") from error


def _body_flops(raw_name: str, bodies: Sequence[Graph]) -> int:
    costs = [count_flops(body) for body in bodies]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        raise _Unknown(raw_name)
    if max(known) > 0 and not raw_name.endswith("::If") and not raw_name.endswith("cond"):
        raise _Unknown(raw_name)  # how often a loop runs is not in the graph
    return max(known)


_HEAVY = re.compile(
    r"conv|(?<!cu)mm|gemm|matmul|einsum|(?<!quantize)linear|attention|lstm|gru|rnn|dot|fft|dft", re.IGNORECASE
)


def _may_cost(raw_name: str) -> bool:
    """Whether an op that cannot be read may contain multiply-adds: anything outside the standard sets may."""
    if raw_name.startswith("ai.onnx::"):
        return bool(_HEAVY.search(raw_name.removeprefix("ai.onnx::")))
    return not raw_name.startswith("aten.") or bool(_HEAVY.search(raw_name))


# ---- multiply-adds of one node ---------------------------------------------------------------------------


def _shape(graph: Graph, call: Call, operand: int) -> Shape:
    return _static(graph, call.operands[operand] if operand < len(call.operands) else None)


def _static(graph: Graph, value: Any) -> Shape:
    type_ = None if value is None else graph.type(value)
    if type_ is None or type_.shape is None:
        raise _Unknown("no shape")
    sizes = tuple(d for d in type_.shape if isinstance(d, int))
    if len(sizes) < len(type_.shape):
        raise _Unknown("symbolic shape")
    return sizes


def _conv(graph: Graph, call: Call, weight: int = 1) -> int:
    """Every output element is a sum over one filter, whose shape is [in / groups, *kernel]."""
    return math.prod(_static(graph, call.outputs[0])) * math.prod(_shape(graph, call, weight)[1:])


def _conv_transpose(graph: Graph, call: Call) -> int:
    """Every input element is spread over one filter, whose shape is [out / groups, *kernel]."""
    return math.prod(_shape(graph, call, 0)) * math.prod(_shape(graph, call, 1)[1:])


def _matmul(graph: Graph, call: Call, right: int = 1) -> int:
    a, b = _shape(graph, call, 0), _shape(graph, call, right)
    rows = a[-2] if len(a) > 1 else 1
    columns = b[-1] if len(b) > 1 else 1
    return math.prod(_broadcast(a[:-2], b[:-2])) * rows * a[-1] * columns


def _gemm(graph: Graph, call: Call) -> int:
    """alpha * A' B' + beta * C with A' of M x K: K is what A holds per row of the result."""
    rows, columns = _static(graph, call.outputs[0])
    return math.prod(_shape(graph, call, 0)) * columns if rows else 0


def _linear(graph: Graph, call: Call) -> int:
    weight = _shape(graph, call, 1)
    return math.prod(_shape(graph, call, 0)) * weight[0 if call.fields["trans_w"] else 1]


def _attention(graph: Graph, call: Call) -> int:
    """q @ k^T and weights @ v for q [B, H, L, E], k [B, H', S, E], v [B, H', S, V]; without heads, all of them stand in
    the last axis."""
    *batch, queries, width = _shape(graph, call, 0)
    *_, keys, value_width = _shape(graph, call, 2)
    return math.prod(batch) * queries * keys * (width + value_width)


def _experts(graph: Graph, call: Call) -> int:
    """Both products of k experts for each token."""
    tokens = math.prod(_shape(graph, call, 0)[:-1])
    return tokens * int(call.fields["k"]) * sum(math.prod(_shape(graph, call, i)[1:]) for i in (2, 3))


def _einsum(graph: Graph, call: Call) -> int:
    """Two operands: one multiply-add per combination of all indices. One operand: sums only, no product."""
    equation = str(call.fields["equation"]).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2 or "." in equation:
        raise _Unknown(equation)
    sizes: dict[str, int] = {}
    for i, term in enumerate(terms):
        for label, size in zip(term, _shape(graph, call, i), strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _recurrent(graph: Graph, call: Call) -> int:
    """Per step and sample, every element of W [directions, gates, in] and R [directions, gates, hidden]."""
    steps, batch, _ = _shape(graph, call, 0)
    return steps * batch * (math.prod(_shape(graph, call, 1)) + math.prod(_shape(graph, call, 2)))


def _lstm_layer(graph: Graph, call: Call) -> int:
    """The same of weights that stand one by one."""
    steps, batch, _ = _shape(graph, call, 0)
    shapes = [_shape(graph, call, i) for i in range(3, len(call.operands))]
    return steps * batch * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _broadcast(a: Shape, b: Shape) -> Shape:
    width = max(len(a), len(b))
    padded = zip((1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b, strict=True)
    return tuple(y if x == 1 else x for x, y in padded)


_COUNTED: Mapping[str, Callable[[Graph, Call], int]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "fused_conv": _conv,
    "matmul": _matmul,
    "linear": _linear,
    "attention": _attention,
    "multi_head_attention": _attention,
    "moe": _experts,
    "einsum": _einsum,
    "lstm": _recurrent,
    "gru": _recurrent,
    "lstm_layer": _lstm_layer,
}
_RAW_PRODUCTS: Mapping[str, Callable[[Graph, Call], int]] = {
    "ai.onnx::Conv": _conv,
    "ai.onnx::ConvInteger": _conv,
    "ai.onnx::ConvTranspose": _conv_transpose,
    "ai.onnx::GRU": _recurrent,
    "ai.onnx::Gemm": _gemm,
    "ai.onnx::LSTM": _recurrent,
    "ai.onnx::MatMul": _matmul,
    "ai.onnx::MatMulInteger": _matmul,
    "ai.onnx::QLinearConv": lambda graph, call: _conv(graph, call, weight=3),
    "ai.onnx::QLinearMatMul": lambda graph, call: _matmul(graph, call, right=3),
    "ai.onnx::RNN": _recurrent,
    "com.microsoft::FusedConv": _conv,
    "com.microsoft::FusedGemm": _gemm,
}
assert set(_COUNTED) <= set(OPS)
