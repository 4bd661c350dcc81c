"""Integer division that fails where it would end the process.

onnxruntime divides integers as the processor does, which stops a process that divides by zero, or the least integer by
-1. A model may hold such a division in a branch that it never takes, and inputs that are drawn may meet one. So a
model that is run to learn something of it asks before it divides: an index out of bounds is an error, which can be
caught.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.graph import Graph, Node
from graphopt.ir.model import Model
from graphopt.ir.onnx.bodies import bodies_of
from graphopt.ir.weights import FLOATS, Array

GUARD = "graphopt.division"
"""How the names of the nodes that ask begin."""
REASON = "it divides integers by zero, or the least one by -1"
_SIGNED = {TensorProto.INT8: 8, TensorProto.INT16: 16, TensorProto.INT32: 32, TensorProto.INT64: 64}
_INTEGERS = {*_SIGNED, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}


def guarded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """`model`, or one in its place, failing in a node named after GUARD where it would end the process. None if it
    divides no integers: it can be run as it is."""
    if any(_divisions(function.node) for function in model.functions):
        model = onnx.inliner.inline_local_functions(model)
    types = _types(model.graph)
    if all(_is_float(node, types) for node in _divisions(model.graph.node)):
        return None
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # noqa: BLE001  types are optional, and inference raises many things
        inferred = model
    _Guarding().guard(model.graph, inferred.graph, {}, {})
    return model


def may_divide(model: Model) -> bool:
    """Whether a model of the ONNX storage may divide integers by what is no divisor, told without writing it."""
    return any(_may_end(region, node) for region in model.regions() for node in region.nodes())


def _may_end(region: Graph, node: Node) -> bool:
    if region.raw_name(node) not in ("ai.onnx::Div", "ai.onnx::Mod"):
        return False
    operands = [o for o in region.raw_call(node).operands if o is not None]
    types = [region.type(o) for o in operands]
    if any(t is not None and t.dtype in FLOATS for t in types):
        return False
    divisor = region.constant(operands[-1]) if operands else None
    return divisor is None or not _is_divisor(divisor.numpy())


def _is_float(node: onnx.NodeProto, types: Mapping[str, int]) -> bool:
    known = [types[name] for name in node.input if name in types]
    return any(type_ not in (TensorProto.UNDEFINED, *_INTEGERS) for type_ in known)


def _is_division(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Div", "Mod") and node.domain in ("", "ai.onnx") and len(node.input) == 2


def _divisions(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The divisions among `nodes` and in their bodies."""
    found = []
    for node in nodes:
        if _is_division(node):
            found.append(node)
        for body in bodies_of(node):
            found += _divisions(body.node)
    return found


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    infos = [*graph.value_info, *graph.input, *graph.output]
    found = {info.name: info.type.tensor_type.elem_type for info in infos if info.type.HasField("tensor_type")}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


class _Guarding:
    """Writing the questions; counts them, so that no name is given twice."""

    def __init__(self) -> None:
        self._count = 0

    def guard(
        self,
        graph: onnx.GraphProto,
        inferred: onnx.GraphProto,
        types: Mapping[str, int],
        stored: Mapping[str, onnx.TensorProto],
    ) -> None:
        """Guard the divisions of `graph` and of its bodies.

        Args:
            inferred: the same graph with the types that onnx infers.
            types: element types of what is around it; stored: its initialisers.
        """
        types = {**types, **_types(inferred)}
        given = {info.name for info in graph.input}
        stored = {**stored, **{t.name: t for t in graph.initializer if t.name not in given}}
        nodes = []
        for node, known in zip(list(graph.node), inferred.node, strict=True):
            for body, same in zip(bodies_of(node), bodies_of(known), strict=True):
                self.guard(body, same, types, stored)
            if _is_division(node):
                type_ = next((types[name] for name in node.input if types.get(name)), TensorProto.UNDEFINED)
                if type_ in _INTEGERS and not _is_harmless(stored.get(node.input[1])):
                    nodes += self._question(node, type_)
            nodes.append(node)
        if len(nodes) > len(graph.node):
            copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copied)

    def _question(self, division: onnx.NodeProto, type_: int) -> list[onnx.NodeProto]:
        """Nodes that fail if `division`, which then reads its divisor from them, is none."""
        self._count += 1
        nodes: list[onnx.NodeProto] = []

        def write(op: str, *operands: str, **attributes: object) -> str:
            name = f"{GUARD}.{self._count}.{len(nodes)}"
            nodes.append(helper.make_node(op, operands, [name], name, **attributes))
            return name

        def number(value: object) -> str:
            return write("Constant", value=numpy_helper.from_array(np.asarray(value, np.int64)))

        dividend, divisor = (write("Cast", name, to=TensorProto.INT64) for name in division.input)
        bad = write("Equal", divisor, number(0))
        if type_ in _SIGNED:
            least = write("Equal", dividend, number(-(2 ** (_SIGNED[type_] - 1))))
            bad = write("Or", bad, write("And", least, write("Equal", divisor, number(-1))))
        # Of the one number there is the next is asked for where the answer is bad.
        zeros = write("Gather", number([0]), write("Cast", bad, to=TensorProto.INT64), axis=0)
        division.input[1] = write("Cast", write("Add", divisor, zeros), to=type_)
        return nodes


def _is_harmless(tensor: onnx.TensorProto | None) -> bool:
    """Whether what is stored is known to be a divisor."""
    held = tensor is not None and tensor.data_location != TensorProto.EXTERNAL
    return held and _is_divisor(numpy_helper.to_array(tensor))


def _is_divisor(numbers: Array) -> bool:
    """Whether any integer may be divided by all of these."""
    return not bool(np.isin(numbers, (0, -1)).any())
