"""What goes in comes out: the kind, everything that the model says beside its nodes, and an input left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim, ExportedProgram

import graphopt

PASSES = "fuse-conv-bn,clean-up"
TEXT = """
<ir_version: 9, opset_import: ["" : 18, "local" : 1, "com.example" : 3], producer_name: "maker",
 producer_version: "1.2", domain: "com.example", model_version: 7, doc_string: "the model">
net (float[batch,3,height,width] image, bool flag)
    => (float[batch,4,height,width] result, float[batch,4,height,width] aside)
{
    c = Conv<pads = [1,1,1,1]>(image, w)
    b = BatchNormalization(c, scale, shift, mean, var)
    n1 = Neg(b)
    same = Identity(n1)
    f = local.Twice(same)
    result = If(flag) <
        then_branch = yes () => (float[batch,4,height,width] y) { ya = local.Twice(f) yb = Identity(ya) y = Neg(yb) },
        else_branch = no () => (float[batch,4,height,width] z) {
            zc = Conv<pads = [1,1,1,1]>(f, w2)
            z = BatchNormalization(zc, scale, shift, mean, var)
        }
    >
    aside = Relu(n1)
}
<domain: "local", opset_import: ["" : 18]>
Twice (v) => (twice) { i = Identity(v) twice = Add(i, i) }
"""


def model() -> onnx.ModelProto:
    """A model that uses everything that tools tend to lose."""
    made = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "w2": (4, 4, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "var": (4,)}
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.uniform(0.5, 1.5, shape).astype(np.float32), name))
    made.metadata_props.add(key="author", value="me")
    graph = made.graph
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="part", value="all")
    graph.input[0].doc_string = "an image"
    graph.input[0].metadata_props.add(key="colours", value="rgb")
    for node in graph.node:
        node.name = f"{node.op_type}/{node.output[0]}"
        if not node.domain:
            node.ClearField("domain")  # the parser spells it out
    relu = graph.node[-1]
    relu.doc_string = "the last node"
    relu.metadata_props.add(key="namespace", value="head")
    made.functions[0].doc_string = "doubles"
    return made


def with_custom_op() -> onnx.ModelProto:
    made = model()
    made.graph.node.append(
        helper.make_node("Stamp", ["result"], ["stamped"], "stamp", domain="com.example", level=3, mode="fast")
    )
    made.graph.output.append(helper.make_tensor_value_info("stamped", TensorProto.FLOAT, ["batch", "kind"]))
    return made


def run(proto: onnx.ModelProto, **feeds: Any) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_everything_survived(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(after, field) == getattr(before, field)
    assert {o.domain: o.version for o in after.opset_import} == {o.domain: o.version for o in before.opset_import}
    assert list(after.metadata_props) == list(before.metadata_props)
    graph, old = after.graph, before.graph
    assert (graph.name, graph.doc_string) == (old.name, old.doc_string)
    assert list(graph.metadata_props) == list(old.metadata_props)
    assert list(graph.input) == list(old.input)
    assert list(graph.output) == list(old.output)
    (function,) = after.functions
    assert (function.name, function.doc_string) == ("Twice", "doubles")
    assert [n.op_type for n in function.node] == ["Identity", "Add"]
    kept = {n.name: n for n in graph.node}
    assert kept["Relu/aside"] == next(n for n in old.node if n.name == "Relu/aside")
    branch = kept["If/result"]
    assert [a.name for a in branch.attribute] == ["then_branch", "else_branch"]
    assert [[o.name for o in a.g.output] for a in branch.attribute] == [["y"], ["z"]]


def assert_optimised(after: onnx.ModelProto) -> None:
    ops = [n.op_type for n in after.graph.node]
    assert ops.count("BatchNormalization") == 0 and ops.count("Identity") == 0
    bodies = {a.name: [n.op_type for n in a.g.node] for n in after.graph.node for a in n.attribute if a.HasField("g")}
    assert bodies == {"then_branch": ["Twice", "Neg"], "else_branch": ["Conv"]}


def assert_same_results(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    image = np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    for flag in (True, False):
        old, new = (run(m, image=image, flag=np.asarray(flag)) for m in (before, after))
        for a, b in zip(old, new, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * np.abs(a).max())


def as_bytes(source: Any) -> bytes:
    proto = ir.to_proto(source) if isinstance(source, ir.Model) else source
    proto = gs.export_onnx(proto, do_type_check=False) if isinstance(proto, gs.Graph) else proto
    return proto.SerializeToString(deterministic=True)


KINDS: dict[str, tuple[Callable[[onnx.ModelProto], Any], type]] = {
    "ModelProto": (lambda proto: proto, onnx.ModelProto),
    "onnx_ir.Model": (ir.from_proto, ir.Model),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_object_comes_back_as_its_kind_with_everything(kind: str):
    make, type_ = KINDS[kind]
    source = make(model())
    before = as_bytes(source)
    result = graphopt.optimize(source, PASSES).model
    assert isinstance(result, type_) and result is not source
    assert as_bytes(source) == before
    out = onnx.ModelProto.FromString(as_bytes(result))
    assert_everything_survived(model(), out)
    assert_optimised(out)
    assert_same_results(model(), out)


def test_what_comes_out_shares_nothing_with_what_went_in_nor_with_the_next_one():
    source = ir.from_proto(model())
    before = as_bytes(source)
    result = graphopt.optimize(source, PASSES)
    first, second = result.model, result.model
    first.graph[0].name = "edited"
    first.graph.initializers.clear()
    assert as_bytes(source) == before
    assert second.graph[0].name != "edited" and len(second.graph.initializers) > 0


def test_a_file_comes_back_as_a_file_and_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "in.onnx"
    onnx.save(model(), path)
    before, modified = path.read_bytes(), path.stat().st_mtime_ns
    result = graphopt.optimize(str(path), PASSES)
    assert isinstance(result.model, ir.Model)
    result.save(tmp_path / "out.onnx")
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, modified)
    out = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(out)
    assert_everything_survived(model(), out)
    assert_optimised(out)
    assert_same_results(model(), out)
    assert (tmp_path / "out.onnx").stat().st_size < len(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.onnx", "out.onnx"]


def test_a_file_with_external_data_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "in.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights", size_threshold=0)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(files) == 2
    result = graphopt.optimize(path, PASSES)
    result.save(tmp_path / "out.onnx")
    out = onnx.load(tmp_path / "out.onnx")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert_optimised(out)
    assert_same_results(model(), out)


def test_a_graphsurgeon_graph_comes_back_as_one():
    source = gs.import_onnx(model())
    before = as_bytes(source)
    result = graphopt.optimize(source, PASSES).model
    assert isinstance(result, gs.Graph) and result is not source
    assert as_bytes(source) == before
    assert (result.name, result.doc_string, result.producer_name, result.opset) == (
        source.name, source.doc_string, source.producer_name, 18,
    )  # fmt: skip
    assert [(t.name, t.shape, t.dtype) for t in result.inputs] == [(t.name, t.shape, t.dtype) for t in source.inputs]
    assert [t.name for t in result.outputs] == ["result", "aside"]
    assert [f.name for f in result.functions] == ["Twice"]
    assert "BatchNormalization" not in [n.op for n in result.nodes]
    assert_same_results(model(), gs.export_onnx(result))


def test_custom_ops_pass_through_untouched():
    source = with_custom_op()
    out = graphopt.optimize(source, PASSES).model
    assert_everything_survived(source, out)
    (stamp,) = [n for n in out.graph.node if n.domain == "com.example"]
    assert stamp == source.graph.node[-1]
    assert "BatchNormalization" not in [n.op_type for n in out.graph.node]


# ---- torch ---------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("offset", torch.tensor([1.0, 2.0]))

    def forward(self, image: torch.Tensor, *, gain: torch.Tensor | None = None) -> dict[str, Any]:
        features = torch.relu(self.norm(self.conv(image))) * 1.0
        pooled = self.head(features.mean((2, 3))) + self.offset
        return {"logits": pooled if gain is None else pooled * gain, "features": (features, image)}


IMAGE, GAIN = torch.rand(2, 3, 6, 7), torch.tensor(3.0)


def net(training: bool = False) -> Net:
    torch.manual_seed(0)
    made = Net().train(training)
    nn.init.uniform_(made.norm.running_var, 0.5, 2.0)
    nn.init.uniform_(made.norm.running_mean, -1.0, 1.0)
    return made


def assert_close(a: Any, b: Any) -> None:
    old, spec = torch.utils._pytree.tree_flatten(a)
    new, other = torch.utils._pytree.tree_flatten(b)
    assert spec == other
    for x, y in zip(old, new, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)


def targets(module: Any) -> list[str]:
    return [str(n.target) for n in module.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        ((IMAGE,), (IMAGE,), {}),
        (IMAGE, (IMAGE,), {}),
        ({"image": IMAGE, "gain": GAIN}, (), {"image": IMAGE, "gain": GAIN}),
        (((IMAGE,), {"gain": GAIN}), (IMAGE,), {"gain": GAIN}),
    ],
    ids=["positional", "one tensor", "keyword", "both"],
)
def test_a_module_comes_back_as_a_module_that_is_called_alike(example: Any, args: Any, kwargs: Any):
    module = net()
    result = graphopt.optimize(module, PASSES, example_inputs=example)
    out = result.model
    assert isinstance(out, nn.Module)
    assert_close(module(*args, **kwargs), out(*args, **kwargs))
    assert not any("batch_norm" in t for t in targets(out))
    assert "offset" in dict(out.named_buffers()) and "head.weight" in dict(out.named_parameters())


@pytest.mark.parametrize("training", [False, True])
def test_a_module_is_left_alone(training: bool):
    module = net(training)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    tensors = {n: id(t) for n, t in (*module.named_parameters(), *module.named_buffers())}
    flags = [m.training for m in module.modules()]
    out = graphopt.optimize(module, PASSES, example_inputs=IMAGE).model
    out(IMAGE)
    assert [m.training for m in module.modules()] == flags
    assert {n: id(t) for n, t in (*module.named_parameters(), *module.named_buffers())} == tensors
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert any("batch_norm" in t for t in targets(out)) is training


def test_dynamic_shapes_stay_dynamic():
    module = net()
    batch, height = Dim("batch", min=2, max=64), Dim("height", min=4, max=128)
    result = graphopt.optimize(module, PASSES, example_inputs=(IMAGE,), dynamic_shapes={"image": {0: batch, 2: height}})
    for size in ((2, 3, 6, 7), (5, 3, 11, 7)):
        larger = torch.rand(size)
        assert_close(module(larger), result.model(larger))
    assert result.lower()(torch.rand(9, 3, 8, 7))["logits"].shape == (9, 2)


def test_an_exported_program_comes_back_as_one():
    module = net()
    batch = {"image": {0: Dim("batch", min=2, max=64)}, "gain": None}
    program = torch.export.export(module, (IMAGE,), {"gain": GAIN}, dynamic_shapes=batch, strict=False)
    text, state = str(program), {k: v.clone() for k, v in program.state_dict.items()}
    out = graphopt.optimize(program, PASSES).model
    assert isinstance(out, ExportedProgram)
    out.validate()
    assert str(program) == text
    assert all(torch.equal(v, state[k]) for k, v in program.state_dict.items())
    assert not any("batch_norm" in t for t in targets(out))
    larger = torch.rand(7, 3, 6, 7)
    assert_close(module(larger, gain=GAIN), out.module()(larger, gain=GAIN))
    assert sorted(map(str, out.range_constraints.values())) == sorted(map(str, program.range_constraints.values()))


def test_a_graph_module_comes_back_as_one():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    source = torch.fx.symbolic_trace(module)
    code, state = source.code, {k: v.clone() for k, v in source.state_dict().items()}
    out = graphopt.optimize(source, PASSES, example_inputs=(IMAGE,)).model
    assert isinstance(out, torch.fx.GraphModule)
    assert_close(module(IMAGE), out(IMAGE))
    assert not any("batch_norm" in t for t in targets(out))
    assert source.code == code
    assert all(torch.equal(v, state[k]) for k, v in source.state_dict().items())
