"""fuse-conv-bn on ONNX models: same results in onnxruntime, fewer nodes, and what may not be folded stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.compiler import optimize
from graphopt.passes.fuse_conv_bn import FuseConvBn

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class Chain:
    """An ONNX model in the making: nodes one behind the other, weights made up."""

    def __init__(self, *shape: int | str, seed: int = 0, dtype: str = "float32") -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shape = shape
        self.end = "x"

    def weight(self, *shape: int, positive: bool = False) -> str:
        data = self.rng.uniform(0.5, 2.0, shape) if positive else self.rng.standard_normal(shape)
        name = f"w{len(self.weights)}"
        self.weights[name] = data.astype(self.dtype)
        return name

    def then(self, op: str, *operands: str, domain: str = "", **attributes: Any) -> str:
        inputs, self.end = [self.end, *operands], f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [self.end], name=self.end, domain=domain, **attributes)
        )
        return self.end

    def batch_norm(self, channels: int, **attributes: Any) -> str:
        statistics = [self.weight(channels) for _ in range(3)]
        return self.then(
            "BatchNormalization", *statistics, self.weight(channels, positive=True), **attributes
        )

    def model(
        self, *, opset: int = 17, ir_version: int = 8, overridable: Sequence[str] = ()
    ) -> onnx.ModelProto:
        type_ = DTYPES[self.dtype]
        inputs = [helper.make_tensor_value_info("x", type_, self.shape)]
        inputs += [helper.make_tensor_value_info(n, type_, self.weights[n].shape) for n in overridable]
        outputs = [helper.make_tensor_value_info(self.end, type_, None)]
        initializers = [numpy_helper.from_array(data, name) for name, data in self.weights.items()]
        graph = helper.make_graph(self.nodes, "chain", inputs, outputs, initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def fused(
    model: onnx.ModelProto, shape: Sequence[int], fuse: FuseConvBn | None = None, **options: Any
) -> Any:
    """The optimised model and its report; both sides must agree in onnxruntime and the model must not have
    grown."""
    result = optimize(model, [fuse or FuseConvBn()], **options)
    changed = result.model
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    feeds = {"x": np.random.default_rng(3).standard_normal(shape).astype(dtype)}
    for old, new in zip(run(model, feeds), run(changed, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=64 * np.finfo(dtype).eps * np.abs(old).max())
    assert weight_bytes(changed) <= weight_bytes(model)
    return changed, result.report.passes[0]


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)


def kept(record: Any) -> list[str]:
    return [a.rule for a in record.applications if a.status == "kept"]


def refusals(record: Any, rule: str) -> str:
    return "; ".join(record.rules[rule].refused)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(bias: bool, groups: int, n: int) -> None:
    chain = Chain("batch", 4, *[7] * n)
    operands = [chain.weight(6, 4 // groups, *[3] * n), *([chain.weight(6)] if bias else [])]
    chain.then("Conv", *operands, group=groups, pads=[0] * n + [1] * n, strides=[2] * n)
    chain.batch_norm(6)
    model, record = fused(chain.model(), (2, 4, *[7] * n))
    assert kept(record) == ["conv-batch-norm"] and ops(model) == {"Conv": 1}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups: int, n: int) -> None:
    chain = Chain("batch", 4, *[5] * n)
    chain.then("ConvTranspose", chain.weight(4, 6 // groups, *[3] * n), group=groups, strides=[2] * n)
    chain.batch_norm(6)
    model, record = fused(chain.model(), (2, 4, *[5] * n))
    assert kept(record) == ["conv-batch-norm"] and ops(model) == {"ConvTranspose": 1}


def test_half_precision() -> None:
    chain = Chain("batch", 4, 7, 7, dtype="float16")
    chain.then("Conv", chain.weight(6, 4, 3, 3), chain.weight(6))
    chain.batch_norm(6)
    model, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == ["conv-batch-norm"] and ops(model) == {"Conv": 1}
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    chain = Chain("batch", 4)
    chain.then("Gemm", chain.weight(*((6, 4) if transposed else (4, 6))), chain.weight(6), transB=transposed)
    chain.batch_norm(6)
    model, record = fused(chain.model(), (3, 4))
    assert kept(record) == ["linear-batch-norm"] and ops(model) == {"Gemm": 1}


def test_product_with_a_matrix() -> None:
    chain = Chain("batch", 4)
    chain.then("MatMul", chain.weight(4, 6))
    chain.batch_norm(6)
    model, record = fused(chain.model(), (3, 4))
    assert kept(record) == ["linear-batch-norm"] and ops(model) == {"Gemm": 1}


def test_product_and_sum_per_channel() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.then("Mul", chain.weight(1, 6, 1, 1))
    chain.then("Add", chain.weight(6, 1, 1))
    model, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == ["conv-mul", "conv-add"] and ops(model) == {"Conv": 1}


def test_forward_option() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.batch_norm(4)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    untouched, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == [] and ops(untouched)["BatchNormalization"] == 1
    model, record = fused(chain.model(), (2, 4, 7, 7), FuseConvBn(forward=True))
    assert kept(record) == ["batch-norm-conv"] and ops(model) == {"Conv": 1}


def test_output_keeps_its_name() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.batch_norm(6)
    model, _ = fused(chain.model(), (2, 4, 7, 7))
    assert [o.name for o in model.graph.output] == ["v1"]


def test_the_input_model_is_not_modified() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.batch_norm(6)
    model = chain.model()
    before = model.SerializeToString()
    optimize(model, [FuseConvBn()])
    assert model.SerializeToString() == before


# ---- refusals ----------------------------------------------------------------------------------------------


def test_training_mode_is_refused() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.batch_norm(6, training_mode=1)
    chain.nodes[-1].output.extend(["running_mean", "running_var"])
    record = optimize(chain.model(), [FuseConvBn()]).report.passes[0]
    assert kept(record) == []
    assert "batch_norm is in training mode" in refusals(record, "conv-batch-norm")


@pytest.mark.parametrize("ir_version, folds", [(3, True), (4, False), (8, False)])
def test_weights_that_the_caller_may_override_are_refused(ir_version: int, folds: bool) -> None:
    """Before IR version 4 every initializer had to be listed among the inputs."""
    chain = Chain("batch", 4, 7, 7)
    weight = chain.weight(6, 4, 3, 3)
    chain.then("Conv", weight)
    chain.batch_norm(6)
    overridable = list(chain.weights) if ir_version < 4 else [weight]
    record = optimize(
        chain.model(opset=8, ir_version=ir_version, overridable=overridable), [FuseConvBn()]
    ).report
    assert kept(record.passes[0]) == (["conv-batch-norm"] if folds else [])
    if not folds:
        assert "w is not a constant" in refusals(record.passes[0], "conv-batch-norm")


def test_a_shared_weight_is_refused_so_that_the_file_does_not_grow() -> None:
    chain = Chain("batch", 4, 7, 7)
    weight = chain.weight(4, 4, 3, 3)
    chain.then("Conv", weight)
    chain.batch_norm(4)
    chain.then("Conv", weight)
    chain.batch_norm(4)
    model, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == [] and ops(model)["BatchNormalization"] == 2
    assert "the weight … is shared with …" in refusals(record, "conv-batch-norm")


def test_a_result_that_is_read_elsewhere_is_refused() -> None:
    chain = Chain("batch", 4, 7, 7)
    inner = chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.batch_norm(6)
    chain.then("Add", inner)
    _, record = fused(chain.model(), (2, 4, 7, 7))
    assert kept(record) == [] and "… has other users (…)" in refusals(record, "conv-batch-norm")


def test_a_result_that_is_an_output_is_refused() -> None:
    chain = Chain("batch", 4, 7, 7)
    inner = chain.then("Conv", chain.weight(6, 4, 3, 3))
    chain.batch_norm(6)
    model = chain.model()
    model.graph.output.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))
    _, record = fused(model, (2, 4, 7, 7))
    assert kept(record) == [] and "… is an output of the graph" in refusals(record, "conv-batch-norm")


def test_statistics_of_the_wrong_rank_are_refused() -> None:
    chain = Chain("batch", 4, 7, 7)
    chain.then("Conv", chain.weight(6, 4, 3, 3))
    statistics = [chain.weight(1, 6, 1, 1, positive=True) for _ in range(4)]
    chain.then("BatchNormalization", *statistics)
    record = optimize(chain.model(), [FuseConvBn()]).report.passes[0]
    assert kept(record) == []
    assert "scale of batch_norm has shape [1, 6, 1, 1], expected [6]" in refusals(record, "conv-batch-norm")


def test_convolutions_inside_a_branch_are_folded_too() -> None:
    inner = Chain()
    inner.then("Conv", inner.weight(6, 4, 3, 3))
    inner.batch_norm(6)
    outer = Chain("batch", 4, 7, 7)
    body = inner.model().graph
    del body.input[:]
    other = helper.make_graph(
        [helper.make_node("Conv", ["x", "k"], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(outer.rng.standard_normal((6, 4, 3, 3)).astype("f"), "k")],
    )
    node = helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=other)
    outer.nodes.append(node)
    outer.end = "out"
    outer.weights["yes"] = np.array(True)
    model, record = fused(outer.model(), (2, 4, 7, 7))
    assert kept(record) == ["conv-batch-norm"]
    assert [n.op_type for n in model.graph.node[0].attribute[0].g.node] == ["Conv"]
