"""What onnx and onnxruntime know of a single node: the types of its results, its body as a function, its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from graphopt.ir.graph import TensorType
from graphopt.ir.onnx.dtypes import DATA_TYPES, NAMES
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.verify.division import guarded

Types = Sequence[TensorType | None]
"""Of the operands of a node; None for an absent one."""
_SMALL = 4096
"""Bytes of an operand up to which inference is given its numbers."""
_RUNTIME_IR = 10
"""The file format that single nodes are handed to onnxruntime in."""


def result_types(node: ir.Node, opsets: Mapping[str, int], types: Types, data: Sequence[Array | None]) -> list[Any]:
    """A TensorType for each result of `node`, or None where onnx cannot infer it."""
    unknown: list[Any] = [None] * len(node.outputs)
    try:
        schema = onnx.defs.get_schema(node.op_type, version(opsets, node.domain), node.domain)
        proto = _renamed(node)
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {f"i{i}": _type_proto(t) for i, t in enumerate(types) if t is not None},
            {f"i{i}": onnx.numpy_helper.from_array(d, f"i{i}") for i, d in enumerate(data) if _is_small(d)},
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except Exception:  # noqa: BLE001  types are optional, and inference raises many things
        return unknown
    return [_tensor_type(found.get(f"o{i}")) for i in range(len(node.outputs))]


def version(opsets: Mapping[str, int], domain: str) -> int:
    return opsets.get(domain) or opsets.get("ai.onnx" if domain == "" else domain, 1)


def said(node: ir.Node, opsets: Mapping[str, int]) -> str:
    """All that tells what function of its operands a node is, but for its bodies."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version(opsets, node.domain), node.domain)
        since = schema.since_version
        counted = any(o.option == onnx.defs.OpSchema.FormalParameterOption.Variadic for o in schema.outputs)
    except onnx.defs.SchemaError:
        since, counted = version(opsets, node.domain), True
    plain = [a for a in _renamed(node).attribute if not (a.HasField("g") or a.graphs)]
    fields = sorted(a.SerializeToString(deterministic=True) for a in plain)
    # How many results a Split has says how large they are, where nothing else does.
    results = f" of {len(node.outputs)}" if counted else ""
    return f"{node.domain}::{node.op_type} {node.overload} {since} {fields!r}{results}"


def expansion(node: ir.Node, opsets: Mapping[str, int], types: Types) -> ir.Model | None:
    """The body of the function that onnx defines `node` by, with inputs i0, i1 ... and outputs o0, o1 ...; None if
    there is none."""
    pairs = tuple(sorted((d if d != "ai.onnx" else "", v) for d, v in opsets.items()))
    found: ir.Model | None = _expanded(_renamed(node).SerializeToString(deterministic=True), pairs, tuple(types))
    return found


@lru_cache(maxsize=512)
def _expanded(node: bytes, opsets: tuple[tuple[str, int], ...], types: tuple[TensorType | None, ...]) -> Any:
    proto = onnx.NodeProto.FromString(node)
    try:
        schema = onnx.defs.get_schema(proto.op_type, dict(opsets).get(proto.domain, 1), proto.domain)
    except onnx.defs.SchemaError:
        return None
    if not (schema.has_function or schema.has_context_dependent_function):
        return None
    model = _model([proto], opsets, types)
    try:
        body = onnx.inliner.inline_selected_functions(
            model, [(proto.domain, proto.op_type)], exclude=False, inline_schema_functions=True
        )
        if any((n.domain, n.op_type) == (proto.domain, proto.op_type) for n in body.graph.node):
            return None
        return ir.from_proto(body)
    except Exception:  # noqa: BLE001  onnx has no common error for bodies that it cannot build
        return None


def executed(
    node: ir.Node, opsets: Mapping[str, int], types: Types, data: Sequence[Array | None]
) -> list[Array] | None:
    """The results of `node` as onnxruntime computes them; None if it cannot."""
    from graphopt.verify.execute import CannotRun, _run_session, _session

    pairs = tuple((d if d != "ai.onnx" else "", v) for d, v in opsets.items())
    model = _model([_renamed(node)], pairs, types)
    given = {f"i{i}": d for i, d in enumerate(data) if d is not None}
    narrow = _widen_bfloat16(model, result_types(node, opsets, types, data))
    given = {name: d.astype(np.float32) if d.dtype.name == "bfloat16" else d for name, d in given.items()}
    try:
        session = _session((guarded(model) or model).SerializeToString())
        if not all(o.type.startswith("tensor") for o in session.get_outputs()):
            return None
        results = _run_session(session, list(given), list(given.values()))
        return [r.astype(numpy_dtype("bfloat16")) if i in narrow else r for i, r in enumerate(results)]
    except CannotRun:
        return None
    except Exception:  # noqa: BLE001  onnxruntime's errors have no common base
        return None


def _widen_bfloat16(model: onnx.ModelProto, results: Sequence[TensorType | None]) -> set[int]:
    """Let operands and results of bfloat16, which onnxruntime gives no numpy array of, cross the border as the float32
    that they are; returns which outputs these are."""
    graph, node = model.graph, onnx.helper.make_node
    first = []
    for operand in graph.input:
        if operand.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            operand.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
            first.append(node("Cast", [operand.name], [f"narrow {operand.name}"], to=onnx.TensorProto.BFLOAT16))
    for name in [n.input[0] for n in first]:
        for place, known in enumerate(graph.node[0].input):
            if known == name:
                graph.node[0].input[place] = f"narrow {name}"
    narrow = set()
    for i, output in enumerate(graph.output):
        type_ = results[int(output.name[1:])]
        if type_ is not None and type_.dtype == "bfloat16":
            narrow.add(i)
            graph.node.append(node("Cast", [output.name], [f"wide {output.name}"], to=onnx.TensorProto.FLOAT))
            output.name = f"wide {output.name}"
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *own])
    return narrow


def _renamed(node: ir.Node) -> onnx.NodeProto:
    """`node` alone, its operands called i0, i1 ... and its results o0, o1 ..."""
    proto = ir.to_proto(node)
    inputs = [f"i{i}" if v is not None else "" for i, v in enumerate(node.inputs)]
    while inputs and not inputs[-1]:
        inputs.pop()
    del proto.input[:], proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(f"o{i}" if v.name else "" for i, v in enumerate(node.outputs))
    proto.name = proto.doc_string = ""
    del proto.metadata_props[:]
    return proto


def _model(
    nodes: Sequence[onnx.NodeProto], opsets: tuple[tuple[str, int], ...], types: Sequence[TensorType | None]
) -> onnx.ModelProto:
    model = onnx.ModelProto(ir_version=_RUNTIME_IR)
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in opsets)
    model.graph.name = "node"
    model.graph.node.extend(nodes)
    for i, type_ in enumerate(types):
        if type_ is not None:
            model.graph.input.add(name=f"i{i}").type.CopyFrom(_type_proto(type_))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for n in nodes for name in n.output if name)
    return model


def _is_small(data: Array | None) -> bool:
    return data is not None and data.nbytes <= _SMALL and data.dtype.kind in "biuf"


def _type_proto(type_: TensorType) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(int(DATA_TYPES[type_.dtype]), type_.shape)


def _tensor_type(proto: onnx.TypeProto | None) -> TensorType | None:
    if proto is None or not proto.HasField("tensor_type"):
        return None
    dtype = NAMES.get(proto.tensor_type.elem_type)
    if dtype is None:
        return None
    if not proto.tensor_type.HasField("shape"):
        return TensorType(dtype, None)
    dims = proto.tensor_type.shape.dim
    return TensorType(dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in dims))


def array_of(value: Any, dtype: str) -> Array:
    """A concrete tensor in the dtype that the file gives it."""
    return np.asarray(value).astype(numpy_dtype(dtype), copy=False)
