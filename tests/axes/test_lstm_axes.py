"""Hidden units of LSTMs and GRUs can go, each layer's for itself: with zeros in their slices they stay at zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from masked import error, masked, tensors
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import free_axes
from graphopt.rewrite.journal import Journal


class Recurrent(nn.Module):
    """LSTM layers between linear ones; the last cell state is read too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(3, 6), nn.LSTM(6, 8, **settings)
        self.last = nn.Linear(16 if self.rnn.bidirectional else 8, 2)
        self.state = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, (_, c) = self.rnn(self.first(x))
        return self.last(y), self.state(c[-1])


class Started(nn.Module):
    """What an LSTM starts with is made of the input, or given as it is."""

    def __init__(self, given: bool) -> None:
        super().__init__()
        self.given = given
        self.start, self.rnn, self.last = nn.Linear(3, 8), nn.LSTM(3, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        h = self.start(x[0])[None]
        return self.last(self.rnn(x, (h, state if self.given else h.relu()))[0])


def wide(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module.double().eval()


SETTINGS = [
    {"num_layers": 2},
    {"num_layers": 3, "batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "dropout": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_masked_equals_sliced(settings: dict[str, Any]) -> None:
    module, x = wide(Recurrent(**settings)), torch.randn(4, 5, 3, dtype=torch.float64)
    before = {name: weight.clone() for name, weight in tensors(module).items()}
    model = graphopt.load(module, example_inputs=(x,))
    axes = Axes(model.main)
    found = free_axes(axes)
    # The last layer's hidden units are tied to no other layer's, though all layers' states were one tensor.
    assert [axis.size for axis in found] == [6, *[8] * settings["num_layers"]]
    assert all(axis.exact for axis in found)
    for axis in found:
        shorten_checked(axes, axis, np.arange(axis.size) % 3 == 1, Journal(model.main))
    pruned = model.export()
    after = tensors(pruned)
    assert after["rnn.weight_hh_l1"].shape == (12, 3)
    with torch.no_grad():
        got = pruned(x)
        expected = torch.func.functional_call(module, masked(before, after), x)
        shifted = torch.func.functional_call(module, masked(before, after, shifted="rnn.weight_hh_l1"), x)
    assert max(map(error, expected, got)) < 1e-10 < 1e-3 < max(map(error, shifted, got))


def test_what_a_layer_starts_with_goes_along_unless_it_is_given() -> None:
    x, state = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    for given, sizes in ((False, [8]), (True, [])):
        model = graphopt.load(wide(Started(given)), example_inputs=(x, state))
        axes = Axes(model.main)
        found = free_axes(axes)
        assert [axis.size for axis in found] == sizes
        for axis in found:
            assert axis.exact and "start.weight" in {m.weight for m in axis.members}
            shorten_checked(axes, axis, np.arange(8) < 3, Journal(model.main))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_file_tells_the_new_hidden_size(direction: str, op: str, gates: int) -> None:
    directions, rows = 2 if direction == "bidirectional" else 1, 8 * gates
    shapes = {"W": (directions, rows, 3), "R": (directions, rows, 8), "B": (directions, 2 * rows), "out": (8, 2)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node(op, ["x", "W", "R", "B"], ["", "h"], "rnn", hidden_size=8, direction=direction),
        helper.make_node("MatMul", ["h", "out"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 5, 3))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (directions, 5, 2))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    model = graphopt.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    axes = Axes(model.main)
    (axis,) = free_axes(axes)
    assert axis.exact and axis.name == "W:1.1"
    shorten_checked(axes, axis, np.arange(8) % 2 == 0, Journal(model.main))
    pruned = model.export()
    onnx.checker.check_model(pruned, full_check=True)
    layer = pruned.graph.node[0]
    assert helper.get_node_attr_value(layer, "hidden_size") == 4
    kept = {i.name: numpy_helper.to_array(i) for i in pruned.graph.initializer}
    np.testing.assert_array_equal(kept["R"], arrays["R"][:, ::2, ::2])
    session = onnxruntime.InferenceSession(pruned.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((4, 5, 3), np.float32)})[0].shape == (directions, 5, 2)
