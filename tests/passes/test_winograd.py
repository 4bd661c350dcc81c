"""Convolutions of 3 × 3 become products at four points an axis, and only where the two are equal and it pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conv_graphs import Layers, assert_refused, fuse, kept, reasons, window
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import graphopt
from graphopt.errors import PipelineError
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.passes import winograd
from graphopt.passes.winograd import RULES, winograd_conv
from graphopt.verify.execute import evaluate
from graphopt.verify.rule_proofs import prove_rule

SOME = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEW = settings(SOME, max_examples=10)
EVERY = "winograd{channels=1 tiles=1}"


def conv(graph: Layers, *, kernel: int = 3, pads: Any = (1, 1, 1, 1), bias: bool = True, **fields: Any) -> None:
    """Append a convolution to 3 channels."""
    groups = fields.get("groups", 1)
    said = window(2, 0) | {"pads": pads, "groups": groups} | fields
    size = [
        (n + a + b - d * (kernel - 1) - 1) // s + 1
        for n, a, b, s, d in zip(
            graph.shape[2:], pads[:2], pads[2:], said["stride"], said["dilation"], strict=True
        )
    ]
    weight = said.pop("weight", None) or graph.ref(3, graph.shape[1] // groups, kernel, kernel)
    graph.then("conv", weight, graph.ref(3) if bias else None, shape=(graph.shape[0], 3, *size), **said)


@st.composite
def layers(draw: st.DrawFn, *, symmetric: bool = False) -> Layers:
    """A convolution to which the rule has to apply."""
    graph = Layers((draw(st.integers(1, 3)), draw(st.integers(1, 4)), *(draw(st.integers(3, 9)) for _ in "hw")))
    begin = [draw(st.integers(0, 3)) for _ in "hw"]
    end = begin if symmetric else [draw(st.integers(0, 3)) for _ in "hw"]
    conv(graph, pads=(*begin, *end), bias=draw(st.booleans()))
    return graph.done()


@SOME
@given(layers())
def test_any_size_and_padding_give_the_same_numbers(graph: Layers) -> None:
    ledger = fuse(graph, RULES)
    assert kept(ledger) == ["winograd-conv"], reasons(ledger, "winograd-conv")
    (application,) = ledger.applications
    assert application.evidence.twin is not None and application.evidence.twin < 1e-13
    assert "conv" not in graph.ops and graph.ops.count("matmul") == 4


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@FEW
@given(data=st.data())
def test_both_storages_run_it(storage: str, data: st.DataObject) -> None:
    graph = data.draw(layers(symmetric=storage == "fx"))
    x = np.random.default_rng(3).standard_normal(graph.inputs()[0].type.shape).astype(np.float32)
    (wanted,) = evaluate(graph, [x.astype(np.float64)])
    result = graphopt.optimize(from_scratch(graph, storage), EVERY)
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    got = result.model(torch.from_numpy(x)) if storage == "fx" else result.lower("onnxruntime")(x)
    got = np.asarray(got[0] if isinstance(got, tuple | list) else got)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_it_takes_sixteen_products_for_thirty_six() -> None:
    before, after = Layers((2, 8, 16, 16)), Layers((2, 8, 16, 16))
    for graph in (before, after):
        conv(graph)
        graph.done()
    fuse(after, RULES)
    products = sum(
        np.prod(after.type(call.operands[0]).shape) * 3
        for node in after.nodes()
        if (call := after.call(node)).op == "matmul"
    )
    assert products * 36 == 16 * (2 * 16 * 16) * (8 * 9 * 3)
    (node,) = (n for n in before.nodes() if before.key(n) == "conv")
    assert before.type(before.call(node).outputs[0]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_the_batch_may_be_dynamic(storage: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1)).eval(), torch.randn(2, 4, 6, 5)
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    if storage == "fx":
        result = graphopt.optimize(module, EVERY, example_inputs=x, dynamic_shapes=shapes)
        run = result.model
    else:
        model = torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=shapes).model_proto
        result = graphopt.optimize(model, EVERY)
        run = lambda x: torch.from_numpy(result.lower("onnxruntime")(x.numpy())[0])  # noqa: E731
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    for batch in (1, 5):
        other = torch.randn(batch, 4, 6, 5)
        assert torch.allclose(run(other), module(other), atol=1e-5)


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_images_whose_sizes_are_written_down_are_verified_at_these(storage: str) -> None:
    """Convolutions alone are verified on smaller images, on which the products could not be run."""
    graph = Layers((2, 2, 40, 32))
    conv(graph)
    result = graphopt.optimize(from_scratch(graph.done(), storage), EVERY)
    (application,) = result.report.applications
    assert (application.status, application.evidence.kind) == ("kept", "executed"), application.reason


def test_it_is_proved_for_all_weights() -> None:
    assert prove_rule(winograd_conv(channels=128, tiles=32)).for_all_weights


@pytest.mark.parametrize("change", [(0, 0, 1.01), (1, 1, -0.5), (3, 2, 0.0)])
def test_other_points_are_caught(monkeypatch: pytest.MonkeyPatch, change: tuple[int, int, float]) -> None:
    wrong = winograd.OF_KERNEL.copy()
    wrong[change[:2]] = change[2]
    monkeypatch.setattr(winograd, "OF_KERNEL", wrong)
    graph = Layers((2, 4, 8, 8))
    conv(graph)
    graph.done()
    before = graph.fingerprint()
    (application,) = fuse(graph, RULES, compare=False).applications
    assert application.status == "undone" and graph.fingerprint() == before


# ---- refusals ----------------------------------------------------------------------------------------------


def a_kernel_of_five(graph: Layers) -> None:
    conv(graph, kernel=5)


def strides(graph: Layers) -> None:
    conv(graph, stride=(2, 1))


def dilations(graph: Layers) -> None:
    conv(graph, dilation=(1, 2))


def groups(graph: Layers) -> None:
    conv(graph, groups=2)


def pads_that_cut_off(graph: Layers) -> None:
    conv(graph, pads=(-1, 1, 1, 1))


def a_dynamic_weight(graph: Layers) -> None:
    conv(graph, weight=graph.add_input(TensorType("float32", (3, 4, 3, 3))))


def a_weight_of_two(graph: Layers) -> None:
    start, weight = graph.end, graph.add_constant(graph.ref(3, 4, 3, 3), "shared")[0]
    conv(graph, weight=weight)
    first, graph.end, graph.shape = graph.end, start, (2, 4, 8, 6)
    conv(graph, weight=weight, pads=(0, 0, 0, 0))
    graph.add_output(first)


REFUSALS: dict[Callable[[Layers], None], str] = {
    a_kernel_of_five: "the kernel is [5, 5], not [3, 3]",
    strides: "stride (2, 1) is not 1",
    dilations: "dilation (1, 2) is not 1",
    groups: "groups 2 is not 1",
    pads_that_cut_off: "pads are (-1, 1, 1, 1)",
    a_dynamic_weight: "",
    a_weight_of_two: "is shared with",
}


@pytest.mark.parametrize("make", REFUSALS, ids=lambda f: f.__name__)
def test_what_is_not_equal_is_refused_with_the_reason(make: Callable[[Layers], None]) -> None:
    graph = Layers((2, 4, 8, 6))
    make(graph)
    assert_refused(graph.done(), RULES, "winograd-conv", REFUSALS[make])


def test_half_precision_is_refused() -> None:
    graph = Layers((2, 4, 8, 6), dtype="float16")
    conv(graph)
    assert_refused(graph.done(), RULES, "winograd-conv", "sums before the products would lose digits of float16")


@pytest.mark.parametrize(
    ("least", "reason"),
    [((4, 1), "4 channels in and 3 out: fewer than 4"), ((1, 25), "24 tiles: fewer than 25")],
)
def test_what_does_not_pay_is_refused_with_the_reason(least: tuple[int, int], reason: str) -> None:
    graph = Layers((2, 4, 8, 6))
    conv(graph)
    assert_refused(graph.done(), [winograd_conv(*least)], "winograd-conv", reason)


def test_sizes_that_are_not_known_are_refused() -> None:
    module, x = nn.Sequential(nn.Conv2d(4, 3, 3, padding=1)).eval(), torch.randn(2, 4, 6, 5)
    shapes = ({2: torch.export.Dim("height", min=3, max=64)},)
    result = graphopt.optimize(module, EVERY, example_inputs=x, dynamic_shapes=shapes)
    assert not result.report.kept
    assert "the sizes of the input are" in "\n".join(result.report.why_not())


@pytest.mark.parametrize("option", ["channels", "tiles"])
def test_options_that_are_not_positive_are_refused(option: str) -> None:
    with pytest.raises(PipelineError, match=f"{option} is 0, expected at least 1"):
        graphopt.optimize(nn.Conv2d(4, 3, 3), f"winograd{{{option}=0}}", example_inputs=torch.randn(1, 4, 6, 6))


# ---- models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_a_unet_of_diffusers_gives_what_it_gave(storage: str) -> None:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    given = (torch.randn(2, 3, 16, 16), torch.tensor(7))
    with torch.no_grad():
        wanted = unet(*given).sample
    passes = "winograd{channels=32 tiles=32}"
    if storage == "fx":
        result = graphopt.optimize(unet, passes, example_inputs=given)
        got = result.lower("torch")(*given)[0]
    else:
        exported: Any = torch.onnx.export(unet, given, dynamo=True, verbose=False)
        result = graphopt.optimize(exported.model_proto, passes)
        got = result.lower("onnxruntime")(*(g.numpy() for g in given))[0]
    statuses = [a.status for a in result.report.applications]
    assert len(statuses) >= 20 and set(statuses) == {"kept"}, result.report.why_not()
    assert (torch.as_tensor(got) - wanted).abs().max() < 1e-5 * wanted.abs().max()
