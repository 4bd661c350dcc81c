"""Readers of matrix products, attention, normalisations and softmax."""

from __future__ import annotations

import math

import torch

from graphopt.ir.fx.read import Reading, Said, reads
from graphopt.ir.fx.tensors import TORCH_DTYPES


@reads("matmul", "matmul.default", "mm.default", "bmm.default", "mv.default", "dot.default")
def matmul(r: Reading) -> Said:
    operands = r.node.args[:2]
    r.keeps_dtype(*operands)
    return Said(operands)


@reads("grouped_matmul", "_grouped_mm.default")
def grouped_matmul(r: Reading) -> Said:
    x, w, ends = r["self"], r["mat2"], r["offs"]
    r.require(ends is not None and r.rank(x) == 2 and r.rank(w) == 3, "groups that are no rows")
    r.require(r["bias"] is None, "a bias")
    r.keeps_dtype(x, w)
    return Said((x, w, ends))


@reads("grouped_matmul", "transformers.grouped_mm_fallback.default")
def grouped_mm_fallback(r: Reading) -> Said:
    r.keeps_dtype(r["input"], r["weight"])
    return Said((r["input"], r["weight"], r["offs"]))


@reads("linear", "linear.default")
def linear(r: Reading) -> Said:
    r.keeps_dtype(r["input"], r["weight"], r["bias"])
    r.require(r.rank(r["weight"]) == 2, "the weight is no matrix")
    return Said((r["input"], r["weight"], r["bias"]), {"trans_w": True})


@reads("linear", "addmm.default")
def addmm(r: Reading) -> Said:
    r.keeps_dtype(r["self"], r["mat1"], r["mat2"])
    r.require(r["beta"] == 1 and r["alpha"] == 1, "alpha or beta is not 1")
    r.require(r.rank(r["self"]) == 1, "the bias is no vector")
    r.require(r.size(r["self"], 0) == r.size(r["mat2"], 1), "the bias is broadcast")
    return Said((r["mat1"], r["mat2"], r["self"]), {"trans_w": False})


@reads("einsum", "einsum.default")
def einsum(r: Reading) -> Said:
    r.keeps_dtype(*r["tensors"])
    return Said(tuple(r["tensors"]), {"equation": r["equation"].replace(" ", "")})


@reads("einsum", "outer.default")
def outer(r: Reading) -> Said:
    operands = (r["self"], r["vec2"])
    r.keeps_dtype(*operands)
    return Said(operands, {"equation": "i,j->ij"})


@reads("attention", "scaled_dot_product_attention.default")
def attention(r: Reading) -> Said:
    q, k, v, mask = r["query"], r["key"], r["value"], r["attn_mask"]
    dtype = r.keeps_dtype(q, k, v)
    r.require(all(r.rank(t) == 4 for t in (q, k, v)), "attention over other than four axes")
    r.require(r["dropout_p"] == 0, "attention with dropout")
    r.require(mask is None or r.type(mask).dtype in ("bool", dtype), "type promotion")
    scale = r.number("scale")
    scale = 1 / math.sqrt(r.size(q, 3)) if scale is None else float(scale)
    return Said((q, k, v, mask), {"scale": scale, "causal": r["is_causal"], "gqa": r["enable_gqa"]})


@reads("batch_norm", "_native_batch_norm_legit_no_training.default")
def batch_norm_inference(r: Reading) -> Said:
    operands = (r["input"], r["weight"], r["bias"], r["running_mean"], r["running_var"])
    r.keeps_dtype(*operands)
    return Said(operands, {"eps": r["eps"], "training": False})


@reads(
    "batch_norm", "batch_norm.default", "native_batch_norm.default", "_native_batch_norm_legit.default",
    "_native_batch_norm_legit_functional.default",
)  # fmt: skip
def batch_norm(r: Reading) -> Said:
    operands = (r["input"], r["weight"], r["bias"], r["running_mean"], r["running_var"])
    r.require(operands[3] is not None and operands[4] is not None, "no running statistics")
    r.keeps_dtype(*operands)
    return Said(operands, {"eps": r["eps"], "training": bool(r["training"])})


@reads("instance_norm", "instance_norm.default")
def instance_norm(r: Reading) -> Said:
    r.require(r["use_input_stats"], "normalises with running statistics")
    r.require(r["running_mean"] is None, "updates running statistics")
    operands = (r["input"], r["weight"], r["bias"])
    r.keeps_dtype(*operands)
    return Said(operands, {"eps": r["eps"]})


@reads("instance_norm", "_native_batch_norm_legit.no_stats")
def norm_of_one_sample(r: Reading) -> Said:
    """Statistics of the batch itself: with one sample, those of the sample. So convolutions standardise a weight."""
    r.require(bool(r["training"]), "no statistics")
    r.require(r.size(r["input"], 0) == 1, "statistics over several samples")
    operands = (r["input"], r["weight"], r["bias"])
    r.keeps_dtype(*operands)
    return Said(operands, {"eps": r["eps"]})


@reads("layer_norm", "layer_norm.default", "native_layer_norm.default")
def layer_norm(r: Reading) -> Said:
    operands = (r["input"], r["weight"], r["bias"])
    r.keeps_dtype(*operands)
    return Said(operands, {"axis": -len(r["normalized_shape"]), "eps": r["eps"]})


@reads("group_norm", "group_norm.default", "native_group_norm.default")
def group_norm(r: Reading) -> Said:
    x = r.node.args[0]
    operands = (x, r["weight"], r["bias"])
    r.keeps_dtype(*operands)
    groups = r.number("num_groups" if "num_groups" in r.args else "group")
    return Said(operands, {"groups": groups, "eps": r["eps"]})


@reads("rms_norm", "rms_norm.default", "_fused_rms_norm.default")
def rms_norm(r: Reading) -> Said:
    dtype = r.keeps_dtype(r["input"], r["weight"])
    eps = r["eps"]
    # torch computes in float32 for the narrow dtypes and takes the eps of what it computes in.
    eps = _default_rms_eps(dtype) if eps is None else eps
    return Said((r["input"], r["weight"]), {"axis": -len(r["normalized_shape"]), "eps": float(eps)})


def _default_rms_eps(dtype: str) -> float:
    return float(torch.finfo(TORCH_DTYPES[dtype]).eps)


@reads("softmax", "softmax.int", "_softmax.default")
@reads("log_softmax", "log_softmax.int", "_log_softmax.default")
def softmax(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    r.require(r.rank(r["self"]) > 0, "softmax of a scalar")
    return Said((r["self"],), {"axis": r.axis("dim", r.rank(r["self"]))})
