"""Every refusal is a GraphoptError that says what, where, what was expected, what was found and what to do next;
the user's files are as they were, and nothing is left behind."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import errors
from graphopt.errors import GraphoptError, MissingExtraError, ModelError, PipelineError, RegistryError

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[n,3,8,8] x) => (float[n,4,8,8] y) {
    c = Conv<pads = [1,1,1,1]>(x, w)
    b = BatchNormalization(c, scale, shift, mean, var)
    y = Relu(b)
}
"""


def model() -> onnx.ModelProto:
    made = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "var": (4,)}
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.uniform(0.5, 1.5, shape).astype(np.float32), name))
    return made


def external(folder: Path, location: str = "m.data") -> Path:
    """The model with its weights in `location`, which is not checked."""
    made = model()
    data = b""
    for tensor in made.graph.initializer:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(data)), ("length", len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    (folder / "m.data").write_bytes(data)
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` with a hash of what is in it; links are not followed."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it once the files are there: at the end they must be as they are now, and no others beside them."""
    before: list[dict[str, str]] = []
    (tmp_path / "cwd").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield lambda: before.append(contents(tmp_path))
    for state in before:
        assert contents(tmp_path) == state


def refused(kind: type[GraphoptError], action: Callable[[], Any], *parts: str) -> str:
    """The message of the error of `action`, in which every part occurs."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value).__module__.startswith("graphopt.")
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


# ---- the tree ------------------------------------------------------------------------------------


def test_every_error_class_is_under_the_root_and_documented():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) == 9
    for class_ in classes:
        assert issubclass(class_, GraphoptError)
        assert class_.__doc__
        assert getattr(graphopt, class_.__name__) is class_


# ---- not a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"This is a text about models.\n", bytes(1000), os.urandom(4096), b"\x80\x04\x95", b"PK\x03\x04" + bytes(60)],
    ids=["empty", "text", "zeros", "random", "pickle", "zip"],
)
def test_file_that_is_no_model(tmp_path: Path, untouched, content: bytes):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    untouched()
    refused(ModelError, lambda: graphopt.optimize(path), "x.onnx", "expected", "export")


def test_random_bytes_are_never_a_crash_nor_a_model(tmp_path: Path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.onnx"
    for size in rng.integers(1, 300, 200):
        # Half of them start as a model does.
        head = b"\x08\x08" if size % 2 else b""
        path.write_bytes(head + rng.integers(0, 256, size, np.uint8).tobytes())
        refused(ModelError, lambda: graphopt.load(path), "x.onnx", "expected")


def test_folder_instead_of_a_file(tmp_path: Path, untouched):
    untouched()
    refused(ModelError, lambda: graphopt.optimize(tmp_path), str(tmp_path), "cannot be read", "expected an ONNX file")


def test_missing_file(tmp_path: Path, untouched):
    untouched()
    refused(ModelError, lambda: graphopt.optimize(tmp_path / "no.onnx"), "no.onnx: no such file", "check the path")


@pytest.mark.parametrize("source", [None, 42, b"bytes", {"a": 1}, np.ones(3), object, lambda x: x])
def test_object_that_is_no_model(source: Any):
    message = refused(ModelError, lambda: graphopt.optimize(source), "expected", "onnx.ModelProto")
    assert type(source).__qualname__ in message


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt", ".PT"])
def test_pickled_file_is_never_opened(tmp_path: Path, untouched, suffix: str):
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Trap()))
    untouched()
    refused(ModelError, lambda: graphopt.optimize(path), path.name, "pickled", "weights_only=True")


# ---- truncated -----------------------------------------------------------------------------------


def test_model_that_ends_early_is_refused_wherever_it_ends(tmp_path: Path):
    data, path = model().SerializeToString(), tmp_path / "x.onnx"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        refused(ModelError, lambda: graphopt.load(path), "x.onnx", "expected")


def test_model_with_a_flipped_byte_is_refused_or_whole(tmp_path: Path):
    """Data of weights cannot be checked; whatever is taken in can be written and read by onnx."""
    data, path = model().SerializeToString(), tmp_path / "x.onnx"
    rng = np.random.default_rng(0)
    accepted = 0
    for place in rng.choice(len(data), 400, replace=False):
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            graphopt.optimize(path, "fuse-conv-bn", verify="structure").save(tmp_path / "out.onnx")
        except ModelError as error:
            assert "x.onnx" in str(error) or "not UTF-8" in str(error)
            continue
        accepted += 1
        onnx.load(tmp_path / "out.onnx")
    assert 0 < accepted < 400


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.dims.append(2), "has 432 bytes of data; expected 864"),
        (lambda t: t.ClearField("raw_data"), "has 0 elements of data; expected 108"),
        (lambda t: setattr(t, "data_type", onnx.TensorProto.FLOAT16), "has 432 bytes of data; expected 216"),
        (lambda t: setattr(t, "data_type", 99), "unknown element type 99"),
        (lambda t: t.dims.__setitem__(0, -4), "negative size"),
        (lambda t: t.dims.extend([1] * 61), "has 65 axes"),
        (lambda t: setattr(t, "data_type", onnx.TensorProto.STRING), "raw bytes"),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "body"])
def test_tensor_whose_data_is_not_what_it_says(change: Callable[[Any], Any], part: str, place: str):
    made = model()
    tensor = made.graph.initializer[0]
    if place != "initializer":
        node = onnx.helper.make_node("Constant", [], ["k"], value=tensor)
        made.graph.node.insert(0, node)
        tensor = made.graph.node[0].attribute[0].t
    if place == "body":
        body = onnx.helper.make_graph([made.graph.node[0]], "body", [], [])
        made.graph.node.insert(0, onnx.helper.make_node("If", ["x"], ["l"], then_branch=body, else_branch=body))
        tensor = made.graph.node[0].attribute[0].g.node[0].attribute[0].t
    change(tensor)
    refused(ModelError, lambda: graphopt.optimize(made), "the ModelProto", "'w'", part, "expected", "export it again")


# ---- external data -------------------------------------------------------------------------------


def test_missing_external_data(tmp_path: Path, untouched):
    path = external(tmp_path)
    (tmp_path / "m.data").unlink()
    untouched()
    refused(
        ModelError, lambda: graphopt.optimize(path), "m.onnx", "'w'", "expected the file", "m.data", "put it beside"
    )


def test_short_external_data(tmp_path: Path, untouched):
    path = external(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-1])
    untouched()
    message = refused(ModelError, lambda: graphopt.optimize(path), "'var'", "truncated", "download it again")
    assert f"expected 16 bytes at offset {len(data) - 16}" in message


@pytest.mark.parametrize(
    "spelling", ["../secret", "sub/../../secret", "{absolute}", "link", "sub/link", "folder/secret"]
)
def test_external_data_outside_of_the_folder(tmp_path: Path, untouched, spelling: str):
    (tmp_path / "secret").write_bytes(bytes(4096))
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "sub" / "link").symlink_to("../../secret")
    (inside / "folder").symlink_to(tmp_path)
    path = external(inside, spelling.format(absolute=tmp_path / "secret"))
    untouched()
    refused(ModelError, lambda: graphopt.optimize(path), "m.onnx", "'w'", "refused", "expected", "copy the data beside")


# ---- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "parts"),
    [
        ("fuse-conv-bm", ["unknown pass 'fuse-conv-bm'", "did you mean 'fuse-conv-bn'", "clean-up"]),
        ("cleanup", ["unknown pass 'cleanup'", "did you mean 'clean-up'"]),
        ("zzzzzz", ["unknown pass 'zzzzzz'", "known: ", "clean-up", "fuse-conv-bn"]),
        ("clean-up{rounds=many}", ["'clean-up'", "'rounds'", "expected int", "'many'"]),
        ("clean-up{rounds=1.5}", ["'rounds'", "expected int", "'1.5'"]),
        ("clean-up{rounds=0}", ["'clean-up'", "rounds must be at least 1"]),
        ("clean-up{round=2}", ["unknown option 'round'", "did you mean 'rounds'"]),
        ("fuse-conv-bn{forward=perhaps}", ["'forward'", "expected bool", "'perhaps'"]),
        ("fuse-conv-bn{epilogue=true}", ["epilogue=true needs a target", "target='onnxruntime'"]),
        ("clean-up{rounds=", ["position 16", "expected a value", "got the end"]),
        ("clean-up clean-up", ["expected", "got 'c'"]),
        (["clean-up", 7], ["given as text or as an object, not as int", "passes=['clean-up']"]),
        (None, ["given as text"]),
    ],
)
def test_pipeline_that_cannot_be_built(passes: Any, parts: list[str], untouched):
    untouched()
    refused(PipelineError, lambda: graphopt.optimize(model(), passes), *parts)


def test_unknown_names_of_other_things():
    refused(
        PipelineError, lambda: graphopt.optimize(model(), verify="much"), "verify='much'", "expected one of", "match"
    )
    refused(PipelineError, lambda: graphopt.optimize(model(), target="onnxruntim"), "did you mean 'onnxruntime'")
    refused(PipelineError, lambda: graphopt.lower(model(), "tensorrt"), "unknown backend 'tensorrt'", "known: ")
    refused(PipelineError, lambda: graphopt.lower(model(), thread=1), "unknown option 'thread'", "onnxruntime")
    refused(RegistryError, lambda: graphopt.register(object()), "neither a Pass nor a Backend", "derive it from")


# ---- missing packages ----------------------------------------------------------------------------


def test_torch_file_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "program.pt2"
    path.write_bytes(b"PK\x03\x04")
    refused(MissingExtraError, lambda: graphopt.optimize(path), "program.pt2", "pip install graphopt[torch]")


def test_torch_without_the_exporter(monkeypatch: pytest.MonkeyPatch):
    import torch

    real = graphopt.load(torch.nn.Linear(2, 2), example_inputs=torch.ones(1, 2))
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == "onnxscript" else find(n, *a))
    refused(MissingExtraError, lambda: graphopt.lower(real), "onnxscript", "pip install graphopt[torch]")


def test_graphsurgeon_graph_without_graphsurgeon(monkeypatch: pytest.MonkeyPatch):
    import onnx_graphsurgeon

    graph = onnx_graphsurgeon.import_onnx(model())
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    refused(MissingExtraError, lambda: graphopt.optimize(graph), "onnx_graphsurgeon", "pip install", "graphopt[gs]")


# ---- torch ---------------------------------------------------------------------------------------


def test_torch_module_without_example_inputs():
    import torch

    message = refused(ModelError, lambda: graphopt.optimize(torch.nn.Linear(2, 2)), "example_inputs=", "tuple", "dict")
    assert "traced" in message


def test_torch_module_with_inputs_that_do_not_fit():
    import torch

    module = torch.nn.Linear(2, 2)
    refused(ModelError, lambda: graphopt.optimize(module, example_inputs=torch.ones(1, 3)), "Linear", "example inputs")
    refused(ModelError, lambda: graphopt.optimize(module, example_inputs={"y": torch.ones(1, 2)}), "Linear")


def test_file_of_an_exported_program_is_not_opened(tmp_path: Path, untouched):
    path = tmp_path / "program.pt2"
    path.write_bytes(b"PK\x03\x04")
    untouched()
    refused(
        ModelError, lambda: graphopt.optimize(path), "program.pt2", "unpickle", "expected", "torch.export.load(path)"
    )


# ---- saving --------------------------------------------------------------------------------------


@pytest.fixture
def optimised(tmp_path: Path) -> Any:
    onnx.save(model(), tmp_path / "in.onnx")
    return graphopt.optimize(tmp_path / "in.onnx")


class FullDisk(io.FileIO):
    """A file on a disk that is full after 300 bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 300:
            raise OSError(28, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["external", "inside"])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, untouched, monkeypatch: pytest.MonkeyPatch, optimised: Any, existing: bool, limit: int
):
    from graphopt.ir.onnx import save

    monkeypatch.setattr(save, "_INLINE", 16)
    if existing:
        (tmp_path / "out.onnx").write_bytes(b"old")
        (tmp_path / "out.onnx.data").write_bytes(b"old data")
    untouched()
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest: FullDisk(self, mode.replace("b", "")))
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: FullDisk(self, "w").write(data))
    with pytest.raises(OSError, match="No space left"):
        save.save_model(optimised._model.ir, tmp_path / "out.onnx", save.Carried(), limit=limit)


def test_folder_that_is_not_there(tmp_path: Path, untouched, optimised: Any):
    untouched()
    with pytest.raises(ModelError, match="nowhere does not exist"):
        optimised.save(tmp_path / "nowhere" / "out.onnx")


def test_read_only_folder(tmp_path: Path, untouched, monkeypatch: pytest.MonkeyPatch, optimised: Any):
    """Simulated where the file is made, since root may write anywhere."""
    untouched()

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", kwargs.get("dir"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        optimised.save(tmp_path / "out.onnx")


def test_torch_model_on_a_full_disk(tmp_path: Path, untouched, monkeypatch: pytest.MonkeyPatch):
    import torch

    result = graphopt.optimize(torch.nn.Linear(40, 40), example_inputs=torch.ones(1, 40))
    (tmp_path / "out.pt2").write_bytes(b"old")
    untouched()
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest: FullDisk(self, mode.replace("b", "")))
    with pytest.raises(OSError, match="No space left"):
        result.save(tmp_path / "out.pt2")


def test_weights_without_numbers_are_named_and_may_be_looked_at() -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(3, 4)).eval()
        x = torch.ones(2, 3)
    program = torch.export.export(module, (x,))
    for source, example in ((module, x), (program, None)):
        assert graphopt.load(source, example_inputs=example).main.outputs()
        with pytest.raises(graphopt.ModelError, match="'0.weight' has a type and no numbers.*load_state_dict"):
            graphopt.optimize(source, "clean-up", example_inputs=example)
