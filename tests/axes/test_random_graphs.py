"""Every free axis of random graphs can be shortened, and masked equals sliced: by torch alone, in float64."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masked import error, masked, tensors
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from random_modules import RandomModule, random_module

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import FreeAxis, free_axes
from graphopt.errors import UnsupportedError
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
from graphopt.ir.transcribe import transcribe
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.journal import Journal

EXACT = 1e-10
SEEDS = st.integers(0, 10**6)


def grown(seed: int) -> tuple[RandomModule, tuple[torch.Tensor, ...], random.Random]:
    chance = random.Random(seed)
    module, inputs = random_module(lambda options: chance.choice(list(options)), chance.randint(2, 10), seed)
    return module, inputs, chance


def shuffled(axes: Axes, chance: random.Random) -> list[FreeAxis]:
    """The exact ones first: what comes after a coupled one cannot be compared by zeroing."""
    found = free_axes(axes)
    chance.shuffle(found)
    return sorted(found, key=lambda axis: not axis.exact)


def is_shortened(model: Model, axes: Axes, axis: FreeAxis, chance: random.Random) -> bool:
    """Shorten to some of the indices. Refused may be nothing but what makes no difference, and then nothing changed."""
    keep = np.zeros(axis.size, bool)
    keep[chance.sample(range(axis.size), chance.randint(1, axis.size - 1))] = True
    before = model.main.fingerprint()
    try:
        shorten_checked(axes, axis, keep, Journal(model.main))
    except Rejected as refusal:
        assert "would not be seen" in str(refusal)
        assert model.main.fingerprint() == before
        return False
    return True


def largest(expected: Any, got: Any) -> float:
    return max((error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def check_torch(seed: int, seen: Counter[str]) -> None:
    """Shorten all free axes of one random module one after the other."""
    module, inputs, chance = grown(seed)
    before = {name: weight.clone() for name, weight in tensors(module).items()}
    original = module(*inputs)
    model = graphopt.load(module, example_inputs=inputs)
    axes = Axes(model.main)
    exact = True
    for axis in shuffled(axes, chance):
        if not is_shortened(model, axes, axis, chance):
            continue
        exact = exact and axis.exact
        shortened = model.export()
        got = shortened(*inputs)
        assert [g.shape for g in got] == [o.shape for o in original]
        seen["shortened"] += 1
        if exact:
            after = tensors(shortened)
            expected = torch.func.functional_call(module, masked(before, after), inputs)
            assert largest(expected, got) < EXACT, axis
            wrong = next(name for name in before if name in after and after[name].shape != before[name].shape)
            other = torch.func.functional_call(module, masked(before, after, shifted=wrong), inputs)
            seen["compared"] += 1
            seen["shifted differs"] += largest(expected, other) > 1e-6
    model.refresh()
    free_axes(Axes(model.main))
    assert all(torch.equal(before[name], weight) for name, weight in tensors(module).items())


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SEEDS)
def test_masked_equals_sliced_in_torch(seed: int) -> None:
    check_torch(seed, Counter())


def test_most_shifted_slices_would_be_seen() -> None:
    seen: Counter[str] = Counter()
    for seed in range(12):
        check_torch(seed, seen)
    assert seen["shifted differs"] > 0.8 * seen["compared"] > 5


# ---- ONNX ------------------------------------------------------------------------------------------------------------


def as_onnx(module: RandomModule, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto | None:
    """The module in ONNX and float32, for which there are kernels; None if the vocabulary cannot say it."""
    graph = graphopt.load(module.float(), example_inputs=tuple(i.float() for i in inputs)).main
    try:
        scratch, _ = transcribe(graph, list(graph.nodes()), graph.inputs(), graph.outputs())
        return onnx_ir.to_proto(from_scratch(scratch, "onnx", opset=23).export())
    except (CannotEmit, UnsupportedError):
        return None


def stored(proto: onnx.ModelProto) -> dict[str, torch.Tensor]:
    arrays = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    return {name: torch.from_numpy(a.copy()) for name, a in arrays.items() if a.dtype == np.float32}


def reference(proto: onnx.ModelProto, weights: dict[str, torch.Tensor], inputs: Any) -> list[torch.Tensor]:
    """`proto` with these weights, by the reference implementation in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    graph = wide.graph
    for i in graph.initializer:
        if i.name in weights:
            i.CopyFrom(numpy_helper.from_array(weights[i.name].double().numpy(), i.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    feeds = {i.name: x.double().numpy() for i, x in zip(graph.input, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(y)) for y in ReferenceEvaluator(wide).run(None, feeds)]


def check_onnx(seed: int) -> int:
    """The same in ONNX; returns how many axes were compared."""
    module, inputs, chance = grown(seed)
    proto = as_onnx(module, inputs)
    if proto is None:
        return 0
    unchanged = proto.SerializeToString()
    model = graphopt.load(proto)
    axes = Axes(model.main)
    compared, exact = 0, True
    for axis in shuffled(axes, chance):
        if not is_shortened(model, axes, axis, chance):
            continue
        exact = exact and axis.exact
        shortened = model.export()
        onnx.checker.check_model(shortened, full_check=True)
        session = onnxruntime.InferenceSession(shortened.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {i.name: x.float().numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        assert [y.shape for y in session.run(None, feeds)] == [tuple(y.shape) for y in module.double()(*inputs)]
        if exact:
            after = stored(shortened)
            expected = reference(proto, masked(stored(proto), after), inputs)
            assert largest(expected, reference(shortened, after, inputs)) < EXACT, axis
            compared += 1
    assert proto.SerializeToString() == unchanged
    return compared


def test_masked_equals_sliced_in_onnx() -> None:
    # Seed 39 subtracts the sum of a softmax from itself: zero but for rounding, of which no relative error is small.
    assert sum(check_onnx(seed) for seed in range(60) if seed != 39) > 8
