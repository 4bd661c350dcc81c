"""Taking models in: every kind, nothing lost, nothing modified, and clear refusals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_helpers import parse, run, same

from graphopt.errors import ModelError
from graphopt.ir.graph import TensorType
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.text import graph_text

X = np.asarray([[-1, 2, -3], [4, -5, 6]], np.float32)
TEXT = """
g (float[n,3] x, float[3] bias) => (float[n,3] y)
<float[3] w = {1,2,3}, float[3] bias = {0.5,0.5,0.5}, float[n,3] a>
{ a = Mul(x, w)  y = Add(a, bias) }
"""


def rich_model() -> onnx.ModelProto:
    """A model that uses everything that tools tend to lose."""
    model = parse(TEXT)
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "com.example"
    model.model_version, model.doc_string = 7, "the model"
    model.metadata_props.add(key="author", value="me")
    graph = model.graph
    graph.doc_string = "the graph"
    graph.metadata_props.add(key="graph", value="prop")
    node = graph.node[0]
    node.name, node.doc_string = "scale", "the node"
    node.metadata_props.add(key="namespace", value="block/scale")
    graph.value_info[0].doc_string = "the value"
    graph.value_info[0].metadata_props.add(key="value", value="prop")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    return model


def test_proto_round_trip_loses_and_adds_nothing():
    proto = rich_model()
    before = proto.SerializeToString(deterministic=True)
    out = load_onnx(proto).export()
    assert isinstance(out, onnx.ModelProto)
    assert proto.SerializeToString(deterministic=True) == before
    assert normalised(out) == normalised(proto)


def test_a_clone_exports_the_same_knows_the_same_and_is_of_its_own():
    model = load_onnx(rich_model())
    region = model.main
    (new,), _, _ = region.insert(
        "com.example::Odd", list(region.inputs()), {}, before=next(region.nodes()), types=[TensorType("float32", (3,))]
    )
    copy = model.clone()
    assert normalised(copy.export()) == normalised(model.export())
    assert graph_text(copy.main) == graph_text(region)
    assert copy.main.type(copy.main.results(next(copy.main.nodes()))[0]) == region.type(new)
    copy.main.remove(next(copy.main.nodes()))
    assert region.raw_name(next(region.nodes())) == "com.example::Odd"


def normalised(model: onnx.ModelProto) -> bytes:
    """Bytes without what has no meaning: an empty domain that is spelt out, the order of maps, the data's
    encoding."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if not node.domain:
            node.ClearField("domain")
    imports = sorted(copy.opset_import, key=lambda o: o.domain)
    del copy.opset_import[:]
    copy.opset_import.extend(imports)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return copy.SerializeToString(deterministic=True)


def test_path_gives_an_ir_model_and_leaves_the_file_alone(tmp_path: Path):
    path = tmp_path / "m.onnx"
    onnx.save(rich_model(), path)
    before = path.read_bytes()
    model = load_onnx(path)
    (new,), _, _ = model.main.insert(
        "neg", [model.main.inputs()[0]], {}, before=next(model.main.nodes()), types=[None]
    )
    assert isinstance(model.export(), ir.Model)
    assert isinstance(load_onnx(str(path)).export(), ir.Model)
    assert path.read_bytes() == before


def test_ir_model_is_cloned():
    source = ir.from_proto(rich_model())
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    model = load_onnx(source)
    region = model.main
    nodes = list(region.nodes())
    (new,), _, _ = region.insert("neg", [nodes[0].inputs[0]], {}, before=nodes[0], types=[None])
    region.replace(nodes[0].outputs[0], new)
    region.remove(nodes[0])
    model.refresh()
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before
    exported = model.export()
    assert isinstance(exported, ir.Model) and exported is not source
    assert exported.metadata_props == {"author": "me"} and exported.graph.name == "g"


def test_overridable_initialiser_is_an_input_and_no_constant():
    region = load_onnx(rich_model()).main
    x, bias = region.inputs()
    assert (x.name, bias.name) == ("x", "bias")
    assert region.constant(bias) is None
    w = next(region.nodes()).inputs[1]
    assert region.constant(w).numpy().tolist() == [1, 2, 3]


def test_overridable_initialiser_can_still_be_overridden():
    out = load_onnx(rich_model()).export()
    bias = np.asarray([1, 1, 1], np.float32)
    assert same(run(out, {"x": X, "bias": bias}), [X * np.asarray([1, 2, 3], np.float32) + 1])
    assert same(run(out, {"x": X}), [X * np.asarray([1, 2, 3], np.float32) + np.float32(0.5)])


def test_before_version_4_an_initialiser_is_a_constant():
    model = parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }", 3, 8)
    region = load_onnx(model).main
    (node,) = region.nodes()
    assert [v.name for v in region.inputs()] == ["x"]
    assert region.constant(node.inputs[1]).numpy().tolist() == [1, 2]


def test_symbolic_dimensions_keep_their_names_and_are_inferred():
    model = parse("g (float[n,3] x) => (float[n,3] y) { a = Relu(x)  y = Neg(a) }")
    region = load_onnx(model).main
    first = next(region.nodes())
    assert region.type(first.outputs[0]) == TensorType("float32", ("n", 3))
    assert [d.dim_param for d in load_onnx(model).export().graph.output[0].type.tensor_type.shape.dim] == [
        "n",
        "",
    ]


def test_unknown_sizes_get_names_that_no_size_of_the_model_has():
    """After an edit, types of the last inference stand beside those of the next one."""
    model = load_onnx(
        parse("""
        g (float[a,b] x, float[c,d] z) => (y) { p = NonZero(x)  q = NonZero(z)  y = Concat<axis=1>(p, q) }
    """)
    )
    region = model.main
    p, q, y = (n.outputs[0] for n in region.nodes())
    (again,), _, _ = region.insert("identity", [q], {}, before=region.producer(y), types=[region.type(q)])
    region.replace(q, again)
    model.refresh()
    known = {region.type(v).shape[1] for v in (p, again)} - {None}
    assert len(known) == 2 and not known & set("abcd")


def test_default_domain_that_is_spelt_out_has_its_version():
    proto = parse("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax(x) }", opset=18)
    proto.opset_import[0].domain = "ai.onnx"
    region = load_onnx(proto).main
    (node,) = region.nodes()
    assert region.opset == 18
    assert region.call(node).fields == {"axis": 2}


def test_inferred_types_are_not_written_into_the_model():
    model = parse("g (float[n,3] x) => (float[n,3] y) { a = Relu(x)  y = Neg(a) }")
    assert len(load_onnx(model).export().graph.value_info) == 0


def test_model_that_inference_rejects_loads_without_types():
    model = parse("g (float[2,3] x) => (y) { a = Reshape(x, x)  b = custom.Thing(a)  y = Relu(b) }")
    model.graph.node[0].input[1] = ""
    region = load_onnx(model).main
    *_, last = region.nodes()
    assert region.type(last.inputs[0]) is None
    assert region.call(last).op == "relu"


def test_constants_of_every_element_type_are_read():
    import ml_dtypes

    arrays = [np.asarray([1, 2, 3]).astype(t) for t in (
        ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4,
        np.float16, np.float64, np.int8, np.bool_)]  # fmt: skip
    initializers = [numpy_helper.from_array(a, f"c{i}") for i, a in enumerate(arrays)]
    nodes = [helper.make_node("Identity", [f"c{i}"], [f"o{i}"]) for i in range(len(arrays))]
    outputs = [helper.make_empty_tensor_value_info(f"o{i}") for i in range(len(arrays))]
    graph = helper.make_graph(nodes, "g", [], outputs, initializers)
    region = load_onnx(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ).main
    for node, array in zip(region.nodes(), arrays, strict=True):
        ref = region.constant(node.inputs[0])
        assert (ref.dtype, ref.shape) == (array.dtype.name, (3,))
        assert ref.numpy().dtype == array.dtype and ref.numpy().tobytes() == array.tobytes()
        assert ref.identity is region.constant(node.inputs[0]).identity


def test_constant_nodes_are_constants_in_every_spelling():
    text = """
    g () => (a, b, c, d) {
        a = Constant <value = float[2] {1, 2}> ()
        b = Constant <value_float = 1.5> ()
        c = Constant <value_ints = [3, 4]> ()
        d = Constant <value_string = "text"> ()
    }
    """
    region = load_onnx(parse(text)).main
    a, b, c, d = (region.constant(n.outputs[0]) for n in region.nodes())
    assert (a.dtype, a.numpy().tolist()) == ("float32", [1, 2])
    assert (b.dtype, b.shape, b.item()) == ("float32", (), 1.5)
    assert (c.dtype, c.numpy().tolist()) == ("int64", [3, 4])
    assert d is None


def test_sparse_initialiser_is_made_dense():
    proto = parse("g (float[2,3] x, float[2,3] s) => (float[2,3] y) { y = Add(x, s) }")
    del proto.graph.input[1]
    values = numpy_helper.from_array(np.asarray([5, 7], np.float32), "s")
    indices = numpy_helper.from_array(np.asarray([[0, 1], [1, 2]]), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    before = proto.SerializeToString()
    out = load_onnx(proto).export()
    assert proto.SerializeToString() == before
    assert run(out, {"x": np.zeros((2, 3), np.float32)})[0].tolist() == [[0, 5, 0], [0, 0, 7]]


def test_sparse_initialiser_that_is_too_large_is_refused():
    proto = parse("g (float[2,3] x, float[2,3] s) => (float[2,3] y) { y = Add(x, s) }")
    values = numpy_helper.from_array(np.asarray([5], np.float32), "s")
    indices = numpy_helper.from_array(np.asarray([3]), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20]))
    with pytest.raises(ModelError, match="'s'.*too large"):
        load_onnx(proto)


def test_nodes_out_of_order_are_put_in_order():
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }")
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    out = load_onnx(proto).export()
    onnx.checker.check_model(out)
    assert [n.op_type for n in out.graph.node] == ["Relu", "Neg"]


# ---- errors
# -------------------------------------------------------------------------------------------------


def refused(source, *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        load_onnx(source)
    for part in parts:
        assert part in str(error.value)


def test_missing_file_is_refused(tmp_path: Path):
    refused(tmp_path / "none.onnx", "none.onnx", "no such file")
    refused(Path("/dev/null"), "/dev/null", "a device")


def test_folder_is_refused(tmp_path: Path):
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("content", [b"", b"this is no model at all", b"\x00" * 64])
def test_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    refused(path, "x.onnx", "not an ONNX model", "expected")


def test_truncated_file_is_refused_wherever_it_ends(tmp_path: Path):
    model = rich_model()
    # What is missing at the end of a list at the end of the file cannot be noticed.
    del model.metadata_props[:], model.opset_import[1:]
    path, data = tmp_path / "x.onnx", model.SerializeToString()
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ModelError, match="truncated|not an ONNX model"):
            load_onnx(path)


def test_object_of_another_kind_is_refused():
    refused(42, "builtins.int", "onnx_ir.Model")


def test_value_that_nothing_defines_is_refused():
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x)  y = Neg(a) }")
    proto.graph.node[1].input[0] = "lost"
    refused(proto, "'lost'", "no input, no initialiser")


def test_cycle_is_refused():
    proto = parse("g (float[2] x) => (float[2] y) { a = Relu(x)  y = Add(a, x) }")
    proto.graph.node[0].input[0] = "y"
    refused(proto, "cycle")


# ---- external data
# ------------------------------------------------------------------------------------------


def calling(*calls: tuple[str, str]) -> onnx.ModelProto:
    """Functions of which each calls another, the first of them by the graph."""
    model = parse("g (float[3] x) => (float[3] y) { y = custom.F(x) }")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    for name, callee in calls:
        domain = "" if callee == "Relu" else "custom"
        body = [helper.make_node(callee, ["a"], ["b"], domain=domain)]
        model.functions.append(helper.make_function("custom", name, ["a"], ["b"], body, opsets))
    return model


@pytest.mark.parametrize("as_ir", [False, True])
def test_functions_that_call_themselves_are_refused(as_ir: bool):
    take = ir.from_proto if as_ir else lambda model: model
    refused(take(calling(("F", "F"))), "custom::F -> custom::F", "expected", "onnx.checker")
    refused(take(calling(("F", "G"), ("G", "H"), ("H", "G"))), "custom::G", "custom::H", "call themselves")
    load_onnx(take(calling(("F", "G"), ("G", "Relu"))))


def external(folder: Path, location: str = "m.data", size: int = 4096, **overrides: str) -> Path:
    """A model whose weight lies in a file of its own."""
    folder.mkdir(exist_ok=True)
    proto = parse("g (float[n,1024] x, float[1024] w) => (float[n,1024] y) { y = Mul(x, w) }")
    del proto.graph.input[1]
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1024])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "4096", **overrides}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.data").write_bytes(np.arange(1024, dtype=np.float32).tobytes()[:size])
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_is_read_on_demand(tmp_path: Path):
    region = load_onnx(external(tmp_path)).main
    (node,) = region.nodes()
    ref = region.constant(node.inputs[1])
    assert (ref.dtype, ref.shape) == ("float32", (1024,))
    np.testing.assert_array_equal(ref.numpy(), np.arange(1024))


def test_missing_external_data_is_refused(tmp_path: Path):
    path = external(tmp_path)
    (tmp_path / "m.data").unlink()
    refused(path, "'w'", "is missing", "m.data")


def test_short_external_data_is_refused(tmp_path: Path):
    refused(external(tmp_path, size=4000), "'w'", "truncated", "4096 bytes")
    refused(external(tmp_path, length="100"), "truncated")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"location": "m\0data"}, "the name of a file"),
        ({"location": ""}, "the name of a file"),
        ({"offset": "-5"}, "offset '-5'; expected a number of bytes"),
        ({"offset": "abc"}, "offset 'abc'; expected a number of bytes"),
        ({"length": "-12"}, "length '-12'; expected a number of bytes"),
        ({"offset": "9" * 30}, "truncated"),
        ({"location": "x" * 5000}, "is missing"),
    ],
    ids=str,
)
def test_external_data_at_no_place_is_refused(tmp_path: Path, entry: dict[str, str], expected: str):
    refused(external(tmp_path, **entry), "m.onnx", "'w'", expected)


def test_strings_in_a_file_are_refused(tmp_path: Path):
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    path.write_bytes(proto.SerializeToString())
    refused(path, "'w'", "has strings in another file; expected string_data")


@pytest.mark.parametrize("entry", [{"location": "m\0data"}, {"offset": -5}, {"length": -12}], ids=str)
def test_external_data_of_an_object_at_no_place_is_refused(tmp_path: Path, entry: dict[str, object]):
    model = ir.load(external(tmp_path))
    given = {"location": "m.data", "offset": 0, "length": 4096, **entry}
    model.graph.initializers["w"].const_value = ir.ExternalTensor(
        **given, dtype=ir.DataType.FLOAT, shape=ir.Shape([1024]), name="w", base_dir=str(tmp_path)
    )
    refused(model, "'w'", "damaged", "expected")


def test_path_that_no_file_can_have_is_refused():
    refused("m\0.onnx", "is no path")


def test_external_data_outside_the_folder_is_refused(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 4096)
    inside = tmp_path / "in"
    refused(external(inside, location=str(secret)), "refused", "absolute")
    refused(external(inside, location="../secret"), "refused", "..")
    refused(external(inside, location="sub/../../secret"), "refused")
    os.symlink(secret, inside / "link")
    refused(external(inside, location="link"), "refused", "a link to")
    os.link(secret, inside / "hard")
    refused(external(inside, location="hard"), "refused", "hard links")


def test_link_within_the_folder_is_accepted(tmp_path: Path):
    path = external(tmp_path, location="link")
    os.symlink("m.data", tmp_path / "link")
    (node,) = load_onnx(path).main.nodes()
    assert node.op_type == "Mul"


def test_proto_whose_data_lies_elsewhere_is_refused(tmp_path: Path):
    refused(onnx.load(external(tmp_path), load_external_data=False), "'w'", "give the path")


def test_an_operator_set_whose_name_is_no_text_is_refused():
    model = parse(TEXT)
    model.opset_import.add(domain="odd", version=1)
    data = model.SerializeToString()
    assert data.count(b"odd") == 1
    refused(onnx.ModelProto.FromString(data.replace(b"odd", b"o\xffd")), "damaged", "operator set", "UTF-8")


@pytest.mark.parametrize(("inner", "accepted"), [("3", False), ("2", True)])
def test_initialiser_that_hides_another_value_is_refused(inner: str, accepted: bool):
    """onnxruntime reads the outer one in both branches here, since the other branch does, and 3 if that does not."""
    model = parse(f"""
        g (float[2] x, bool c) => (float[2] y) <float[1] k = {{2}}>
        {{ y = If (c) <then_branch = t () => (float[2] r) <float[1] k = {{{inner}}}> {{ r = Mul(x, k) }},
                       else_branch = e () => (float[2] r) {{ s = Neg(x)  r = Mul(s, k) }}> }}""")
    if accepted:
        assert same(run(load_onnx(model).export(), {"x": X[0, :2], "c": np.array(True)}), [X[0, :2] * 2])
        return
    with pytest.raises(ModelError, match="graph 't' has an initializer 'k', .* outside of it.*; rename one"):
        load_onnx(model)
