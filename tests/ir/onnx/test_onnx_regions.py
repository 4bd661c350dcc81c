"""Bodies of If and Loop, local functions, fragments."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_helpers import parse, run, same

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Call, TensorType
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.weights import ArrayRef

X = np.asarray([[-1, 2, -3], [4, -5, 6]], np.float32)
BRANCHES = """
g (float[2,3] x, bool c) => (float[2,3] y) <float[3] w = {1,2,3}>
{
    a = Relu(x)
    b = If (c) <
        then_branch = t () => (float[2,3] r) <float[1] k = {2}> { s = Mul(a, w)  r = Mul(s, k) },
        else_branch = e () => (float[2,3] r) { s = Neg(a)  r = Identity(s) }
    >
    y = Neg(b)
}
"""
FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
g (float[2,3] x) => (float[2,3] y) { a = local.scaled <by = 2.0> (x)  y = Relu(a) }
<domain: "local", opset_import: ["" : 18, "local" : 1]>
scaled <by> (v) => (r) { s = Constant <value_float: float = @by> ()  n = local.flip (v)  r = Mul(n, s) }
<domain: "local", opset_import: ["" : 18]>
flip (v) => (r) { m = Neg(v)  r = Neg(m) }
"""


def feeds(flag: bool) -> dict[str, np.ndarray]:
    return {"x": X, "c": np.asarray(flag)}


def load():
    model = load_onnx(parse(BRANCHES))
    nodes = {n.outputs[0].name: n for n in model.main.nodes()}
    then_branch, else_branch = model.main.subgraphs(nodes["b"])
    return model, nodes, then_branch, else_branch


def test_regions_are_main_then_bodies_then_functions():
    assert [r.ir.name for r in load()[0].regions()] == ["g", "t", "e"]
    functions = load_onnx(onnx.parser.parse_model(FUNCTIONS)).regions()
    assert [r.function.name if r.function else r.ir.name for r in functions] == ["g", "scaled", "flip"]


def test_body_is_a_region_of_its_own():
    model, nodes, then_branch, _ = load()
    mul, _ = then_branch.nodes()
    a = nodes["a"].outputs[0]
    assert then_branch.call(mul).op == "mul"
    assert then_branch.producer(a) is None and model.main.producer(a) is nodes["a"]
    assert [n.op_type for n in model.main.users(a)] == ["Mul", "Neg"]
    assert then_branch.constant(mul.inputs[1]).numpy().tolist() == [1, 2, 3]
    assert then_branch.type(mul.outputs[0]) == TensorType("float32", (2, 3))
    assert then_branch.subgraphs(mul) == []


def test_equal_names_in_sibling_bodies_keep_their_own_types():
    text = BRANCHES.replace(
        "s = Neg(a)  r = Identity(s)", "s = ReduceSum<keepdims=0>(a)  r = Expand(s, shape)"
    ).replace("<float[3] w = {1,2,3}>", "<float[3] w = {1,2,3}, int64[2] shape = {2,3}>")
    region = load_onnx(parse(text)).main
    branches = region.subgraphs(list(region.nodes())[1])
    shapes = [r.type(next(r.nodes()).outputs[0]).shape for r in branches]
    assert shapes == [(2, 3), ()]


def test_edit_inside_a_body_and_its_undo():
    model, _, then_branch, _ = load()
    before = model.export().SerializeToString()
    mul, last = then_branch.nodes()
    expected = run(model.export(), feeds(True))
    three, undo_constant = then_branch.add_constant(ArrayRef(np.full(1, 3, np.float32)), "k")
    (new,), _, undo = then_branch.insert("mul", [mul.outputs[0], three], {}, before=last, types=[None])
    undo_replace = then_branch.replace(last.outputs[0], new)
    assert three.name == "k_1"
    assert same(run(model.export(), feeds(True)), [expected[0] / 2 * 3])
    assert [v.name for v in then_branch.outputs()] == ["r"]
    for step in (undo_replace, undo, undo_constant):
        step()
    assert model.export().SerializeToString() == before


def test_captured_value_is_replaced_inside_the_bodies_too():
    model, nodes, then_branch, else_branch = load()
    mul = next(then_branch.nodes())
    old_call = then_branch.call(mul)
    undo = model.main.replace(nodes["a"].outputs[0], model.main.inputs()[0])
    assert then_branch.call(mul).operands[0] is model.main.inputs()[0]
    assert same(run(model.export(), feeds(False)), [X])
    undo()
    assert then_branch.call(mul) is old_call


def test_output_of_a_body_that_becomes_an_outer_value_is_an_identity():
    model, nodes, _, else_branch = load()
    before = model.export().SerializeToString()
    *_, last = else_branch.nodes()
    undo = else_branch.replace(last.outputs[0], nodes["a"].outputs[0])
    onnx.checker.check_model(model.export())
    assert same(run(model.export(), feeds(False)), [-np.maximum(X, 0)])
    undo()
    assert model.export().SerializeToString() == before


def test_removing_a_node_releases_what_its_bodies_read():
    model, nodes, *_ = load()
    model.main.replace(nodes["b"].outputs[0], nodes["a"].outputs[0])
    model.main.remove(nodes["b"])
    assert model.main.users(nodes["a"].outputs[0]) == (nodes["y"],)
    model.refresh()
    assert model.weights() == [] and len(model.regions()) == 1
    assert same(run(model.export(), {"x": X, "c": np.asarray(True)}), [-np.maximum(X, 0)])


def test_fingerprint_of_main_sees_into_bodies():
    other = load_onnx(parse(BRANCHES.replace("s = Neg(a)", "s = Abs(a)"))).main
    assert load()[0].main.fingerprint() != other.fingerprint()
    assert load()[0].main.fingerprint() == load()[0].main.fingerprint()


# ---- functions
# ----------------------------------------------------------------------------------------------


def test_function_body_is_a_region():
    model = load_onnx(onnx.parser.parse_model(FUNCTIONS))
    main, scaled, flip = model.regions()
    call = next(main.nodes())
    assert main.key(call) == "local::scaled"
    assert "not in the vocabulary" in main.call(call).reason
    assert [scaled.call(n).op for n in scaled.nodes() if n.op_type == "Mul"] == ["mul"]
    assert scaled.constant(next(scaled.nodes()).outputs[0]) is None
    assert [v.name for v in scaled.inputs()] == ["v"]


def test_constant_of_a_function_body_is_a_node():
    model = load_onnx(onnx.parser.parse_model(FUNCTIONS))
    before = model.export().SerializeToString()
    flip = model.regions()[2]
    first, last = flip.nodes()
    value, undo_constant = flip.add_constant(ArrayRef(np.full(1, 5, np.float32)), "five")
    (new,), _, undo = flip.insert("mul", [first.outputs[0], value], {}, before=last, types=[None])
    undo_replace = flip.replace(first.outputs[0], new)
    assert flip.constant(value).numpy().tolist() == [5]
    assert flip.precedes(flip.producer(value), first)
    onnx.checker.check_model(model.export())
    assert same(run(model.export(), {"x": X}), [np.maximum(X * 10, 0)])
    for step in (undo_replace, undo, undo_constant):
        step()
    assert model.export().SerializeToString() == before


def test_function_named_as_an_op_hides_it():
    text = (
        FUNCTIONS.replace('"local"', '"com.microsoft"')
        .replace("local.", "com.microsoft.")
        .replace("scaled", "Gelu")
    )
    region = load_onnx(onnx.parser.parse_model(text)).main
    node = next(region.nodes())
    assert region.key(node) == "com.microsoft::Gelu"
    assert not region.call(node)


@pytest.mark.parametrize(
    ("body", "pure"),
    [
        ("y = Relu(x)", True),
        ("y = RandomNormalLike(x)", False),
        ("y = Bernoulli(x)", False),
        ("y = Dropout(x)", True),
        ("t = Constant<value = bool {1}>()  y = Dropout(x, , t)", False),
        ("t = Constant<value = bool {0}>()  y = Dropout(x, , t)", True),
        ("y = custom.Thing(x)", False),
        ("y = com.microsoft.Gelu(x)", True),
        ("c = Constant<value = bool {1}>()  y = If (c) <then_branch = t () => (r) {r = Abs(x)},"
         " else_branch = e () => (r) {r = Neg(x)}>", True),
        ("c = Constant<value = bool {1}>()  y = If (c) <then_branch = t () => (r) {r = RandomUniformLike(x)},"
         " else_branch = e () => (r) {r = Neg(x)}>", False),
    ],
)  # fmt: skip
def test_purity(body: str, pure: bool):
    region = load_onnx(parse(f"g (float[2,3] x) => (y) {{ {body} }}")).main
    *_, node = region.nodes()
    assert region.is_pure(node) is pure
    assert pure or not region.call(node), "what can be said is pure"


def test_purity_of_a_function_call_is_that_of_its_body():
    model = load_onnx(onnx.parser.parse_model(FUNCTIONS))
    assert model.main.is_pure(next(model.main.nodes()))
    model = load_onnx(onnx.parser.parse_model(FUNCTIONS.replace("m = Neg(v)", "m = RandomNormalLike(v)")))
    assert not model.main.is_pure(next(model.main.nodes()))


# ---- fragments
# ----------------------------------------------------------------------------------------------


def fragment_proto(region) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(region.shared.model)


def test_fragment_holds_copies_and_captures_constants():
    model = load_onnx(
        parse("""
        g (float[n,3] x) => (float[n,3] y) <float[3] w = {1,2,3}>
        { a = Relu(x)  k = Constant<value = float[1] {2}>()  b = Mul(a, w)  c = Mul(b, k)  y = Neg(c) }
    """)
    )
    region = model.main
    before = model.export().SerializeToString()
    nodes = {n.outputs[0].name: n for n in region.nodes()}
    a, c = nodes["a"].outputs[0], nodes["c"].outputs[0]
    piece = region.cut([nodes["c"], nodes["b"]], [a], [c])
    assert [n.op_type for n in piece.nodes()] == ["Mul", "Mul"]
    assert piece.type(piece.inputs()[0]) == TensorType("float32", ("n", 3))
    assert piece.type(piece.outputs()[0]) == TensorType("float32", ("n", 3))
    mul = next(piece.nodes())
    assert piece.constant(mul.inputs[1]).identity is region.constant(nodes["b"].inputs[1]).identity
    assert same(run(fragment_proto(piece), {"a": X}), [X * np.asarray([2, 4, 6], np.float32)])
    assert isinstance(piece.call(mul), Call)
    assert model.export().SerializeToString() == before


def test_fragment_may_return_its_input_and_a_value_twice():
    region = load_onnx(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")).main
    (node,) = region.nodes()
    x, y = region.inputs()[0], node.outputs[0]
    piece = region.cut([node], [x], [x, y, y])
    data = np.asarray([-1, 2], np.float32)
    assert same(run(fragment_proto(piece), {"x": data}), [data, np.maximum(data, 0), np.maximum(data, 0)])


def test_fragment_of_a_control_flow_node_resolves_what_its_bodies_capture():
    model, nodes, *_ = load()
    region = model.main
    piece = region.cut([nodes["b"]], [nodes["a"].outputs[0], region.inputs()[1]], [nodes["b"].outputs[0]])
    assert [v.name for v in piece.inputs()] == ["a", "c"]
    out = run(fragment_proto(piece), {"a": X, "c": np.asarray(True)})
    assert same(out, [X * np.asarray([2, 4, 6], np.float32)])


def test_fragment_inside_a_body_captures_outer_constants():
    _, nodes, then_branch, _ = load()
    mul, last = then_branch.nodes()
    piece = then_branch.cut([mul, last], [nodes["a"].outputs[0]], [last.outputs[0]])
    assert same(run(fragment_proto(piece), {"a": X}), [X * np.asarray([2, 4, 6], np.float32)])


def test_fragment_copies_the_functions_it_calls():
    region = load_onnx(onnx.parser.parse_model(FUNCTIONS)).main
    node = next(region.nodes())
    piece = region.cut([node], region.inputs(), [node.outputs[0]])
    assert same(run(fragment_proto(piece), {"x": X}), [X * 2])
    assert len(fragment_proto(piece).functions) == 2


def test_fragment_that_reads_an_unknown_value_is_refused():
    _, nodes, then_branch, _ = load()
    mul, last = then_branch.nodes()
    with pytest.raises(UnsupportedError, match="'a'"):
        then_branch.cut([mul], [], [mul.outputs[0]])


def test_fragment_that_depends_on_a_function_parameter_is_refused():
    scaled = load_onnx(onnx.parser.parse_model(FUNCTIONS)).regions()[1]
    constant = next(scaled.nodes())
    with pytest.raises(UnsupportedError, match="parameter"):
        scaled.cut([constant], [], [constant.outputs[0]])
