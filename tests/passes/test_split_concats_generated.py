"""split-concats on graphs generated from its rule's own pattern: every alternative, any number of parts, any window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conv_graphs import Layers, fuse, kept
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

import graphopt
from graphopt.errors import UnsupportedError
from graphopt.ir.convert import from_scratch
from graphopt.ir.weights import ArrayRef
from graphopt.passes.split_concats import ConvOfConcat
from graphopt.rewrite.pattern import AnyOf, OpPattern
from graphopt.verify.execute import evaluate

ALTERNATIVES = ConvOfConcat.roots[0].operands[0]
SMALL = st.sampled_from([0.125, 0.25, 0.5])
FIELDS: dict[str, Any] = {
    "approximate": st.sampled_from(["none", "tanh"]), "slope": SMALL, "alpha": SMALL, "beta": SMALL,
    "threshold": st.none(),
}  # fmt: skip
POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal")
"""Activations that are not finite everywhere."""


@st.composite
def joined(draw: st.DrawFn) -> Layers:
    """conv(f(concat(...))), in which the rule has to apply exactly once."""
    assert isinstance(ALTERNATIVES, AnyOf)
    spatial = draw(st.lists(st.integers(5, 7), min_size=1, max_size=3))
    channels = draw(st.sampled_from([1, 2, 4]))
    layers = Layers((draw(st.integers(2, 3)), channels, *spatial), draw(st.integers(0, 99)))
    _emit(draw, layers, draw(st.sampled_from(ALTERNATIVES.alternatives)))
    into = layers.shape[1]
    n, p = len(spatial), draw(st.integers(0, 1))
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    size = [(s + 2 * p - dilation * (kernel - 1) - 1) // stride + 1 for s in spatial]
    out = draw(st.integers(1, 3))
    fields: dict[str, Any] = {"stride": (stride,) * n, "pads": (p,) * 2 * n, "dilation": (dilation,) * n, "groups": 1}
    bias = layers.ref(out) if draw(st.booleans()) else None
    shape = (layers.shape[0], out, *size)
    layers.then("conv", layers.ref(out, into, *[kernel] * n), bias, shape=shape, **fields)
    return layers.done()


def _emit(draw: st.DrawFn, layers: Layers, pattern: Any, positive: bool = False) -> None:
    assert isinstance(pattern, OpPattern)
    if positive:
        layers.then("sigmoid")
    if pattern.op == "concat":
        _parts(draw, layers)
        return
    _emit(draw, layers, pattern.operands[0], pattern.op in POSITIVE)
    if pattern.op == "group_norm":
        size = draw(st.sampled_from([s for s in (1, 2, 4) if layers.part % s == 0]))
        affine = [layers.ref(layers.shape[1]) if draw(st.booleans()) else None for _ in range(2)]
        if positive:  # What is standardised is not below -4 for the sizes here.
            width = layers.shape[1]
            affine = [ArrayRef(np.full(width, v, np.float32)) for v in (0.1, 1)]
        layers.then("group_norm", *affine, groups=layers.shape[1] // size, eps=1e-3)
    elif pattern.op == "mul":
        layers.then("mul", layers.append("sigmoid", layers.end, types=[layers.type(layers.end)]))
    else:
        layers.then(pattern.op, **{f: draw(FIELDS[f]) for f in pattern.fields})


def _parts(draw: st.DrawFn, layers: Layers) -> None:
    """Two to four values, the same one again among them."""
    layers.part = layers.shape[1]
    x = layers.end
    other = layers.append("exp", x, types=[layers.type(x)])
    parts = [x, *draw(st.lists(st.sampled_from([x, other]), min_size=1, max_size=3))]
    shape = (layers.shape[0], len(parts) * layers.part, *layers.shape[2:])
    layers.then("concat", *parts[1:], shape=shape, axis=draw(st.sampled_from([1, -len(shape) + 1])))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(joined())
def test_it_applies_once_and_keeps_the_meaning(layers: Layers) -> None:
    ledger = fuse(layers, [ConvOfConcat])
    assert kept(ledger) == ["conv-of-concat"], ledger.applications


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(layers=joined())
def test_what_both_storages_run_is_right_and_no_weight_is_stored_twice(layers: Layers, storage: str) -> None:
    try:
        model = from_scratch(layers, storage)
    except UnsupportedError:
        reject()
    if len(list(model.main.nodes())) > len(layers.ops):  # Some op is several of this storage.
        reject()
    x = np.random.default_rng(3).standard_normal(layers.inputs()[0].type.shape).astype(np.float32)
    (wanted,) = evaluate(layers, [x.astype(np.float64)])
    stored = elements(model.export())
    result = graphopt.optimize(model, "split-concats")
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    assert elements(result.model) <= stored
    got = result.model(torch.from_numpy(x)) if storage == "fx" else result.lower("onnxruntime")(x)
    got = np.asarray(got[0] if isinstance(got, tuple | list) else got)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


def elements(model: Any) -> int:
    """How many floats a model stores."""
    if isinstance(model, torch.nn.Module):
        return sum(t.numel() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    return sum(int(np.prod(v.shape)) for v in model.graph.initializers.values() if v.dtype.is_floating_point())
