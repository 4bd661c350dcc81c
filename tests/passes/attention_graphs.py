"""Attention in all the ways that exporters spell it, as scratch graphs: what the tests of fuse-attention rewrite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.compiler import optimize
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.model import Model
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import as_ref
from graphopt.passes.fuse_attention import FuseAttention
from graphopt.pipeline.report import Report
from graphopt.verify.execute import model_runner

SCALES = ("none", "q", "k", "both", "scores", "q_over", "scores_over")
SPLIT = (0, 2, 1, 3)


@dataclass
class Spelling:
    """One attention: what is computed, and how it is written."""

    layout: str = "tokens"
    """"tokens" [batch, positions, heads * features], "heads" [batch, heads, positions, features], "batch" without
    heads, "channels" [batch, features, positions], "einsum" [batch, positions, heads, features]."""
    scale: str = "scores"
    mask: tuple[Any, ...] | None = None
    batch: Any = 2
    heads: int = 3
    queries: Any = 5
    keys: Any = 7
    features: int = 4
    values: int = 6
    dtype: str = "float32"
    factor: Any = 0.3
    detour: bool = False
    """Whether the keys are transposed with batch and heads joined."""
    axis: int = -1
    read: str = ""
    """What else is an output: "product" or "weights"."""

    def graph(self) -> ScratchGraph:
        return _Writer(self).graph

    def model(self, storage: str = "onnx", opset: int = 18) -> Model:
        return from_scratch(self.graph(), storage, opset=opset)


class _Writer:
    def __init__(self, spelling: Spelling) -> None:
        self.s = spelling
        self.graph = ScratchGraph()
        q, k, v = (self.operand(side) for side in "qkv")
        mask = None if spelling.mask is None else self.input(*spelling.mask, name="mask")
        out = self.joined(self.core(q, k, v, mask))
        out.type = TensorType(spelling.dtype, self.out_shape())
        self.graph.add_output(out)

    def out_shape(self) -> tuple[Any, ...]:
        s = self.s
        return {
            "tokens": (s.batch, s.queries, s.heads * s.values),
            "heads": (s.batch, s.heads, s.queries, s.values),
            "batch": (s.batch, s.queries, s.values),
            "channels": (s.batch, s.values, s.queries),
            "einsum": (s.batch, s.queries, s.heads, s.values),
        }[s.layout]

    def input(self, *shape: Any, name: str) -> Any:
        return self.graph.add_input(TensorType(self.s.dtype, shape), name)

    def add(self, op: str, *operands: Any, **fields: Any) -> Any:
        return self.graph.append(op, *operands, types=[TensorType(self.s.dtype, None)], **fields)

    def reshape(self, x: Any, *shape: Any) -> Any:
        """A reshape to `shape`; a size that is no number is copied from the same place of `x`."""
        if all(isinstance(d, int) for d in shape):
            return self.add("reshape", x, shape=shape)
        target = np.array([d if isinstance(d, int) else 0 for d in shape])
        return self.add("reshape", x, as_ref(target, "int64"))

    def times(self, x: Any, where: str) -> Any:
        """`x` with the part of the scale that belongs `where`."""
        factor = as_ref(self.s.factor, self.s.dtype)
        if self.s.scale == f"{where}_over":
            return self.add("div", x, factor)
        places = ("q", "k") if self.s.scale == "both" else (self.s.scale,)
        return self.add("mul", x, factor) if where in places else x

    def operand(self, side: str) -> Any:
        s = self.s
        width = s.values if side == "v" else s.features
        positions = s.queries if side == "q" else s.keys
        if s.layout == "tokens":
            x = self.input(s.batch, positions, s.heads * width, name=side)
            return self.add("transpose", self.reshape(x, s.batch, positions, s.heads, width), perm=SPLIT)
        shapes = {
            "heads": (s.batch, s.heads, positions, width),
            "batch": (s.batch, positions, width),
            "channels": (s.batch, width, positions),
            "einsum": (s.batch, positions, s.heads, width),
        }
        return self.input(*shapes[s.layout], name=side)

    def turned(self, k: Any) -> Any:
        """Keys with their features in front of their positions."""
        s = self.s
        if not s.detour:
            rank = 3 if s.layout == "batch" else 4
            return self.add("transpose", k, perm=(*range(rank - 2), rank - 1, rank - 2))
        flat = self.add("reshape", k, shape=(s.batch * s.heads, s.keys, s.features))
        turned = self.add("transpose", flat, perm=(0, 2, 1))
        return self.add("reshape", turned, shape=(s.batch, s.heads, s.features, s.keys))

    def core(self, q: Any, k: Any, v: Any, mask: Any) -> Any:
        s = self.s
        equations = {"channels": ("bct,bcs->bts", "bts,bcs->bct"), "einsum": ("bihd,bjhd->bhij", "bhij,bjhd->bihd")}
        if s.layout in equations:
            product = self.add("einsum", self.times(q, "q"), self.times(k, "k"), equation=equations[s.layout][0])
        else:
            product = self.add("matmul", self.times(q, "q"), self.times(self.turned(k), "k"))
        scores = self.times(product, "scores")
        if mask is not None:
            scores = self.add("add", scores, mask)
        rank = 3 if s.layout in ("batch", "channels") else 4
        weights = self.add("softmax", scores, axis=s.axis % rank)
        for name, value in (("product", product), ("weights", weights)):
            if s.read == name:
                self.graph.add_output(value)
        if s.layout in equations:
            return self.add("einsum", weights, v, equation=equations[s.layout][1])
        return self.add("matmul", weights, v)

    def joined(self, out: Any) -> Any:
        s = self.s
        if s.layout != "tokens":
            return out
        return self.reshape(self.add("transpose", out, perm=SPLIT), s.batch, s.queries, s.heads * s.values)


def ops(model: Model) -> list[str]:
    """Names of the ops of the main graph, those that only move elements left out."""
    moves = {"reshape", "transpose", "expand", "unsqueeze", "squeeze"}
    return [model.main.key(node) for node in model.main.nodes() if model.main.key(node) not in moves]


def moves(model: Model) -> int:
    """How many ops of the main graph transpose."""
    return sum(model.main.key(node) == "transpose" for node in model.main.nodes())


def fused(model: Model, target: str | None = "onnxruntime", **options: Any) -> tuple[Model, Report]:
    """The model after fuse-attention, and what the pass did."""
    result = optimize(model, [FuseAttention(**options)], target=target)
    return result._model, result.report


def applied(report: Report) -> list[str]:
    """Rules that were kept, without those that prepare."""
    prepare = ("transpose-twice", "keys-transposed-flat", "known-reshape-target", "known-shape-value")
    assert not [a for a in report.applications if a.status == "undone"], report.applications
    return [a.rule for a in report.applications if a.rule not in prepare]


def inputs(model: Model, sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.main.inputs():
        type_ = model.main.type(value)
        shape = [d if isinstance(d, int) else (sizes or {})[d] for d in type_.shape]
        feeds[model.main.name(value)] = rng.standard_normal(shape).astype(type_.dtype)
    return feeds


def run(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The model on its own runtime, without that runtime's optimisations."""
    return model_runner(model)(list(feeds.values()))


def distance(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    """Largest difference relative to the largest element; infinite if NaN stand elsewhere."""
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return float("inf")
        finite = np.isfinite(a)
        worst = max(worst, float(np.abs(a - b)[finite].max(initial=0.0)) / float(np.abs(a[finite]).max(initial=1e-30)))
    return worst
