"""Writing a scratch graph into a storage: how generated graphs become ONNX or torch models, op by op.

Everything goes through the vocabulary and the storages' own writers, so what can be converted is exactly what they
can say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import CannotEmit, Graph, Literal, TensorType, Value
from graphopt.ir.model import Model
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import TensorRef, numpy_dtype


def from_scratch(scratch: ScratchGraph, storage: str, *, opset: int = 21) -> Model:
    """`scratch` as a model of `storage` ("onnx" or "fx").

    Inputs and outputs keep their order. Symbolic sizes survive in ONNX; torch gets 2 for each.

    Raises:
        UnsupportedError: the storage cannot say some op; the message lists every reason.
    """
    types = [_known(scratch, v) for v in scratch.inputs()]
    outputs = len(scratch.outputs())
    model = _onnx_skeleton(scratch, types, opset) if storage == "onnx" else _fx_skeleton(types, outputs)
    graph = model.main
    anchors = list(graph.nodes())
    _write(scratch, graph, anchors[0])
    for anchor in anchors:
        graph.remove(anchor)
    model.refresh()
    return model


def _known(scratch: ScratchGraph, value: Value) -> TensorType:
    type_ = scratch.type(value)
    if type_ is None or type_.shape is None:
        raise UnsupportedError(f"input {scratch.name(value)} has no type")
    return type_


def _write(scratch: ScratchGraph, graph: Graph, before: Any) -> None:
    env: dict[Any, Value] = dict(zip(scratch.inputs(), graph.inputs(), strict=True))
    problems: list[str] = []

    def fetch(value: Value | None) -> Value | None:
        if value is None or isinstance(value, Literal):
            return value
        if value not in env:
            data: TensorRef | None = scratch.constant(value)
            if data is None:
                raise KeyError(value)  # its producer could not be written, which is reported
            env[value] = graph.add_constant(data, scratch.name(value))[0]
        return env[value]

    for node in scratch.nodes():
        call = node.call
        try:
            operands = [fetch(o) for o in call.operands]
            outputs = [scratch.type(o) for o in call.outputs]
            values, _, _ = graph.insert(call.op, operands, call.fields, before=before, types=outputs)
        except CannotEmit as error:
            problems.append(f"{call.op}: {error}")
            continue
        except KeyError:
            continue
        env.update(zip(call.outputs, values, strict=True))
    if problems:
        raise UnsupportedError(f"{graph.storage} cannot say {'; '.join(dict.fromkeys(problems))}")
    for old, new in zip(list(graph.outputs()), scratch.outputs(), strict=True):
        graph.replace(old, fetch(new))


def _onnx_skeleton(scratch: ScratchGraph, types: Sequence[TensorType], opset: int) -> Model:
    """Inputs, and for every output a placeholder node that is replaced afterwards."""
    import onnx_ir as ir

    from graphopt.ir.onnx.load import load_onnx

    def value(name: str, type_: TensorType | None) -> ir.Value:
        made = ir.Value(name=name)
        if type_ is not None:
            made.type = ir.TensorType(ir.DataType.from_numpy(numpy_dtype(type_.dtype)))
            made.shape = None if type_.shape is None else ir.Shape(type_.shape)
        return made

    inputs = [value(scratch.name(v), t) for v, t in zip(scratch.inputs(), types, strict=True)]
    nodes, outputs = [], []
    for i, output in enumerate(scratch.outputs()):
        outputs.append(value(f"out_{i}", scratch.type(output)))
        nodes.append(ir.Node("", "Identity", inputs=[inputs[0]], outputs=[outputs[-1]], name=f"placeholder_{i}"))
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name="converted")
    return load_onnx(ir.Model(graph, ir_version=10, producer_name="graphopt"))


def _fx_skeleton(types: Sequence[TensorType], outputs: int) -> Model:
    import torch

    from graphopt.ir.fx.load import load_torch
    from graphopt.ir.fx.tensors import to_torch

    class Skeleton(torch.nn.Module):  # type: ignore[misc]  # torch is untyped for mypy
        def forward(self, *inputs: Any) -> Any:
            return tuple(inputs[0].clone() for _ in range(outputs))

    def example(type_: TensorType) -> Any:
        shape = tuple(d if isinstance(d, int) else 2 for d in type_.shape or ())
        return to_torch(np.zeros(shape, numpy_dtype(type_.dtype)))

    return load_torch(Skeleton().eval(), tuple(example(t) for t in types))
