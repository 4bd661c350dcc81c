"""An ONNX model at fixed sizes: what depends on sizes alone is computed, and branches that they choose are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import PassError
from onnx_ir.passes.common import InlinePass

from graphopt.compiler import optimize
from graphopt.errors import UnsupportedError
from graphopt.ir.onnx.model import OnnxModel

PASS = "clean-up"
"""What computes it: it folds constants, settles shapes and removes what is not needed, each step verified."""


def inlined(model: OnnxModel) -> OnnxModel:
    """`model` with the bodies of its functions in the place of their calls; itself if it has none.

    Raises:
        UnsupportedError: a function is written in another version of the operators than the model.
    """
    if not model.ir.functions:
        return model
    try:
        return OnnxModel(InlinePass()(model.ir.clone()).model)
    except (ValueError, PassError) as error:
        raise UnsupportedError(
            f"backend 'xla' cannot put local functions in the place of their calls: {error.__cause__ or error}; "
            "convert the model to one opset, as onnx.version_converter does, or lower to the backend 'onnxruntime'"
        ) from error


def at_sizes(model: OnnxModel, shapes: Mapping[str, Sequence[int]]) -> OnnxModel:
    """A copy of `model` whose inputs have `shapes`, with what follows from that computed."""
    copy = model.ir.clone()
    for value in list(copy.graph.inputs):
        if (shape := shapes.get(value.name or "")) is not None:
            value.shape = ir.Shape(shape)
        elif value.is_initializer():  # one that the caller may override: here it is what the file says
            copy.graph.inputs.remove(value)
    for node in copy.graph:
        for value in node.outputs:
            _forget_sizes(value)
    result: Any = optimize(copy, PASS)
    return OnnxModel(result.model)


def _forget_sizes(value: ir.Value) -> None:
    """Declared sizes are of the model at any size; those that follow from the inputs are inferred anew."""
    if value.shape is not None and any(not isinstance(d, int) for d in value.shape):
        value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])
