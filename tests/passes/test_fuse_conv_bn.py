"""fuse-conv-bn on scratch graphs: every rule once, and every refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conv_graphs import Layers, assert_refused, fuse, kept, reasons

from graphopt.ir.graph import TensorType
from graphopt.ir.weights import ArrayRef
from graphopt.passes.fuse_conv_bn import FuseConvBn

BACKWARD = FuseConvBn(epilogue=False).rules()
FORWARD = FuseConvBn(forward=True, epilogue=False).rules()
IMAGE = (2, 4, 6, 6)


@pytest.mark.parametrize("spatial", [(9,), (6, 5), (4, 5, 4)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_batch_norm_behind_a_convolution_is_folded(
    op: str, affine: bool, bias: bool, groups: int, spatial: tuple[int, ...]
) -> None:
    graph = Layers((2, 4, *spatial))
    getattr(graph, op)(6, groups=groups, bias=bias)
    graph.batch_norm(affine=affine)
    ledger = fuse(graph.done(), BACKWARD)
    assert kept(ledger) == ["conv-batch-norm"]
    assert graph.ops == [op]
    (application,) = ledger.applications
    assert application.evidence.twin is not None and application.evidence.twin < 1e-13


def test_asymmetric_padding_and_other_fields_are_kept() -> None:
    graph = Layers((1, 4, 9, 9))
    fields = {"stride": (2, 1), "pads": (0, 1, 2, 1), "dilation": (1, 2), "groups": 2}
    graph.then("conv", graph.ref(6, 2, 3, 3), shape=(1, 6, 5, 7), **fields)
    graph.batch_norm()
    assert kept(fuse(graph.done(), BACKWARD)) == ["conv-batch-norm"]
    (node,) = graph.nodes()
    assert {k: node.call.fields[k] for k in fields} == fields


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), (), (1, 1)])
@pytest.mark.parametrize("op", ["mul", "add"])
@pytest.mark.parametrize("conv", ["conv", "conv_transpose"])
def test_products_and_sums_with_a_number_per_channel_are_folded(
    conv: str, op: str, shape: tuple[int, ...]
) -> None:
    graph = Layers(IMAGE)
    getattr(graph, conv)(6, groups=2, bias=False)
    graph.then(op, graph.ref(*shape))
    assert kept(fuse(graph.done(), BACKWARD)) == [f"conv-{op}"]
    assert graph.ops == [conv]


def test_a_batch_norm_spelt_as_product_and_sum_is_folded_whole() -> None:
    graph = Layers(IMAGE)
    graph.conv(6)
    graph.then("mul", graph.ref(6, 1, 1))
    graph.then("add", graph.ref(6, 1, 1))
    graph.batch_norm()
    assert kept(fuse(graph.done(), BACKWARD)) == ["conv-mul", "conv-add", "conv-batch-norm"]
    assert graph.ops == ["conv"]


def test_a_sum_leaves_the_weight_itself_in_place() -> None:
    graph = Layers(IMAGE)
    weight = graph.ref(6, 4, 3, 3)
    graph.conv(6, weight=weight)
    graph.then("add", graph.ref(6, 1, 1))
    fuse(graph.done(), BACKWARD)
    (node,) = graph.nodes()
    assert graph.constant(node.call.operands[1]) is weight


@pytest.mark.parametrize("shape", [(6,), (2, 1, 1, 1), (6, 6), (6, 6, 6), (1, 1, 6, 1, 1)])
@pytest.mark.parametrize("op", ["mul", "add"])
def test_constants_along_other_axes_are_refused(op: str, shape: tuple[int, ...]) -> None:
    graph = Layers(IMAGE)
    graph.conv(6)
    result = np.broadcast_shapes(graph.shape, shape)
    graph.then(op, graph.ref(*shape), shape=result)
    ledger = fuse(graph.done(), BACKWARD)
    assert kept(ledger) == []
    assert "is not one number for each of 6 channels" in reasons(ledger, f"conv-{op}")


def test_a_constant_with_more_channels_than_the_convolution_is_refused() -> None:
    graph = Layers(IMAGE)
    graph.conv(1)
    graph.then("add", graph.ref(8, 1, 1), shape=(2, 8, 6, 6))
    ledger = fuse(graph.done(), BACKWARD)
    assert kept(ledger) == [] and "for each of 1 channels" in reasons(ledger, "conv-add")


@pytest.mark.parametrize("trans_w", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_behind_a_linear_layer_is_folded(affine: bool, bias: bool, trans_w: bool) -> None:
    graph = Layers((3, 4))
    graph.linear(5, bias=bias, trans_w=trans_w)
    graph.batch_norm(affine=affine)
    assert kept(fuse(graph.done(), BACKWARD)) == ["linear-batch-norm"]
    assert graph.ops == ["linear"]


def test_batch_norm_behind_a_product_with_a_matrix_is_folded() -> None:
    graph = Layers((3, 4))
    graph.then("matmul", graph.ref(4, 5), shape=(3, 5))
    graph.batch_norm()
    assert kept(fuse(graph.done(), BACKWARD)) == ["linear-batch-norm"]
    assert graph.ops == ["linear"]


@pytest.mark.parametrize("op", ["linear", "matmul"])
def test_batch_norm_on_another_axis_than_the_features_is_refused(op: str) -> None:
    graph = Layers((3, 5, 5))
    if op == "linear":
        graph.linear(5)
    else:
        graph.then("matmul", graph.ref(5, 5))
    graph.batch_norm()
    ledger = fuse(graph.done(), BACKWARD)
    assert kept(ledger) == []
    assert "features of a linear layer in 3 dimensions are its last axis" in reasons(
        ledger, "linear-batch-norm"
    )


@pytest.mark.parametrize("spatial", [(9,), (6, 5), (4, 5, 4)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_in_front_of_an_unpadded_convolution_is_folded_on_request(
    bias: bool, groups: int, spatial: tuple[int, ...]
) -> None:
    graph = Layers((2, 4, *spatial))
    graph.batch_norm()
    graph.conv(6, groups=groups, bias=bias, pads=0)
    assert kept(fuse(graph.done(), BACKWARD)) == []
    assert kept(fuse(graph, FORWARD)) == ["batch-norm-conv"]
    assert graph.ops == ["conv"]


def test_batch_norm_in_front_of_a_padded_convolution_is_refused() -> None:
    graph = Layers(IMAGE)
    graph.batch_norm()
    graph.conv(6, pads=1)
    ledger = fuse(graph.done(), FORWARD)
    assert kept(ledger) == []
    assert "pads with zeros behind the batch norm (pads (1, 1, 1, 1))" in reasons(ledger, "batch-norm-conv")


@pytest.mark.parametrize("trans_w", [True, False, None])
def test_batch_norm_in_front_of_a_linear_layer_is_folded_on_request(trans_w: bool | None) -> None:
    graph = Layers((3, 4))
    graph.batch_norm()
    if trans_w is None:
        graph.then("matmul", graph.ref(4, 5), shape=(3, 5))
    else:
        graph.linear(5, trans_w=trans_w)
    (rule,) = kept(fuse(graph.done(), FORWARD))
    assert rule == ("batch-norm-matmul" if trans_w is None else "batch-norm-linear")
    assert graph.ops == ["linear"]


def test_statistics_may_be_wider_than_the_weight() -> None:
    graph = Layers(IMAGE, dtype="float16")
    graph.conv(6)
    graph.dtype = "float32"
    statistics = graph.ref(6), graph.positive(6)
    graph.dtype = "float16"
    graph.batch_norm(mean=statistics[0], var=statistics[1])
    fuse(graph.done(), BACKWARD)
    (node,) = graph.nodes()
    assert [graph.type(o).dtype for o in node.call.operands[1:]] == ["float16", "float16"]


# ---- refusals ----------------------------------------------------------------------------------------------


def training_mode(graph: Layers) -> None:
    graph.conv(6)
    graph.batch_norm(training=True)


def weight_of_two_convolutions(graph: Layers) -> None:
    start, weight = graph.end, graph.add_constant(graph.ref(6, 4, 3, 3), "shared")[0]
    graph.conv(6, weight=weight)
    graph.batch_norm()
    first, graph.end, graph.shape = graph.end, start, IMAGE
    graph.conv(6, weight=weight)
    graph.then("add", first)


def result_with_other_users(graph: Layers) -> None:
    inner = graph.conv(6)
    graph.batch_norm()
    graph.then("add", inner)


def result_that_is_an_output(graph: Layers) -> None:
    graph.add_output(graph.conv(6))
    graph.batch_norm()


def dynamic_weight(graph: Layers) -> None:
    graph.conv(6, weight=graph.add_input(TensorType("float32", (6, 4, 3, 3))))
    graph.batch_norm()


def dynamic_statistics(graph: Layers) -> None:
    graph.conv(6)
    graph.batch_norm(mean=graph.add_input(TensorType("float32", (6,))))


def negative_variance(graph: Layers) -> None:
    graph.conv(3)
    graph.batch_norm(var=ArrayRef(np.array([1.0, -2.0, 1.0], np.float32)))


def zero_variance_without_eps(graph: Layers) -> None:
    graph.conv(3)
    graph.batch_norm(var=ArrayRef(np.array([1.0, 1.0, 0.0], np.float32)), eps=0.0)


def variance_that_is_not_a_number(graph: Layers) -> None:
    graph.conv(3)
    graph.batch_norm(var=ArrayRef(np.array([np.nan, 1.0, 0.0], np.float32)))


REFUSALS = {
    training_mode: "batch_norm is in training mode",
    weight_of_two_convolutions: "the weight … is shared with …",
    result_with_other_users: "… has other users (…)",
    result_that_is_an_output: "is an output of the graph",
    dynamic_weight: "w is not a constant",
    dynamic_statistics: "mean is not a constant",
    negative_variance: "var + eps of batch_norm is -1.9999",
    zero_variance_without_eps: "var + eps of batch_norm is 0.0 in channel 2",
    variance_that_is_not_a_number: "var + eps of batch_norm is nan in channel 0",
}


@pytest.mark.parametrize("make", REFUSALS, ids=lambda f: f.__name__)
def test_what_cannot_be_folded_is_refused_with_the_reason(make: Callable[[Layers], None]) -> None:
    graph = Layers(IMAGE)
    make(graph)
    graph.done()
    assert_refused(graph, BACKWARD, "conv-batch-norm", REFUSALS[make])


@pytest.mark.parametrize("name", ["scale", "shift", "mean", "var"])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (1,), (5,), ()])
def test_statistics_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    graph = Layers(IMAGE)
    graph.conv(6)
    operands = {n: graph.positive(*(shape if n == name else (6,))) for n in ("scale", "shift", "mean", "var")}
    graph.then("batch_norm", *operands.values(), eps=1e-5)
    ledger = fuse(graph.done(), BACKWARD, compare=False)
    assert kept(ledger) == []
    assert f"{name} of batch_norm has shape {list(shape)}, expected [6]" in reasons(ledger, "conv-batch-norm")


def test_a_batch_norm_behind_something_else_stays() -> None:
    graph = Layers(IMAGE)
    graph.conv(6)
    graph.then("relu")
    graph.batch_norm()
    assert kept(fuse(graph.done(), BACKWARD)) == []
    assert graph.ops == ["conv", "relu", "batch_norm"]


def test_a_folded_batch_norm_makes_room_for_the_next() -> None:
    graph = Layers(IMAGE)
    graph.conv(6)
    graph.batch_norm()
    graph.batch_norm(affine=False)
    assert kept(fuse(graph.done(), BACKWARD)) == ["conv-batch-norm", "conv-batch-norm"]
    assert graph.ops == ["conv"]
