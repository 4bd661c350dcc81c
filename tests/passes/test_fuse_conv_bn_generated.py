"""Every rule of fuse-conv-bn on graphs generated from its own pattern, on all three storages."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conv_graphs import Layers, fuse
from generated_layers import TorchLayers, layers, to_onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.compiler import optimize
from graphopt.passes.conv_activation import ACTIVATION_RULES
from graphopt.passes.fuse_conv_bn import BatchNormConv, FuseConvBn
from graphopt.rewrite.rule import Rule

FOLDS = [r for r in FuseConvBn(forward=True, epilogue=False).rules()]
RULES = [*FOLDS, *ACTIVATION_RULES]
FEW = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOME = settings(FEW, max_examples=10)
MANY = settings(FEW, max_examples=30)


def generated(data: Any, rule: Rule, **options: Any) -> Layers:
    return data.draw(layers(rule, pads=rule is not BatchNormConv, **options))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@MANY
@given(data=st.data())
def test_on_scratch_graphs(rule: Rule, data: Any) -> None:
    graph = generated(data, rule)
    ledger = fuse(graph, [rule])
    (application,) = ledger.applications
    assert (application.rule, application.status) == (rule.name, "kept"), application.reason
    assert len(graph.ops) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@SOME
@given(data=st.data())
def test_on_onnx_models(rule: Rule, data: Any) -> None:
    model = to_onnx(generated(data, rule, affine=True))
    result = optimize(model, [FuseConvBn(forward=True)], target="onnxruntime")
    (application,) = result.report.passes[0].applications
    assert (application.rule, application.status) == (rule.name, "kept"), application.reason
    assert len(result.model.graph.node) == 1
    assert_close(*(run(m, model.graph.input[0]) for m in (model, result.model)))


@pytest.mark.parametrize("rule", FOLDS, ids=lambda r: r.name)
@FEW
@given(data=st.data())
def test_on_torch_modules(rule: Rule, data: Any) -> None:
    graph = generated(data, rule, symmetric=True)
    module = TorchLayers(graph).eval()
    (source,) = graph.inputs()
    x = torch.from_numpy(np.random.default_rng(1).standard_normal(source.type.shape).astype(np.float32))
    result = optimize(module, [FuseConvBn(forward=True)], example_inputs=(x,))
    (application,) = result.report.passes[0].applications
    assert (application.rule, application.status) == (rule.name, "kept"), application.reason
    with torch.no_grad():
        assert_close(module(x).numpy(), result.model(x).numpy())


def run(model: Any, source: Any) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    shape = [d.dim_value for d in source.type.tensor_type.shape.dim]
    return session.run(
        None, {source.name: np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    )[0]


def assert_close(before: np.ndarray, after: np.ndarray) -> None:
    np.testing.assert_allclose(after, before, rtol=0, atol=2.0**-16 * max(np.abs(before).max(), 1.0))
