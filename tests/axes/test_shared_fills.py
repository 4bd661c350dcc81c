"""One number many times ties nothing together: every node that reads it may have it in its own size."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnxruntime
import pytest
import torch
from masked import error, masked, tensors
from onnx import numpy_helper
from torch import nn

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import free_axes
from graphopt.rewrite.journal import Journal


class Shared(nn.Module):
    """Layers that meet the same fill."""

    def __init__(self, value: float, returned: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(3, 8)
        self.last, self.other = nn.Linear(8, 2), nn.Linear(8, 2)
        self.value, self.returned = value, returned

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = torch.full((1, 8), self.value, dtype=torch.float64)
        a = self.last((self.first(x) + rows).sin())
        b = self.other(torch.maximum(self.second(x), rows))
        return (a, b, rows) if self.returned else (a, b)


@pytest.mark.parametrize("value", [0.5, 1.0, 0.0])
def test_layers_that_share_a_fill_have_axes_of_their_own(value: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, dtype=torch.float64)
    module = Shared(value).double().eval()
    model = graphopt.load(module, example_inputs=(x,))
    axes = Axes(model.main)
    found = free_axes(axes)
    assert [(axis.name, axis.size, axis.exact) for axis in found] == [
        ("first.weight:0", 8, True),
        ("second.weight:0", 8, True),
    ]
    before = {name: weight.clone() for name, weight in tensors(module).items()}
    for axis, kept in zip(found, ([0, 2, 3], [1, 2, 4, 5, 7]), strict=True):
        shorten_checked(axes, axis, np.isin(np.arange(8), kept), Journal(model.main))
    shortened = model.export()
    with torch.no_grad():
        expected = torch.func.functional_call(module, masked(before, tensors(shortened)), (x,))
        for e, g in zip(expected, shortened(x), strict=True):
            assert error(e, g) < 1e-10
    fills = [axes.graph.call(node) for node in axes.graph.nodes() if axes.graph.key(node) == "fill"]
    assert sorted(fill.fields["shape"] for fill in fills) == [(1, 3), (1, 5)]


def test_an_axis_can_be_shortened_again() -> None:
    x = torch.randn(16, 3, dtype=torch.float64)
    model = graphopt.load(Shared(1.0).double().eval(), example_inputs=(x,))
    axes = Axes(model.main)
    first, second = free_axes(axes)
    shorten_checked(axes, first, np.arange(8) < 6, Journal(model.main))
    again = free_axes(axes)
    assert [(axis.name, axis.size) for axis in again] == [("first.weight:0", 6), ("second.weight:0", 8)]
    shorten_checked(axes, again[0], np.arange(6) < 3, Journal(model.main))
    assert model.export().get_parameter("first.weight").shape == (3, 3)


def test_a_fill_that_is_returned_ties_what_reads_it() -> None:
    model = graphopt.load(Shared(1.0, returned=True).double().eval(), example_inputs=(torch.randn(2, 3).double(),))
    assert free_axes(Axes(model.main)) == []


@pytest.mark.parametrize(
    ("made", "rows"), [("rows = ConstantOfShape<value = float[1] {0.5}>(size)", "rows"), ("", "stored")]
)
def test_layers_that_share_a_fill_in_a_file_have_axes_of_their_own(made: str, rows: str) -> None:
    text = f"""g (float[5,4] x) => (float[5,3] y) {{
        {made} g = MatMul(x, a) h = MatMul(x, b) p = Add(g, {rows}) q = Max(h, {rows})
        u = MatMul(p, c) v = MatMul(q, d) y = Add(u, v) }}"""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 8), "b": (4, 8), "c": (8, 3), "d": (8, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    other = {"size": np.array([1, 8])} if made else {"stored": np.full((1, 8), 0.5, np.float32)}
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in (arrays | other).items())
    model = graphopt.load(proto)
    axes = Axes(model.main)
    found = free_axes(axes)
    assert [(axis.name, axis.size, axis.exact) for axis in found] == [("a:1", 8, True), ("b:1", 8, True)]
    for axis, kept in zip(found, (3, 5), strict=True):
        shorten_checked(axes, axis, np.arange(8) < kept, Journal(model.main))
    session = onnxruntime.InferenceSession(model.export().SerializeToString())
    x = rng.standard_normal((5, 4)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    a, b, c, d = arrays.values()
    expected = (x @ a[:, :3] + 0.5) @ c[:3] + np.maximum(x @ b[:, :5], 0.5) @ d[:5]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
