"""Random graphs of slices, gathers by constant numbers, sums and concatenations: masked equals sliced on every axis."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import torch
from masked import masked
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import free_axes
from graphopt.rewrite.journal import Journal

EXACT = 1e-10


class Picks:
    """y[2, 3] = sum over what is picked of products of x[2, 4], so that nothing is left unread."""

    def __init__(self, seed: int) -> None:
        self.r, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.arrays: dict[str, Any] = {}
        self.lines: list[str] = []
        self.shared: dict[int, str] = {}
        """Numbers for a width, which several gathers may read."""
        width = self.r.choice((6, 8, 12))
        self.values = [(self.line(f"MatMul(x, {self.weight(4, width)})"), width) for _ in range(2)]
        for _ in range(self.r.randint(2, 4)):
            self.values.append(self.step(*self.r.choice(self.values)))
        ends = [self.line(f"MatMul({value}, {self.weight(size, 3)})") for value, size in self.values]
        self.lines.append(f"y = Sum({', '.join(ends)})")

    def line(self, text: str) -> str:
        self.lines.append(f"v{len(self.lines)} = {text}")
        return f"v{len(self.lines) - 1}"

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32))

    def constant(self, array: Any) -> str:
        self.arrays[f"c{len(self.arrays)}"] = array
        return f"c{len(self.arrays) - 1}"

    def step(self, value: str, size: int) -> tuple[str, int]:
        kind = self.r.choice(("gather", "gather", "slice", "concat", "add", "tanh"))
        if kind == "gather":
            if size not in self.shared or self.r.random() < 0.5:
                self.shared[size] = self.constant(self.numbers(size))
            numbers = self.shared[size]
            return self.line(f"Gather<axis={self.r.choice((1, -1))}>({value}, {numbers})"), len(self.arrays[numbers])
        if kind == "slice":
            step, start = self.r.choice((1, 1, 2, 3, 4, -1)), self.r.randint(0, size - 1)
            end = self.r.randint(start + 1, size) if step > 0 else -100
            given = (self.constant(np.array([n])) for n in (start, end, 1, step))
            return self.line(f"Slice({value}, {', '.join(given)})"), len(range(start, max(end, -1), step))
        if kind == "tanh":
            return self.line(f"Tanh({value})"), size
        other, width = self.r.choice([v for v in self.values if kind == "concat" or v[1] == size])
        if kind == "add":
            return self.line(f"Add({value}, {other})"), size
        return self.line(f"Concat<axis=1>({value}, {other})"), size + width

    def numbers(self, size: int) -> Any:
        """In digits, repeated, overlapping, backwards or any, some counted from behind."""
        rows = 2 if size % 2 == 0 else 1
        found = self.r.choice((
            np.arange(size), np.arange(size)[::-1], self.rng.permutation(size), np.arange(1 % size, size, 2),
            np.repeat(np.arange(size), 2), np.tile(np.arange(size), 2), np.arange(size).reshape(rows, -1).T.reshape(-1),
            self.rng.integers(0, size, 5), np.concatenate([np.arange(size // 2 + 1), np.arange(size // 2, size)]),
        ))  # fmt: skip
        return np.where(self.rng.random(found.shape) < 0.3, found - size, found)

    def model(self) -> onnx.ModelProto:
        text = f"g (float[2, 4] x) => (float[2, 3] y) {{ {' '.join(self.lines)} }}"
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
        model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.arrays.items())
        return model


def weights(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    return {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in floats}


def in_float64(model: onnx.ModelProto, given: dict[str, torch.Tensor], x: Any) -> Any:
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for i in wide.graph.initializer:
        if i.name in given:
            i.CopyFrom(numpy_helper.from_array(given[i.name].double().numpy(), i.name))
    del wide.graph.value_info[:]
    for value, shape in ((wide.graph.input[0], (2, 4)), (wide.graph.output[0], (2, 3))):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.DOUBLE, shape))
    return ReferenceEvaluator(wide).run(None, {"x": x})[0]


def test_what_is_picked_is_sliced_as_it_is_masked() -> None:
    compared = seen = 0
    for seed in range(40):
        picks = Picks(seed)
        original = picks.model()
        model, x = graphopt.load(original), np.random.default_rng(seed).standard_normal((2, 4))
        axes = Axes(model.main)
        for axis in free_axes(axes):
            keep = np.zeros(axis.size, bool)
            keep[picks.r.sample(range(axis.size), picks.r.randint(1, axis.size - 1) if axis.size > 1 else 1)] = True
            shorten_checked(axes, axis, keep, Journal(model.main))
            after = model.export()
            zeros = masked(weights(original), weights(after))
            expected, got = in_float64(original, zeros, x), in_float64(after, weights(after), x)
            assert np.abs(expected - got).max() <= EXACT * np.abs(expected).max(), (seed, axis)
            assert onnxruntime.InferenceSession(after.SerializeToString()).run(None, {"x": x.astype(np.float32)})
            shape = {name: w.shape for name, w in weights(after).items()}
            wrong = next(name for name, w in zeros.items() if w.shape != shape[name])
            other = in_float64(original, zeros | {wrong: zeros[wrong].roll(1, 1)}, x)
            compared, seen = compared + 1, seen + (np.abs(other - got).max() > 1e-6)
    assert seen > 0.8 * compared > 20
