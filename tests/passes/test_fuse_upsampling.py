"""Upsampling and the convolution behind it become one transposed convolution, and only where the two are equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conv_graphs import Layers, assert_refused, fuse, kept, reasons, window
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.passes.fuse_upsampling import REPEATING, UpsampleConv
from graphopt.verify.execute import evaluate

RULES = [UpsampleConv]
SOME = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEW = settings(SOME, max_examples=12)


def upsampled(layers: Layers, *factors: float, by_size: bool = False, **said: Any) -> Any:
    """Append a resize by `factors`."""
    shape = tuple(int(n * f) for n, f in zip(layers.shape, (1, 1, *factors), strict=True))
    how = {"sizes": shape, "scales": None} if by_size else {"sizes": None, "scales": (1.0, 1.0, *factors)}
    fields = {"mode": "nearest", "coordinates": "asymmetric", "nearest": "floor"} | how | said
    return layers.then("resize", shape=shape, **fields)


@st.composite
def layers(draw: st.DrawFn, *, symmetric: bool = False, coordinates: Any = None) -> Layers:
    """conv(upsample(x)) to which the rule has to apply."""
    spatial = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    n = len(spatial)
    graph = Layers((2, draw(st.integers(1, 3)), *spatial), draw(st.integers(0, 99)))
    factors, kernel = ([draw(st.integers(1, 3)) for _ in spatial] for _ in "ab")
    assume(any(s > 1 and k > 1 for s, k in zip(factors, kernel, strict=True)))
    where, rounding = coordinates or draw(st.sampled_from(sorted(REPEATING)))
    upsampled(graph, *map(float, factors), by_size=draw(st.booleans()), coordinates=where, nearest=rounding)
    begin = [draw(st.integers(0, k - 1)) for k in kernel]
    end = begin if symmetric else [draw(st.integers(0, k - 1)) for k in kernel]
    size = [a + p + q - k + 1 for a, k, p, q in zip(graph.shape[2:], kernel, begin, end, strict=True)]
    assume(min(size) > 0)
    out = draw(st.integers(1, 3))
    operands = graph.ref(out, graph.shape[1], *kernel), graph.ref(out) if draw(st.booleans()) else None
    fields = window(n, 0) | {"pads": (*begin, *end), "groups": 1}
    graph.then("conv", *operands, shape=(2, out, *size), **fields)
    return graph.done()


@SOME
@given(layers())
def test_any_factor_kernel_and_padding_give_the_same_numbers(graph: Layers) -> None:
    ledger = fuse(graph, RULES)
    assert kept(ledger) == ["upsample-conv"], reasons(ledger, "upsample-conv")
    (application,) = ledger.applications
    assert application.evidence.twin is not None and application.evidence.twin < 1e-13
    assert graph.ops == ["conv_transpose"]


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@FEW
@given(data=st.data())
def test_both_storages_run_it(storage: str, data: st.DataObject) -> None:
    torch_has = ("asymmetric", "floor") if storage == "fx" else None
    graph = data.draw(layers(symmetric=storage == "fx", coordinates=torch_has))
    x = np.random.default_rng(3).standard_normal(graph.inputs()[0].type.shape).astype(np.float32)
    (wanted,) = evaluate(graph, [x.astype(np.float64)])
    result = graphopt.optimize(from_scratch(graph, storage), "fuse-upsampling")
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    got = result.model(torch.from_numpy(x)) if storage == "fx" else result.lower("onnxruntime")(x)
    got = np.asarray(got[0] if isinstance(got, tuple | list) else got)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_spatial_sizes_may_be_dynamic(storage: str) -> None:
    torch.manual_seed(0)
    module, x = Upsampling(lambda conv, x: conv(F.interpolate(x, scale_factor=2.0))).eval(), torch.randn(2, 4, 6, 5)
    height = torch.export.Dim("height", min=2)
    shapes = {"args": ({2: height},)}
    if storage == "fx":
        result = graphopt.optimize(module, "fuse-upsampling", example_inputs=x, dynamic_shapes=shapes)
        run = result.model
    else:
        model = torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=shapes).model_proto
        result = graphopt.optimize(model, "fuse-upsampling")
        run = lambda x: torch.from_numpy(result.lower("onnxruntime")(x.numpy())[0])  # noqa: E731
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    other = torch.randn(2, 4, 9, 5)
    assert torch.allclose(run(other), module(other), atol=1e-5)


class Upsampling(nn.Module):
    """A function of a convolution of 4 channels and of the input."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(4, 3, 3, padding=1), call

    def forward(self, *args: torch.Tensor) -> Any:
        return self.call(self.conv, *args)


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_what_is_upsampled_stays_for_others(storage: str) -> None:
    def both(conv: Any, x: torch.Tensor) -> Any:
        u = F.interpolate(x, scale_factor=2.0)
        return conv(u), u.sin()

    module, x = Upsampling(both).eval(), torch.randn(2, 4, 6, 5)
    given_model = (
        torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto if storage == "onnx" else module
    )
    example = {} if storage == "onnx" else {"example_inputs": x}
    result = graphopt.optimize(given_model, "fuse-upsampling", **example)
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    got = result.model(x) if storage == "fx" else result.lower("onnxruntime")(x.numpy())
    for wanted, one in zip(module(x), got, strict=True):
        assert torch.allclose(torch.as_tensor(one), wanted, atol=1e-5)


# ---- refusals ----------------------------------------------------------------------------------------------


def conv(graph: Layers, kernel: int = 3, pads: int = 1, out: int = 4, weight: Any = None, **fields: Any) -> None:
    groups = fields.get("groups", 1)
    stride, dilation = (fields.get(name, (1, 1)) for name in ("stride", "dilation"))
    size = [
        (n + 2 * pads - d * (kernel - 1) - 1) // s + 1
        for n, s, d in zip(graph.shape[2:], stride, dilation, strict=True)
    ]
    weight = weight or graph.ref(out, graph.shape[1] // groups, kernel, kernel)
    shape = (graph.shape[0], out, *size)
    graph.then("conv", weight, graph.ref(out), shape=shape, **window(2, pads) | {"groups": groups} | fields)


def a_factor_that_is_no_integer(graph: Layers) -> None:
    upsampled(graph, 1.5, 2.0)
    conv(graph)


def downsampling(graph: Layers) -> None:
    upsampled(graph, 0.5, 2.0)
    conv(graph)


def channels_that_are_repeated(graph: Layers) -> None:
    graph.then(
        "resize", shape=(2, 8, 8, 6), sizes=(2, 8, 8, 6), mode="nearest", coordinates="asymmetric", nearest="floor"
    )
    conv(graph)


def places_rounded_up(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0, nearest="ceil")
    conv(graph)


def corners_that_are_aligned(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0, coordinates="align_corners")
    conv(graph)


def interpolation(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0, mode="linear", nearest=None)
    conv(graph)


def stride_of_the_convolution(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, stride=(2, 1))


def dilation_of_the_convolution(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, dilation=(1, 2))


def groups_of_the_convolution(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, groups=2)


def pads_beyond_the_kernel(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, pads=3)


def a_kernel_of_one_element(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, kernel=1, pads=0)


def nothing_that_grows(graph: Layers) -> None:
    upsampled(graph, 1.0, 1.0)
    conv(graph)


def a_dynamic_weight(graph: Layers) -> None:
    upsampled(graph, 2.0, 2.0)
    conv(graph, weight=graph.add_input(TensorType("float32", (4, 4, 3, 3))))


def a_weight_of_two(graph: Layers) -> None:
    start, weight = graph.end, graph.add_constant(graph.ref(4, 4, 3, 3), "shared")[0]
    conv(graph, weight=weight)
    first, graph.end, graph.shape = graph.end, start, (2, 4, 4, 3)
    upsampled(graph, 2.0, 2.0)
    conv(graph, weight=weight)
    graph.add_output(first)


REFUSALS: dict[Callable[[Layers], None], str] = {
    a_factor_that_is_no_integer: "each element is repeated [1.0, 1.0, 1.5, 2.0] times",
    downsampling: "each element is repeated [1.0, 1.0, 0.5, 2.0] times",
    channels_that_are_repeated: "each element is repeated [1.0, 2.0, 2.0, 2.0] times",
    places_rounded_up: "asymmetric coordinates, rounded by ceil, repeat elements unevenly",
    corners_that_are_aligned: "align_corners coordinates, rounded by floor, repeat elements unevenly",
    interpolation: "the mode linear mixes elements",
    stride_of_the_convolution: "the convolution has stride (2, 1)",
    dilation_of_the_convolution: "the convolution has dilation (1, 2)",
    groups_of_the_convolution: "the convolution has 2 groups",
    pads_beyond_the_kernel: "pads (3, 3, 3, 3) reach beyond the kernel of [3, 3]",
    a_kernel_of_one_element: "a kernel of [1, 1] costs no less behind 4 times as many elements",
    nothing_that_grows: "a kernel of [3, 3] costs no less behind 1 times as many elements",
    a_dynamic_weight: "w is not a constant",
    a_weight_of_two: "is shared with",
}


@pytest.mark.parametrize("make", REFUSALS, ids=lambda f: f.__name__)
def test_what_is_not_equal_or_no_cheaper_is_refused_with_the_reason(make: Callable[[Layers], None]) -> None:
    graph = Layers((2, 4, 4, 3))
    make(graph)
    graph.done()
    assert_refused(graph, RULES, "upsample-conv", REFUSALS[make])


def test_torch_has_no_transposed_convolution_with_pads_of_two_sizes() -> None:
    module = Upsampling(lambda conv, x: conv(F.interpolate(x, scale_factor=2.0)))
    module.conv = nn.Conv2d(4, 3, 2, padding="same")
    result = graphopt.optimize(module.eval(), "fuse-upsampling", example_inputs=torch.randn(2, 4, 6, 5))
    assert not result.report.kept
    assert "pads" in "\n".join([*result.report.why_not(), *(a.reason for a in result.report.applications)])


# ---- models ------------------------------------------------------------------------------------------------


def unconditional() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 2,
    )  # fmt: skip
    return unet, {"sample": torch.randn(1, 2, 8, 8), "timestep": torch.tensor(3)}


def conditional() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    text = {"encoder_hidden_states": torch.randn(1, 5, 8)}
    return unet, {"sample": torch.randn(1, 4, 8, 8), "timestep": torch.tensor(3)} | text


@pytest.mark.parametrize("make", [unconditional, conditional], ids=lambda f: f.__name__)
@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_every_upsampling_of_a_diffusion_model_is_fused(make: Callable[[], Any], storage: str) -> None:
    torch.manual_seed(0)
    module, inputs = make()
    module.eval()
    count = sum(type(m).__name__ == "Upsample2D" for m in module.modules())
    with torch.no_grad():
        wanted = module(**inputs)[0].numpy()
    if storage == "fx":
        result = graphopt.optimize(module, "fuse-upsampling", example_inputs=inputs)
        with torch.no_grad():
            got = result.model(**inputs)[0].numpy()
    else:
        exported = torch.onnx.export(module, kwargs=inputs, dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(exported, "fuse-upsampling")
        got = result.lower("onnxruntime")(*(v.numpy() for v in inputs.values()))[0]
    assert [a.status for a in result.report.applications] == ["kept"] * count, result.report.why_not()
    assert count > 0 and np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()
    record = result.report.passes[0]
    assert record.after.flops < record.before.flops
