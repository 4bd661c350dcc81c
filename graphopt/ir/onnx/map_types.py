"""Types of maps, such as the probabilities by class that ZipMap gives: onnx_ir has none. They are set aside on import,
noted in memory, and declared again wherever the model is written; to passes these values are of unknown type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.onnx.bodies import bodies_of

_NOTED = "graphopt.map_types"
"""Key under which a model notes them; it is not written into the file."""


def without_map_types(proto: onnx.ModelProto, where: str) -> tuple[onnx.ModelProto, Mapping[str, onnx.TypeProto]]:
    """`proto` itself if it declares no map, else a copy in which these values have no type; and the types by name.

    Raises UnsupportedError for one in a body or a function, which could not be told from others of its name.
    """
    if not any(_has_map(info.type) for info in _infos(proto)):
        return proto, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    types = {}
    for info in _infos_of(copy.graph):
        if _has_map(info.type):
            types[info.name] = onnx.TypeProto.FromString(info.type.SerializeToString())
            info.ClearField("type")
    for info in _infos(copy):
        if _has_map(info.type):
            raise UnsupportedError(
                f"{where}: {info.name!r}, a value in a body or a function, is declared as a map; expected maps in the "
                "main graph only; leave that declaration out"
            )
    return copy, types


def note_map_types(model: ir.Model, types: Mapping[str, onnx.TypeProto]) -> None:
    """Let `types` be those of the values of `model` that have these names."""
    if types:
        model.meta[_NOTED] = dict(types)


def declare_map_types(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Say in `proto`, which `model` was written as, what is noted of the maps that it still has."""
    types: Mapping[str, onnx.TypeProto] = model.meta.get(_NOTED, {})
    if not types:
        return
    declared = {info.name: info for info in _infos_of(proto.graph)}
    present = declared.keys() | {name for node in proto.graph.node for name in node.output}
    for name in types.keys() & present:
        (declared[name] if name in declared else proto.graph.value_info.add(name=name)).type.CopyFrom(types[name])


def _has_map(type_: onnx.TypeProto) -> bool:
    kind = type_.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _has_map(getattr(type_, kind).elem_type)
    return bool(kind == "map_type")


def _infos(proto: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from _infos_below(proto.graph)
    for function in proto.functions:
        yield from function.value_info
        yield from _infos_in(function.node)


def _infos_below(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from _infos_of(graph)
    yield from _infos_in(graph.node)


def _infos_of(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.output
    yield from graph.value_info


def _infos_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.ValueInfoProto]:
    for node in nodes:
        for body in bodies_of(node):
            yield from _infos_below(body)
