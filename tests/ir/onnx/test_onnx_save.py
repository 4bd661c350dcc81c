"""Saving: whole or not at all, weights streamed, external data beside the model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx_helpers import parse, run, same
from test_onnx_load import external, normalised, rich_model

from graphopt.compiler import lower, optimize
from graphopt.errors import ModelError
from graphopt.ir.onnx import save
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.onnx.save import Carried, save_model
from graphopt.ir.weights import ArrayRef, LazyRef, as_ref

X = np.ones((2, 1024), np.float32)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_saved_model_is_what_was_loaded(tmp_path: Path):
    onnx.save(rich_model(), tmp_path / "a.onnx")
    load_onnx(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
    assert normalised(onnx.load(tmp_path / "b.onnx")) == normalised(onnx.load(tmp_path / "a.onnx"))
    assert (tmp_path / "b.onnx").stat().st_size <= (tmp_path / "a.onnx").stat().st_size
    assert names(tmp_path) == ["a.onnx", "b.onnx"]


def test_saving_over_the_loaded_file(tmp_path: Path):
    path = external(tmp_path)
    model = load_onnx(path)
    model.save(path)
    np.testing.assert_array_equal(run(onnx.load(path), {"x": X})[0][0], np.arange(1024))


def test_small_model_takes_its_external_data_in(tmp_path: Path):
    model = load_onnx(external(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    model.save(tmp_path / "out" / "m.onnx")
    assert names(tmp_path / "out") == ["m.onnx"]
    assert same(
        run(onnx.load(tmp_path / "out" / "m.onnx"), {"x": X}), [X * np.arange(1024, dtype=np.float32)]
    )


def test_big_model_gets_external_data(tmp_path: Path):
    path = tmp_path / "big.onnx"
    model = load_onnx(external(tmp_path / "in"))
    save_model(model.ir, path, Carried(), limit=1000)
    assert names(tmp_path) == ["big.onnx", "big.onnx.data", "in"]
    (tensor,) = onnx.load(path, load_external_data=False).graph.initializer
    assert {e.key: e.value for e in tensor.external_data}["location"] == "big.onnx.data"
    np.testing.assert_array_equal(
        numpy_helper.to_array(onnx.load(path).graph.initializer[0]), np.arange(1024)
    )


def test_saving_over_the_data_that_is_being_read(tmp_path: Path):
    path = tmp_path / "m.onnx"
    save_model(load_onnx(external(tmp_path / "in")).ir, path, Carried(), limit=1000)
    model = load_onnx(path)
    region = model.main
    (node,) = region.nodes()
    w = region.constant(node.inputs[1])
    first, _ = region.add_constant(ArrayRef(np.full(1024, 3, np.float32)), "first")
    moved, _ = region.add_constant(w, "moved")
    (new,), _, _ = region.insert("add", [node.inputs[1], moved], {}, before=node, types=[None])
    (new,), _, _ = region.insert("mul", [first, new], {}, before=node, types=[None])
    region.replace(
        node.outputs[0], region.insert("mul", [node.inputs[0], new], {}, before=node, types=[None])[0][0]
    )
    region.remove(node)
    for _ in range(2):
        save_model(model.ir, path, Carried(), limit=1000)
        assert same(run(onnx.load(path), {"x": X}), [X * 6 * np.arange(1024, dtype=np.float32)])
    model.refresh()
    assert region.constant(moved).numpy()[7] == 7


def beside_data_of_another_name(folder: Path) -> Path:
    """A model whose Constant, whose small weight and whose large one lie in what is the data file of `m.onnx`."""
    external(folder)
    (folder / "m.onnx").unlink()
    (folder / "m.data").rename(folder / "m.onnx.data")
    text = """
    g (float[n,1024] x) => (float[n,1024] y)
    { a = Mul(x, w)  k = Constant <value = float[1] {0}> ()  b = Mul(a, k)  y = Mul(b, s) }
    """
    proto = parse(text)
    (constant,) = (node.attribute[0].t for node in proto.graph.node if node.op_type == "Constant")
    constant.ClearField("float_data")
    proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1024])
    proto.graph.initializer.add(name="s", data_type=onnx.TensorProto.FLOAT, dims=[1])
    for tensor, offset in ((constant, 12), (proto.graph.initializer[0], 0), (proto.graph.initializer[1], 20)):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="m.onnx.data")
        tensor.external_data.add(key="offset", value=str(offset))
        tensor.external_data.add(key="length", value=str(4 * tensor.dims[0]))
    path = folder / "original.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["m.onnx", "original.onnx"])
def test_data_that_the_model_reads_is_not_replaced(tmp_path: Path, name: str):
    """As when what an exporter wrote as m.onnx and m.onnx.data was renamed, and its result is to have that name."""
    path = beside_data_of_another_name(tmp_path)
    model = load_onnx(path)
    before = (tmp_path / "m.onnx.data").read_bytes()
    for _ in range(2):
        save_model(model.ir, tmp_path / name, Carried(), limit=1000)
        for file in (path, tmp_path / name):
            assert same(run(onnx.load(file), {"x": X}), [X * 15 * np.arange(1024, dtype=np.float32)])
        assert (tmp_path / "m.onnx.data").read_bytes() == before
    added = "m.onnx.1.data" if name == "m.onnx" else "original.onnx.data"
    assert names(tmp_path) == sorted({"m.onnx.data", "original.onnx", name, added})


@pytest.mark.parametrize("saved", [False, True])
def test_data_of_which_the_replaced_model_knows_nothing_is_not_replaced(tmp_path: Path, saved: bool):
    """It may be of any model: here of the original, which was renamed, while its result was saved and is loaded."""
    path, result = beside_data_of_another_name(tmp_path), tmp_path / "m.onnx"
    before = (tmp_path / "m.onnx.data").read_bytes() + b"more"
    (tmp_path / "m.onnx.data").write_bytes(before)
    if saved:
        save_model(load_onnx(path).ir, result, Carried(), limit=1000)
    source = load_onnx(result if saved else external(tmp_path / "in"))
    for _ in range(2):
        save_model(source.ir, result, Carried(), limit=1000)
        assert (tmp_path / "m.onnx.data").read_bytes() == before
        scale = 15 if saved else 1
        assert same(run(onnx.load(result), {"x": X}), [X * scale * np.arange(1024, dtype=np.float32)])


def test_data_that_weights_are_computed_from_is_not_replaced(tmp_path: Path):
    inside = external(tmp_path)
    (tmp_path / "m.data").rename(tmp_path / "m.onnx.data")
    proto = onnx.load(inside, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "m.onnx.data"
    proto.graph.node.add(op_type="Mul", input=["z", "w"], output=["y"])
    proto.graph.node[0].output[0] = "z"
    inside.write_bytes(proto.SerializeToString())
    result = optimize(inside, "clean-up")
    model = load_onnx(result.model)
    region = model.main
    for node in list(region.nodes()):
        doubled, _ = region.add_constant(region.constant(node.inputs[1]) * as_ref(np.float32(2)), "doubled")
        new, _, _ = region.insert("mul", [node.inputs[0], doubled], {}, before=node, types=[None])
        region.replace(node.outputs[0], new[0])
        region.remove(node)
    model.refresh()
    again, expected = load_onnx(model.export()), [X * 4 * np.arange(1024, dtype=np.float32) ** 2]
    with pytest.raises(ModelError, match="weights of the model lie in this file"):
        again.save(tmp_path / "m.onnx.data")
    for _ in range(2):
        save_model(again.ir, inside, Carried(), limit=1000)
        assert same(run(onnx.load(inside), {"x": X}), expected)


@pytest.mark.parametrize("limit", [-1, 10**9])
def test_empty_tensor_in_a_file_is_taken_in(tmp_path: Path, limit: int):
    """As onnx.save writes it with a threshold of 0."""
    proto = parse("g (float[2,1024] x) => (float[2,1024] y) { y = Concat<axis = 0>(x, e) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 1024), np.float32), "e"))
    onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=0)
    model = load_onnx(tmp_path / "in.onnx")
    assert isinstance(model.ir.graph.initializers["e"].const_value, ir.ExternalTensor)
    save_model(model.ir, tmp_path / "m.onnx", Carried(), limit=limit)
    assert same(run(onnx.load(tmp_path / "m.onnx"), {"x": X}), [X])


def test_tensors_that_attributes_list_are_taken_in(tmp_path: Path):
    proto = onnx.load(external(tmp_path / "in"), load_external_data=False)
    attribute = proto.graph.node[0].attribute.add(name="tables", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(proto.graph.initializer[0])
    (tmp_path / "in" / "m.onnx").write_bytes(proto.SerializeToString())
    model = load_onnx(tmp_path / "in" / "m.onnx")
    for limit in (1000, 10**9):
        save_model(model.ir, tmp_path / "m.onnx", Carried(), limit=limit)
        (tensor,) = onnx.load(tmp_path / "m.onnx").graph.node[0].attribute[0].tensors
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), np.arange(1024))


def test_weights_of_the_loaded_file_are_not_overwritten_by_the_model(tmp_path: Path):
    model = load_onnx(external(tmp_path))
    (data,) = (file for file in tmp_path.iterdir() if file.suffix != ".onnx")
    before = data.read_bytes()
    with pytest.raises(ModelError, match="weights of the model lie in this file; choose another name"):
        model.save(data)
    assert data.read_bytes() == before


@pytest.mark.parametrize("limit", [10, 10**9])
@pytest.mark.parametrize("existing", [True, False])
def test_failure_leaves_nothing_behind(tmp_path: Path, limit: int, existing: bool):
    path = tmp_path / "m.onnx"
    model = load_onnx(parse("g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }"))
    if existing:
        path.write_bytes(b"old"), (tmp_path / "m.onnx.data").write_bytes(b"old data")

    def broken() -> np.ndarray:
        raise RuntimeError("weights cannot be computed")

    model.main.add_constant(LazyRef("float32", (1024,), broken, object()), "broken")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RuntimeError):
        save_model(model.ir, path, Carried(), limit=limit)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("existing", [True, False])
def test_failing_move_of_the_second_file_takes_the_first_back(tmp_path: Path, monkeypatch, existing: bool):
    path = tmp_path / "m.onnx"
    source = load_onnx(external(tmp_path / "in"))
    if existing:
        save_model(source.ir, path, Carried(), limit=1000)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    real = save.os.replace

    def replace(a, b):
        if Path(b) == path:
            raise OSError("disk full")
        real(a, b)

    monkeypatch.setattr(save.os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        save_model(source.ir, path, Carried(), limit=1000)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_int4_and_bfloat16_constants_are_saved_packed(tmp_path: Path):
    import ml_dtypes

    model = load_onnx(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=21))
    for dtype in (ml_dtypes.int4, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        array = np.arange(-4, 4).astype(dtype)
        value, _ = model.main.add_constant(ArrayRef(array), np.dtype(dtype).name)
        model.main.insert("custom::Keep", [value], {}, before=next(model.main.nodes()), types=[None])
    model.save(tmp_path / "m.onnx")
    again = load_onnx(tmp_path / "m.onnx")
    for name, value in again.ir.graph.initializers.items():
        array = again.main.constant(value).numpy()
        assert array.dtype.name == name
        np.testing.assert_array_equal(array.astype(np.float32), np.arange(-4, 4))
    assert again.ir.graph.initializers["int4"].const_value.nbytes == 4


def test_weights_are_listed_once_each():
    text = """
    g (float[2] x) => (y) <float[2] w = {1,2}>
    { a = Add(x, w)  c = Constant <value = int64[1] {3}> ()  y = Reshape(a, c) }
    """
    assert load_onnx(parse(text)).weights() == [("w", 2, 8), ("c", 1, 8)]


def test_metadata_of_tensors_is_written_once():
    model = parse("g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }")
    model.graph.initializer[0].metadata_props.add(key="a", value="b")
    for _ in range(2):
        model = load_onnx(model).export()
    assert [(p.key, p.value) for p in model.graph.initializer[0].metadata_props] == [("a", "b")]


@pytest.mark.parametrize(("content", "reason"), [(None, "is missing"), (b"short", "is truncated")])
@pytest.mark.parametrize("size", [4096, 1 << 18])
def test_data_that_has_changed_since_is_named(tmp_path: Path, content: bytes | None, reason: str, size: int):
    inside = external(tmp_path / "in")
    if size > 4096:
        proto = onnx.load(inside, load_external_data=False)
        proto.graph.initializer[0].dims[:] = [size // 4096, 1024]
        proto.graph.initializer[0].external_data[2].value = str(size)
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        inside.write_bytes(proto.SerializeToString())
        inside.with_name("m.data").write_bytes(bytes(size))
    result = optimize(inside, "clean-up")
    data = inside.with_name("m.data")
    data.unlink() if content is None else data.write_bytes(content)
    (tmp_path / "out").mkdir()
    for write in (lambda: result.save(tmp_path / "out" / "m.onnx"), result.lower):
        with pytest.raises(ModelError, match=f"changed since it was loaded.*'w' {reason}.*m.data"):
            write()
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("limit", [1000, 10**9])
def test_data_that_was_written_anew_is_not_mixed_with_the_old(tmp_path: Path, limit: int):
    """As when the model is exported again under the name that it was loaded from."""
    model = load_onnx(external(tmp_path / "in"))
    data = tmp_path / "in" / "m.data"
    data.write_bytes(bytes(4096))
    os.utime(data, ns=(0, 1))
    for write in (lambda: save_model(model.ir, tmp_path / "m.onnx", Carried(), limit=limit), lambda: lower(model)):
        with pytest.raises(ModelError, match="has changed since.*m.data.*'w' lies, has been written.*; load it again"):
            write()
    assert names(tmp_path) == ["in"]


def test_folder_that_does_not_exist_is_named(tmp_path: Path):
    model = load_onnx(rich_model())
    with pytest.raises(ModelError, match="the folder .*none does not exist"):
        model.save(tmp_path / "none" / "m.onnx")
    with pytest.raises(ModelError, match="got a folder"):
        model.save(tmp_path)
    assert names(tmp_path) == []


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path):
    """As /dev/null would be by root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match="got a device or a pipe"):
        load_onnx(rich_model()).save(pipe)
    assert pipe.is_fifo() and names(tmp_path) == ["pipe"]
