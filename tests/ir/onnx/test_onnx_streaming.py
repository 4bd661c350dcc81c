"""What is streamed is what protobuf would have written."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_helpers import parse

from graphopt.ir.onnx import save
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.onnx.save import Carried, save_model
from graphopt.ir.onnx.streaming import write_proto


def model_with_weights() -> onnx.ModelProto:
    """Weights of several types and sizes, and something in every field around them."""
    proto = parse("g (float[2] x) => (float[2] y) <float[2] small = {1,2}> { y = Add(x, small) }", opset=21)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([1, 2]), "small"))
    for dtype in (np.float32, ml_dtypes.bfloat16, ml_dtypes.int4, np.int64, np.bool_):
        array = np.arange(600).astype(dtype).reshape(2, 300)
        tensor = numpy_helper.from_array(array, np.dtype(dtype).name)
        tensor.doc_string = "where it comes from"
        tensor.metadata_props.add(key="a", value="b")
        proto.graph.initializer.append(tensor)
    proto.graph.initializer.append(helper.make_tensor("names", onnx.TensorProto.STRING, [1], [b"n" * 5000]))
    proto.doc_string, proto.graph.doc_string = "model", "graph"
    proto.metadata_props.add(key="author", value="me")
    proto.functions.append(
        helper.make_function("custom", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], proto.opset_import)
    )
    return proto


def test_streamed_bytes_are_those_of_protobuf():
    whole = model_with_weights()
    stripped = onnx.ModelProto()
    stripped.CopyFrom(whole)
    large = {}
    for tensor in stripped.graph.initializer:
        if tensor.name not in ("small", "names"):
            large[tensor.name] = ir.serde.deserialize_tensor(
                next(t for t in whole.graph.initializer if t.name == tensor.name)
            )
            tensor.ClearField("raw_data")
    assert len(large) == 5
    file = io.BytesIO()
    write_proto(stripped, large, file)
    assert file.getvalue() == whole.SerializeToString()


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_saved_files_do_not_depend_on_what_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
    model = load_onnx(model_with_weights())
    save_model(model.ir, tmp_path / "a.onnx", Carried())
    monkeypatch.setattr(save, "_STREAMED", limit)
    save_model(model.ir, tmp_path / "b.onnx", Carried())
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "b.onnx"))


@pytest.mark.parametrize("limit", [10, 1 << 30])
def test_documentation_of_weights_survives_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    monkeypatch.setattr(save, "_INLINE", 10)
    model = load_onnx(model_with_weights())
    save_model(model.ir, tmp_path / "a.onnx", Carried(), limit=limit)
    save_model(load_onnx(tmp_path / "a.onnx").ir, tmp_path / "b.onnx", Carried())
    tensors = {t.name: t for t in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert tensors["float32"].doc_string == "where it comes from"
    assert [(p.key, p.value) for p in tensors["float32"].metadata_props] == [("a", "b")]


def test_a_tensor_that_is_not_as_long_as_it_says_is_an_error():
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])

    class Short(ir.Tensor):
        @property
        def nbytes(self) -> int:
            return 20

    with pytest.raises(OSError, match="'w'.*20 bytes"):
        write_proto(proto, {"w": Short(np.ones(4, np.float32), name="w")}, io.BytesIO())
