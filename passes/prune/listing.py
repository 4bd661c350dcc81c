"""What there is to prune, as a list."""

from __future__ import annotations

from typing import Any

from graphopt.axes.free import FreeAxis, analyse
from graphopt.ir.graph import Graph
from graphopt.ir.load import load_model
from graphopt.ir.model import Model


def axes(model: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> list[FreeAxis]:
    """The axes of `model` that can be pruned, each with its name, size, members, and whether it is exact or coupled.

    Args:
        model: a Graph, a Model, or anything that `graphopt.optimize` takes; the rest as there.

    Raises:
        ModelError: it cannot be taken.
    """
    if isinstance(model, Graph):
        return analyse(model)
    if not isinstance(model, Model):
        model = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return analyse(model.main)
