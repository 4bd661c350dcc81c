"""What a written op computes is known without asking torch only where torch would say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.fx.write_elementwise import _UNARY

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def graph_on(value: torch.Tensor) -> FxGraph:
    """The graph that returns relu of an input like `value`."""
    mode = FakeTensorMode()
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = mode.from_tensor(value)
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    y.meta["val"] = x.meta["val"]
    graph.output((y,))
    return FxGraph(torch.fx.GraphModule({}, graph), {}, mode)


def layout(value: Any) -> tuple[Any, ...]:
    return value.dtype, tuple(value.shape), value.stride(), value.device, value.layout


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", sorted(set(_UNARY) - {"logical_not"}))
@pytest.mark.parametrize("transposed", [False, True])
def test_a_written_unary_op_has_the_layout_that_torch_computes(op: str, dtype: torch.dtype, transposed: bool) -> None:
    data = torch.zeros(3, 4, dtype=dtype)
    graph = graph_on(data.t() if transposed else data)
    (x,) = graph.inputs()
    (value,), _, _ = graph.insert(op, [x], {}, before=next(graph.nodes()), types=[])
    with graph.fake_mode:
        expected = _UNARY[op](x.meta["val"])
    assert layout(value.meta["val"]) == layout(expected)
