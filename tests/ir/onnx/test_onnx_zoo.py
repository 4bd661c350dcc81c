"""Real models: loaded, read, exported without a difference. Files are looked up in the folder
GRAPHOPT_ZOO."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from graphopt.ir.graph import Call, Graph
from graphopt.ir.onnx.load import load_onnx

FOLDER = os.environ.get("GRAPHOPT_ZOO")
FILES = sorted(Path(FOLDER).rglob("*.onnx")) if FOLDER else []

pytestmark = [pytest.mark.zoo, pytest.mark.skipif(not FOLDER, reason="GRAPHOPT_ZOO is not set")]


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with every tensor's data in one encoding and empty fields left out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    imports = {
        ("" if entry.domain == "ai.onnx" else entry.domain, entry.version) for entry in copy.opset_import
    }
    del copy.opset_import[:]
    for domain, version in sorted(imports):
        copy.opset_import.add(domain=domain, version=version)
    properties = sorted(copy.metadata_props, key=lambda p: p.key)
    del copy.metadata_props[:]
    copy.metadata_props.extend(properties)
    _strip_graph(copy.graph)
    for name in ("producer_name", "producer_version", "domain", "doc_string"):
        if not getattr(copy, name):
            copy.ClearField(name)
    if not copy.model_version:
        copy.ClearField("model_version")
    return copy


def _strip_graph(graph: onnx.GraphProto) -> None:
    if not graph.doc_string:
        graph.ClearField("doc_string")
    produced = {name for node in graph.node for name in node.output} | {t.name for t in graph.initializer}
    interface = {v.name for v in (*graph.input, *graph.output)}
    infos = sorted((v for v in graph.value_info if v.name in produced - interface), key=lambda v: v.name)
    del graph.value_info[:]
    graph.value_info.extend(infos)
    for tensor in graph.initializer:
        _strip_tensor(tensor)
    for info in (*graph.input, *graph.output, *graph.value_info):
        _strip_info(info)
    for node in graph.node:
        for name in ("name", "domain", "doc_string", "overload"):
            if not getattr(node, name) or (name == "domain" and node.domain == "ai.onnx"):
                node.ClearField(name)
        while node.output and not node.output[-1]:
            node.output.pop()
        for attribute in node.attribute:
            if not attribute.doc_string:
                attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            if attribute.HasField("t"):
                _strip_tensor(attribute.t)


def _strip_info(info: onnx.ValueInfoProto) -> None:
    if not info.doc_string:
        info.ClearField("doc_string")
    if not info.type.WhichOneof("value"):
        info.ClearField("type")
        return
    for dim in info.type.tensor_type.shape.dim:
        if not dim.WhichOneof("value") or dim.dim_param == "":
            dim.ClearField("dim_param") if not dim.HasField("dim_value") else None


def _strip_tensor(tensor: TensorProto) -> None:
    if tensor.data_type != TensorProto.STRING:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_model_survives_a_round_trip(path: Path, tmp_path: Path):
    original = onnx.load(path)
    assert stripped(load_onnx(original).export()) == stripped(original)
    saved = tmp_path / "saved.onnx"
    load_onnx(path).save(saved)
    assert stripped(onnx.load(saved)) == stripped(original)
    assert saved.stat().st_size <= path.stat().st_size * 1.01


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.parent.name)
def test_every_node_answers(path: Path):
    for region in load_onnx(path).regions():
        for node in region.nodes():
            call = region.call(node)
            assert isinstance(call, Call) or call.reason
            assert not isinstance(call, Call) or (call.op == region.key(node) and region.is_pure(node))
            assert region.node_name(node)


def census(regions: list[Graph]) -> tuple[int, int]:
    nodes = [(r, n) for r in regions for n in r.nodes() if n.op_type != "Constant"]
    return sum(isinstance(r.call(n), Call) for r, n in nodes), len(nodes)


def test_most_nodes_of_real_models_can_be_read():
    counts = [census(load_onnx(path).regions()) for path in FILES]
    assert sum(read for read, _ in counts) / sum(total for _, total in counts) > 0.96
