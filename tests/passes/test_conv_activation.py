"""Activations as the epilogue of a convolution: only for a target that has the op, and only what it can
say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from test_fuse_conv_bn_onnx import Chain, fused, kept, ops, refusals, run

from graphopt.compiler import optimize
from graphopt.errors import PipelineError
from graphopt.passes.conv_activation import FUSED_CONV
from graphopt.passes.fuse_conv_bn import FuseConvBn

ACTIVATIONS: list[tuple[str, str, dict[str, float], list[float]]] = [
    ("Relu", "Relu", {}, []),
    ("Sigmoid", "Sigmoid", {}, []),
    ("Tanh", "Tanh", {}, []),
    ("LeakyRelu", "LeakyRelu", {"alpha": 0.25}, [0.25]),
    ("HardSigmoid", "HardSigmoid", {"alpha": 0.25, "beta": 0.5}, [0.25, 0.5]),
]


def conv_chain(n: int = 2, **options: Any) -> Chain:
    chain = Chain("batch", 4, *[7] * n, **options)
    chain.then("Conv", chain.weight(6, 4, *[3] * n), chain.weight(6), pads=[0] * n + [1] * n, strides=[2] * n)
    return chain


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("activation, name, fields, parameters", ACTIVATIONS, ids=[a[0] for a in ACTIVATIONS])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_activation_becomes_the_epilogue(
    n: int, activation: str, name: str, fields: dict[str, float], parameters: list[float]
) -> None:
    chain = conv_chain(n)
    chain.batch_norm(6)
    chain.then(activation, **fields)
    model, record = fused(chain.model(), (2, 4, *[7] * n), target="onnxruntime")
    assert kept(record)[0] == "conv-batch-norm" and len(kept(record)) == 2
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("com.microsoft", "FusedConv")
    said = attributes(node)
    assert said["activation"] == name.encode() and list(said.get("activation_params", [])) == parameters
    assert said["strides"] == [2] * n and said["pads"] == [0] * n + [1] * n


@pytest.mark.parametrize("low, high", [(0.0, 6.0), (None, 6.0), (-1.0, None)])
def test_a_clamp_with_constant_bounds_becomes_the_epilogue(low: float | None, high: float | None) -> None:
    chain = conv_chain()
    bounds = []
    for bound, name in ((low, "low"), (high, "high")):
        bounds.append("" if bound is None else name)
        if bound is not None:
            chain.weights[name] = np.array(bound, np.float32)
    chain.then("Clip", *bounds)
    model, record = fused(chain.model(), (2, 4, 7, 7), target="onnxruntime")
    assert kept(record) == ["conv-clamp"]
    largest = float(np.finfo(np.float32).max)
    wanted = [-largest if low is None else low, largest if high is None else high]
    assert attributes(model.graph.node[0])["activation_params"] == wanted


@pytest.mark.parametrize("bounds", [("", "high"), ("high",), ()])
def test_infinities_become_the_largest_numbers_where_a_bound_is_absent_as_clip_has_it(bounds: tuple[str, ...]) -> None:
    chain = Chain(1, 1, 2, 4)
    chain.then("Conv", chain.weight(1, 1, 1, 1))
    chain.weights["high"] = np.array(3, np.float32)
    chain.then("Clip", *bounds)
    model, record = fused(chain.model(), (1, 1, 2, 4), target="onnxruntime")
    assert kept(record) == ["conv-clamp"]
    x = np.array([[[[np.inf, -np.inf, np.nan, 1], [-1, 0, -np.inf, np.inf]]]], np.float32)
    np.testing.assert_array_equal(run(model, {"x": x}), run(chain.model(), {"x": x}))


def test_without_a_target_only_standard_ops_are_written() -> None:
    chain = conv_chain()
    chain.then("Relu")
    model, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == [] and ops(model) == {"Conv": 1, "Relu": 1}


def test_the_epilogue_can_be_switched_off() -> None:
    chain = conv_chain()
    chain.then("Relu")
    _, record = fused(chain.model(), (2, 4, 7, 7), FuseConvBn(epilogue=False), target="onnxruntime")
    assert kept(record) == []


def test_demanding_the_epilogue_without_a_target_that_has_it_is_an_error() -> None:
    with pytest.raises(PipelineError, match=f"needs a target with {FUSED_CONV}, and the target is None"):
        optimize(conv_chain().model(), [FuseConvBn(epilogue=True)])


@pytest.mark.parametrize("activation", ["Elu", "Softplus", "Mish", "HardSwish"])
def test_activations_that_the_kernel_lacks_stay(activation: str) -> None:
    chain = conv_chain()
    chain.then(activation)
    model, record = fused(chain.model(opset=18), (2, 4, 7, 7), target="onnxruntime")
    assert kept(record) == [] and ops(model)[activation] == 1


def test_half_precision_is_refused() -> None:
    chain = conv_chain(dtype="float16")
    chain.then("Relu")
    _, record = fused(chain.model(), (2, 4, 7, 7), target="onnxruntime")
    assert kept(record) == []
    assert "FusedConv is for float32, not float16" in refusals(record, "conv-relu")


def test_a_result_that_is_read_elsewhere_is_refused() -> None:
    chain = conv_chain()
    inner = chain.end
    chain.then("Relu")
    chain.then("Add", inner)
    _, record = fused(chain.model(), (2, 4, 7, 7), target="onnxruntime")
    assert kept(record) == [] and "… has other users (…)" in refusals(record, "conv-relu")


def test_a_bound_that_is_computed_is_refused() -> None:
    chain = conv_chain()
    chain.nodes.append(helper.make_node("ReduceMax", ["x"], ["high"], keepdims=0))
    chain.then("Clip", "", "high")
    _, record = fused(chain.model(), (2, 4, 7, 7), target="onnxruntime")
    assert kept(record) == [] and "high is not a constant" in refusals(record, "conv-clamp")


def test_options_in_a_pipeline_string() -> None:
    chain = conv_chain()
    chain.then("Relu")
    result = optimize(chain.model(), "fuse-conv-bn{epilogue=false forward=true}", target="onnxruntime")
    assert result.report.passes[0].text == "fuse-conv-bn{forward=true epilogue=false}"
    assert kept(result.report.passes[0]) == []
