"""Readers of matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphopt.ir.graph import Value
from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said


def matmul(n: Reading) -> Said:
    return (n.operand(0), n.operand(1)), {}


def fused_matmul(n: Reading) -> Said:
    n.only("alpha", 1.0)
    for name in ("transA", "transB", "transBatchA", "transBatchB"):
        n.only(name, 0)
    return matmul(n)


def gemm(n: Reading) -> Said:
    x, w, b = n.operand(0), n.operand(1), n.optional(2)
    n.only("alpha", 1.0)
    n.only("transA", 0)
    transposed = n.attr_flag("transB")
    if b is not None:
        n.only("beta", 1.0)
        _check_bias(n, w, b, transposed)
    n.ignore("beta", "broadcast")
    return (x, w, b), {"trans_w": transposed}


def _check_bias(n: Reading, w: Value, b: Value, transposed: bool) -> None:
    """Gemm broadcasts C; a bias is one number per column."""
    shape = n.shape(b)
    if len(shape) != 1:
        raise CannotRead(f"C has rank {len(shape)}")
    known = n.type(w)
    columns = None if known is None or known.shape is None else known.shape[0 if transposed else 1]
    if columns is None or shape[0] != columns:
        raise CannotRead("C is not known to have one number per column")


def einsum(n: Reading) -> Said:
    equation = n.attr_string("equation", "")
    if not equation:
        raise CannotRead("attribute equation is missing")
    return n.operands(), {"equation": equation}


def attention(n: Reading) -> Said:
    """4-D scaled dot-product attention without cache, soft cap or extra outputs."""
    q, k, v, mask = n.operand(0), n.operand(1), n.operand(2), n.optional(3)
    for value in (q, k, v):
        if n.rank(value) != 4:
            raise CannotRead("attention on operands that are not 4-D")
    n.only("softcap", 0.0)
    n.only("qk_matmul_output_mode", 0)
    n.ignore("softmax_precision")
    if n.has_attribute("q_num_heads") or n.has_attribute("kv_num_heads"):
        raise CannotRead("head counts given for 4-D operands")
    if mask is not None:
        _check_mask(n, k, mask)
    return (q, k, v, mask), {
        "scale": _scale(n, q),
        "causal": n.attr_flag("is_causal"),
        "gqa": _grouped(n, q, k),
    }


def _scale(n: Reading, q: Value) -> float:
    if n.has_attribute("scale"):
        return n.attr_float("scale")
    size = n.shape(q)[3]
    if not isinstance(size, int):
        raise CannotRead("the default scale of an unknown head size")
    return 1.0 / math.sqrt(size)


def _grouped(n: Reading, q: Value, k: Value) -> bool:
    a, b = n.shape(q)[1], n.shape(k)[1]
    if a is None or b is None or (a != b and not (isinstance(a, int) and isinstance(b, int))):
        raise CannotRead("the numbers of heads are not known")
    return a != b


def _check_mask(n: Reading, k: Value, mask: Value) -> None:
    """From opset 24 on a mask that is too short is padded: its length has to be known to be that of the
    keys."""
    length = n.shape(k)[2]
    if length is None or n.shape(mask)[-1] != length:
        raise CannotRead("the mask is not known to cover all keys")


def multi_head_attention(n: Reading) -> Said:
    """onnxruntime's op without projection bias, padding mask or cache, its operands not packed."""
    q, k, v, bias = n.operand(0), n.operand(1), n.operand(2), n.optional(5)
    for value in (q, k, v):
        if n.rank(value) != 3:
            raise CannotRead("operands that are packed or not 3-D")
    if bias is not None and n.rank(bias) != 4:
        raise CannotRead("a bias that is not 4-D")
    n.only("unidirectional", 0)
    n.ignore("mask_filter_value")
    heads = n.attr_int("num_heads")
    scale = n.attr_float("scale", 0.0)
    if scale == 0.0:
        width = n.shape(q)[2]
        if not isinstance(width, int):
            raise CannotRead("the default scale of an unknown head size")
        scale = 1.0 / math.sqrt(width // heads)
    return (q, k, v, bias), {"heads": heads, "scale": scale}



def mixture_of_experts(n: Reading) -> Said:
    """onnxruntime's op as far as its CPU runs it: two products an expert, of weights [E, out, in]."""
    x, logits, w1, b1, w2, b2 = n.operand(0), n.operand(1), n.operand(2), n.optional(3), n.operand(4), n.optional(5)
    if n.has(6) or n.has(7):
        raise CannotRead("weights of a third product (fc3), for which onnxruntime's CPU has no kernel")
    n.only("use_sparse_mixer", 0)
    if n.rank(x) not in (2, 3) or n.rank(logits) != 2:
        raise CannotRead("tokens that are neither 2-D nor 3-D, or scores that are not 2-D")
    activation = n.attr_string("activation_type", "relu")
    fields = {
        "k": n.attr_int("k", 1), "activation": activation, "normalize": n.attr_flag("normalize_routing_weights"),
        "alpha": 1.0, "beta": 0.0, "limit": None,
    }  # fmt: skip
    if activation == "swiglu":
        if n.attr_int("swiglu_fusion", 0) != 1:
            raise CannotRead("swiglu of halves that do not take turns, for which onnxruntime's CPU has no kernel")
        fields |= {"alpha": n.attr_float("activation_alpha", 1.0), "beta": n.attr_float("activation_beta", 0.0)}
        fields["limit"] = n.attr_float("swiglu_limit") if n.has_attribute("swiglu_limit") else None
    elif activation not in ("relu", "gelu", "silu", "identity"):
        raise CannotRead(f"activation {activation!r}")
    # Other activations take no parameters, whatever the node gives.
    n.ignore("swiglu_fusion", "swiglu_limit", "activation_alpha", "activation_beta")
    _check_experts(n, x, w1, w2, 2 if activation == "swiglu" else 1)
    return (x, logits, w1, w2, b1, b2), fields


def _check_experts(n: Reading, x: Value, w1: Value, w2: Value, halves: int) -> None:
    """The kernel takes weights of other forms too and reads them as [out, in] all the same."""
    first, second = ([d for d in n.shape(w) if isinstance(d, int)] for w in (w1, w2))
    fits = len(first) == 3 and first[1] % halves == 0 and second == [first[0], first[2], first[1] // halves]
    if not fits or n.shape(x)[-1] != first[2]:
        raise CannotRead("weights whose sizes are not known to be [experts, out, in] of tokens and of one another")


READERS: Mapping[tuple[str, str], Reader] = {
    ("", "MatMul"): Reader("matmul", matmul),
    ("com.microsoft", "FusedMatMul"): Reader("matmul", fused_matmul),
    ("", "Gemm"): Reader("linear", gemm),
    ("", "Einsum"): Reader("einsum", einsum),
    ("", "Attention"): Reader("attention", attention),
    ("com.microsoft", "MultiHeadAttention"): Reader("multi_head_attention", multi_head_attention),
    ("com.microsoft", "MoE"): Reader("moe", mixture_of_experts),
}
