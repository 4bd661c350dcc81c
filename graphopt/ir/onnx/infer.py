"""Shape inference by onnx on a skeleton of the model: its structure without its weights.

The skeleton's values have names of their own, unique across regions, so that results can be read back for
bodies that reuse each other's names. Big constants become typed inputs of the main graph, which every body
can see. So the cost does not depend on the size of the weights, and nothing is written into the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.onnx.bodies import bodies_of
from graphopt.ir.onnx.doubt import certain
from graphopt.ir.onnx.dtypes import DATA_TYPES, NAMES, declared_type
from graphopt.ir.onnx.reading import Facts
from graphopt.ir.onnx.shared import all_graphs
from graphopt.ir.weights import TensorRef

_INFERRED_DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Domains whose ops onnx infers. Only for results of others does inference start from what the file declares."""
_OPAQUE = "graphopt.opaque"
"""A domain of which onnx knows no op."""
_FATAL = frozenset({("ai.onnx.ml", "DictVectorizer"), ("", "RegexFullMatch")})
"""Ops whose inference ends the process where the type of an input is not known."""
_SMALL_INTEGERS, _SMALL_OTHERS = 4096, 64
"""Bytes up to which a constant's data is given to inference: shapes, axes and the like, and scales of
Resize."""


def infer_types(
    model: ir.Model, facts: Facts
) -> tuple[dict[ir.Value, TensorType], dict[ir.Value, TensorType]]:
    """Types of the model's values outside functions, without sizes that runtimes may compute otherwise; and those of
    the values from which such sizes were taken. Empty if inference fails: types are optional everywhere.

    `facts`: what is known of the values beforehand.
    """
    corrected: dict[ir.Value, TensorType] = {}
    while True:
        skeleton = _Skeleton(model, facts, corrected)
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton.proto(), data_prop=True)
        except Exception:  # noqa: BLE001  inference raises many things on models that run all the same
            return {}, {}
        types = dict(skeleton.read_back(inferred.graph))
        doubtful = dict(_doubtful(_Inferred(facts, types)))
        if doubtful.items() <= corrected.items():
            return types, corrected
        corrected |= doubtful


class _Inferred:
    """Facts, with the types that inference has found."""

    def __init__(self, facts: Facts, types: Mapping[ir.Value, TensorType]) -> None:
        self.types = types
        self._facts = facts

    def type(self, value: Value) -> TensorType | None:
        return self.types.get(value) or self._facts.type(value)

    def inferred_type(self, value: ir.Value) -> TensorType | None:
        return self.types.get(value)

    def constant(self, value: Value) -> TensorRef | None:
        return self._facts.constant(value)


def _doubtful(found: _Inferred) -> Iterator[tuple[ir.Value, TensorType]]:
    """The values some of whose sizes are in doubt, without these."""
    for value, inferred in found.types.items():
        node = value.producer()
        if node is not None and value is node.outputs[0]:
            believed = certain(node, inferred, found)
            if believed != inferred:
                yield value, believed


def refutes(inferred: TensorType, value: ir.Value, *, doubted: bool = False) -> bool:
    """Whether the sizes that follow for `value` cannot be those that the file declares of it: a size that is free
    cannot be a number; and a number for one that is `doubted` may be inference's own."""
    declared = None if value.producer() is None else declared_type(value)
    if declared is None or declared.shape is None or inferred.shape is None:
        return False
    if len(declared.shape) != len(inferred.shape):
        return True
    return any(
        isinstance(said, int) and said != found and (doubted if found is None else not _is_made_up(found))
        for said, found in zip(declared.shape, inferred.shape, strict=True)
    )


def _is_made_up(size: int | str) -> bool:
    """Whether `size` is a name that inference gives to what it does not know."""
    return isinstance(size, str) and size.startswith("unk__")


class _Skeleton:
    def __init__(
        self,
        model: ir.Model,
        facts: Facts,
        corrected: Mapping[ir.Value, TensorType],
    ) -> None:
        """`corrected`: types of which inference is not asked."""
        self._model = model
        self._known = facts.type
        self._corrected = corrected
        self._names: dict[ir.Value, str] = {}
        self._values: dict[str, ir.Value] = {}
        self._hoisted: list[ir.Value] = []

    def proto(self) -> onnx.ModelProto:
        model = self._model
        proto = onnx.ModelProto(ir_version=max(model.ir_version, 8))
        for domain, version in self._domains().items():
            proto.opset_import.add(domain=domain, version=version)
        self._graph(model.graph, proto.graph)
        for value in self._hoisted:
            self._info(proto.graph.input.add(), value)
        proto.functions.extend(_spared(ir.to_proto(function)) for function in model.functions.values())
        return proto

    def _domains(self) -> dict[str, int]:
        domains = {"" if d == "ai.onnx" else d: v for d, v in self._model.opset_imports.items()}
        domains[_OPAQUE] = 1
        for graph in all_graphs(self._model):
            for node in graph:
                domains.setdefault(node.domain, 1)
        return domains

    def _name(self, value: ir.Value | None) -> str:
        if value is None or value.name == "":
            return ""
        name = self._names.get(value)
        if name is None:
            name = self._names[value] = f"v{len(self._names)}"
            self._values[name] = value
        return name

    def _graph(self, graph: ir.Graph, proto: onnx.GraphProto) -> None:
        proto.name = "skeleton"
        inputs = set(graph.inputs)
        before_4 = self._model.ir_version < 4
        for value in graph.inputs:
            if not (before_4 and value.is_initializer()):
                self._info(proto.input.add(), value)
        for value in graph.initializers.values():
            if before_4 or value not in inputs:
                self._constant(value, value.const_value, proto)
        for node in graph:
            self._node(node, proto)
        for value in graph.outputs:
            self._output(proto.output.add(), value)

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol | None, proto: onnx.GraphProto) -> None:
        if tensor is None or not _is_small(tensor):
            self._hoisted.append(value)
            self._name(value)
        else:
            data = proto.initializer.add()
            data.name = self._name(value)
            data.data_type = int(tensor.dtype)
            data.dims.extend(tensor.shape.numpy())
            data.raw_data = tensor.tobytes()

    def _node(self, node: ir.Node, proto: onnx.GraphProto) -> None:
        constant = node.attributes.get("value") if node.op_type == "Constant" and node.domain == "" else None
        if constant is not None and not _is_small(constant.as_tensor()):
            self._constant(node.outputs[0], None, proto)
            return
        copy = proto.node.add()
        domain = _OPAQUE if (node.domain, node.op_type) in _FATAL else node.domain
        copy.op_type, copy.domain, copy.overload = node.op_type, domain, node.overload
        copy.input.extend(map(self._name, node.inputs))
        copy.output.extend(map(self._name, node.outputs))
        if node.outputs and node.outputs[0] in self._corrected:
            copy.domain = _OPAQUE
            info = proto.value_info.add()
            info.name = self._name(node.outputs[0])
            _write_type(info, self._corrected[node.outputs[0]])
            return
        if _is_cast_to_bool(node):
            # Of the same sizes. Through a cast, inference takes numbers along that truth values do not have.
            copy.op_type = "Equal"
            copy.input.extend(map(self._name, node.inputs))
            return
        for attribute in node.attributes.values():
            self._attribute(attribute, copy)
        for value in node.outputs if domain not in _INFERRED_DOMAINS else ():
            if value.name and not value.is_graph_output() and self._known(value) is not None:
                self._info(proto.value_info.add(), value)

    def _attribute(self, attribute: ir.Attr, node: onnx.NodeProto) -> None:
        if attribute.type == ir.AttributeType.GRAPH:
            copy = node.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPH)
            self._graph(attribute.as_graph(), copy.g)
        elif attribute.type == ir.AttributeType.GRAPHS:
            copy = node.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPHS)
            for body in attribute.as_graphs():
                self._graph(body, copy.graphs.add())
        elif attribute.type != ir.AttributeType.TENSOR or _is_small(attribute.as_tensor()):
            # `to_proto` would first hold it against six protocols, which takes most of the time of inference.
            write = ir.serde.serialize_reference_attribute if attribute.is_ref() else ir.serde.serialize_attribute
            node.attribute.append(write(attribute))

    def _output(self, info: onnx.ValueInfoProto, value: ir.Value) -> None:
        """The shape of an output is inferred like any other: what the file declares need not be true."""
        self._info(info, value)
        producer = value.producer()
        if producer is not None and producer.domain in _INFERRED_DOMAINS:
            info.type.tensor_type.ClearField("shape")

    def _info(self, info: onnx.ValueInfoProto, value: ir.Value) -> None:
        info.name = self._name(value)
        known = self._known(value)
        if known is None:
            if value.type is not None:
                ir.serde.serialize_type_into(info.type, value.type)
            return
        _write_type(info, known)

    def read_back(self, graph: onnx.GraphProto) -> Iterable[tuple[ir.Value, TensorType]]:
        for info in (*graph.value_info, *graph.output):
            type_ = _tensor_type(info.type)
            if type_ is not None and info.name in self._values:
                yield self._values[info.name], type_
        for node in graph.node:
            for body in bodies_of(node):
                yield from self.read_back(body)


def _spared(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """`function`, with the ops that inference would not survive made unknown ones."""
    pending = [*function.node]
    for node in pending:  # It grows.
        if (node.domain, node.op_type) in _FATAL:
            node.domain = _OPAQUE
        pending += [inner for body in bodies_of(node) for inner in body.node]
    if any(node.domain == _OPAQUE for node in pending):
        function.opset_import.add(domain=_OPAQUE, version=1)
    return function


def _is_cast_to_bool(node: ir.Node) -> bool:
    to = node.attributes.get("to") if node.op_type == "Cast" and node.domain == "" else None
    return to is not None and not to.is_ref() and to.value == int(ir.DataType.BOOL)


def _write_type(info: onnx.ValueInfoProto, type_: TensorType) -> None:
    tensor = info.type.tensor_type
    tensor.elem_type = int(DATA_TYPES[type_.dtype])
    if type_.shape is None:
        return
    tensor.shape.SetInParent()
    for size in type_.shape:
        dim = tensor.shape.dim.add()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def _is_small(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    limit = _SMALL_INTEGERS if tensor.dtype.is_integer() else _SMALL_OTHERS
    return tensor.nbytes <= limit


def _tensor_type(proto: onnx.TypeProto) -> TensorType | None:
    tensor = proto.tensor_type
    dtype = NAMES.get(tensor.elem_type) if proto.HasField("tensor_type") else None
    if dtype is None:
        return None
    if not tensor.HasField("shape"):
        return TensorType(dtype, None)
    return TensorType(dtype, tuple(_dim(d) for d in tensor.shape.dim))


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None
