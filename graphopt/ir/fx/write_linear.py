"""Writers of matrix products, attention, normalisations, softmax and reductions."""

from __future__ import annotations

import torch

from graphopt.ir.fx.write import Plan, Writing, writes

aten = torch.ops.aten


@writes("matmul")
def matmul(w: Writing) -> Plan:
    w.one_dtype()
    return Plan(aten.matmul.default, (w.tensor(0), w.tensor(1)))


@writes("linear")
def linear(w: Writing) -> Plan:
    w.one_dtype()
    x, weight, bias = w.tensor("x"), w.tensor("w"), w.optional("b")
    if bias is not None:
        w.require(w.rank("b") == 1, "the bias is no vector")
    if w.field("trans_w"):
        return Plan(aten.linear.default, (x, weight, bias))
    w.require(bias is not None and w.rank("x") == 2, "an untransposed weight needs a matrix and a bias")
    return Plan(aten.addmm.default, (bias, x, weight))


@writes("einsum")
def einsum(w: Writing) -> Plan:
    w.one_dtype()
    return Plan(aten.einsum.default, (w.field("equation"), w.all_tensors()))


@writes("attention")
def attention(w: Writing) -> Plan:
    operands = (w.tensor("q"), w.tensor("k"), w.tensor("v"), w.optional("mask"))
    w.require(all(w.rank(n) == 4 for n in "qkv"), "operands without four axes")
    w.require(operands[3] is None or not w.field("causal"), "torch has no causal attention with a mask")
    kwargs = {"scale": w.field("scale"), "enable_gqa": w.field("gqa")}
    return Plan(aten.scaled_dot_product_attention.default, (*operands, 0.0, w.field("causal")), kwargs)


@writes("batch_norm")
def batch_norm(w: Writing) -> Plan:
    w.one_dtype()
    w.require(not w.field("training"), "training mode would write the running statistics")
    operands = (w.tensor("x"), w.optional("scale"), w.optional("shift"), w.tensor("mean"), w.tensor("var"))
    return Plan(aten.batch_norm.default, (*operands, False, 0.0, w.field("eps"), False))


@writes("instance_norm")
def instance_norm(w: Writing) -> Plan:
    w.one_dtype()
    operands = (w.tensor("x"), w.optional("scale"), w.optional("shift"))
    return Plan(aten.instance_norm.default, (*operands, None, None, True, 0.0, w.field("eps"), False))


def _trailing_sizes(w: Writing) -> list[int]:
    """The static sizes of x from `axis` on."""
    sizes = (w.type("x").shape or ())[w.field("axis") :]
    w.require(all(isinstance(s, int) for s in sizes), "dynamic size")
    return [s for s in sizes if isinstance(s, int)]


@writes("layer_norm")
def layer_norm(w: Writing) -> Plan:
    w.one_dtype()
    operands = (w.tensor("x"), _trailing_sizes(w), w.optional("scale"), w.optional("shift"))
    return Plan(aten.layer_norm.default, (*operands, w.field("eps"), False))


@writes("rms_norm")
def rms_norm(w: Writing) -> Plan:
    w.one_dtype()
    args = (w.tensor("x"), _trailing_sizes(w), w.optional("scale"), w.field("eps"))
    return Plan(aten.rms_norm.default, args)


@writes("group_norm")
def group_norm(w: Writing) -> Plan:
    w.one_dtype()
    operands = (w.tensor("x"), w.field("groups"), w.optional("scale"), w.optional("shift"))
    return Plan(aten.group_norm.default, (*operands, w.field("eps"), False))


@writes("softmax", "log_softmax")
def softmax(w: Writing) -> Plan:
    return Plan(getattr(aten, w.op).int, (w.tensor("x"), w.field("axis")))


_REDUCTIONS = {
    "reduce_mean": aten.mean.dim,
    "reduce_sum": aten.sum.dim_IntList,
    "reduce_max": aten.amax.default,
    "reduce_min": aten.amin.default,
}


@writes(*_REDUCTIONS)
def reduction(w: Writing) -> Plan:
    w.require(w.type("x").dtype != "bool", "reduction of truth values")
    return Plan(_REDUCTIONS[w.op], (w.tensor("x"), list(w.field("axes")), w.field("keepdims")))


@writes("reduce_prod")
def reduce_prod(w: Writing) -> Plan:
    axes = w.field("axes")
    w.require(len(axes) == 1, "torch multiplies along one axis")
    return Plan(aten.prod.dim_int, (w.tensor("x"), axes[0], w.field("keepdims")))


@writes("reduce_l2")
def reduce_l2(w: Writing) -> Plan:
    args = (w.tensor("x"), 2, list(w.field("axes")), w.field("keepdims"))
    return Plan(aten.linalg_vector_norm.default, args)


@writes("arg_max", "arg_min")
def arg_extreme(w: Writing) -> Plan:
    operator = aten.argmax if w.op == "arg_max" else aten.argmin
    return Plan(operator.default, (w.tensor("x"), w.field("axis"), w.field("keepdims")))


@writes("cumsum")
def cumsum(w: Writing) -> Plan:
    return Plan(aten.cumsum.default, (w.tensor("x"), w.field("axis")))


@writes("topk")
def topk(w: Writing) -> Plan:
    return Plan(aten.topk.default, (w.tensor("x"), w.field("k"), w.field("axis"), w.field("largest"), True))
