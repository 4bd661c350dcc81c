"""Writers of matrix products and attention."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer


def matmul(d: Draft, f: Fields) -> list[Slot]:
    return d.node("MatMul", [d.operand(0, "a"), d.operand(1, "b")])


def linear(d: Draft, f: Fields) -> list[Slot]:
    """Gemm is 2-D only; before opset 11 it has to have a C."""
    x = d.operand(0, "x")
    if d.rank(x, "x") != 2:
        raise CannotEmit("Gemm takes 2-D operands only")
    bias = d.optional(2) if d.opset >= 11 else d.operand(2, "the bias that Gemm needs before opset 11")
    return d.node("Gemm", [x, d.operand(1, "w"), bias], {"transB": int(bool(f["trans_w"]))}, since=7)


def einsum(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(i, f"operand {i}") for i in range(len(d.operands))]
    return d.node("Einsum", operands, {"equation": str(f["equation"])}, since=12)


def attention(d: Draft, f: Fields) -> list[Slot]:
    q, k, v = d.operand(0, "q"), d.operand(1, "k"), d.operand(2, "v")
    for slot, name in ((q, "q"), (k, "k"), (v, "v")):
        if d.rank(slot, name) != 4:
            raise CannotEmit(f"{name} is not 4-D")
    if bool(f["gqa"]) != (d.size(q, 1, "q") != d.size(k, 1, "k")):
        raise CannotEmit("gqa contradicts the numbers of heads")
    attributes = {"scale": float(f["scale"]), "is_causal": int(bool(f["causal"]))}
    return d.node("Attention", [q, k, v, d.optional(3)], attributes, since=23)


def multi_head_attention(d: Draft, f: Fields) -> list[Slot]:
    """onnxruntime's own op. A scale of 0 would mean its default; a bias has its full size along queries and keys."""
    q, k, v, bias = d.operand(0, "q"), d.operand(1, "k"), d.operand(2, "v"), d.optional(3)
    for slot, name in ((q, "q"), (k, "k"), (v, "v")):
        if d.rank(slot, name) != 3:
            raise CannotEmit(f"{name} is not 3-D")
    if (dtype := d.dtype(q, "q")) != "float32":
        raise CannotEmit(f"MultiHeadAttention is for float32, not {dtype}")
    if float(f["scale"]) == 0.0:
        raise CannotEmit("MultiHeadAttention takes a scale of 0 for its default")
    if bias is not None and d.rank(bias, "bias") != 4:
        raise CannotEmit("the bias is not 4-D")
    attributes = {"num_heads": int(f["heads"]), "scale": float(f["scale"])}
    operands = [q, k, v, None, None, bias]
    return d.node("MultiHeadAttention", operands, attributes, domain="com.microsoft")



def mixture_of_experts(d: Draft, f: Fields) -> list[Slot]:
    """onnxruntime's own op."""
    x, logits, w1, w2 = (d.operand(i, name) for i, name in enumerate(("x", "logits", "w1", "w2")))
    if (dtype := d.dtype(x, "x")) not in ("float32", "float16"):
        raise CannotEmit(f"MoE is for float32 and float16 on the CPU, not {dtype}")
    swiglu = f["activation"] == "swiglu"
    parameters = {"activation_alpha": float(f["alpha"]), "activation_beta": float(f["beta"]), "swiglu_fusion": 1}
    parameters |= {} if f["limit"] is None else {"swiglu_limit": float(f["limit"])}
    attributes = {
        "k": int(f["k"]), "activation_type": str(f["activation"]),
        "normalize_routing_weights": int(bool(f["normalize"])), **(parameters if swiglu else {}),
    }  # fmt: skip
    operands = [x, logits, w1, d.optional(4), w2, d.optional(5)]
    return d.node("MoE", operands, attributes, domain="com.microsoft")


WRITERS: Mapping[str, Writer] = {
    "matmul": matmul,
    "linear": linear,
    "einsum": einsum,
    "attention": attention,
    "multi_head_attention": multi_head_attention,
    "moe": mixture_of_experts,
}
