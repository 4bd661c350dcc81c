"""Editing: every edit has an exact undo, names of outputs are kept, caches follow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_helpers import parse, run, same

from graphopt.ir.graph import CannotEmit, Literal, TensorType
from graphopt.ir.onnx.dtypes import declared_type
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.weights import ArrayRef

CHAIN = """
g (float[2,3] x) => (float[2,3] y) <float[2,3] w = {1,2,3,4,5,6}, float[2,3] a>
{ a = Relu(x)  b = Mul(a, w)  y = Add(b, a) }
"""
X = np.asarray([[-1, 2, -3], [4, -5, 6]], np.float32)


def load(text: str = CHAIN, **options):
    model = load_onnx(parse(text, **options))
    return model, model.main, {n.outputs[0].name: n for n in model.main.nodes()}


def serialised(model) -> bytes:
    return model.export().SerializeToString()


def test_replaced_value_hands_its_name_and_type_to_the_new_one():
    model, region, nodes = load()
    old = nodes["a"].outputs[0]
    before = serialised(model)
    (new,), written, undo = region.insert("abs", [region.inputs()[0]], {}, before=nodes["a"], types=[None])
    undo_replace = region.replace(old, new)
    region_names = [n.outputs[0].name for n in region.nodes()]
    assert new.name == "a" and region.users(new) == (nodes["b"], nodes["y"])
    assert len(set(region_names)) == len(region_names)
    assert region.type(new) == TensorType("float32", (2, 3))
    undo_replace()
    undo()
    assert serialised(model) == before
    assert region.users(old) == (nodes["b"], nodes["y"])
    assert list(region.nodes()) == list(nodes.values())


def test_output_name_is_kept_when_the_new_value_is_written():
    model, region, nodes = load()
    (new,), _, _ = region.insert("sub", nodes["y"].inputs, {}, before=nodes["y"], types=[None])
    region.replace(nodes["y"].outputs[0], new)
    region.remove(nodes["y"])
    assert [v.name for v in region.outputs()] == ["y"]
    w = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)
    (y,) = run(model.export(), {"x": X})
    np.testing.assert_array_equal(y, np.maximum(X, 0) * w - np.maximum(X, 0))


@pytest.mark.parametrize("target", ["input", "weight", "other output"])
def test_output_becomes_an_identity_of_what_cannot_take_its_name(target: str):
    text = """
    g (float[2,3] x) => (float[2,3] y, float[2,3] z) <float[2,3] w = {1,2,3,4,5,6}>
    { y = Relu(x)  z = Mul(y, w) }
    """
    model, region, nodes = load(text)
    before = serialised(model)
    w = nodes["z"].inputs[1]
    new = {"input": region.inputs()[0], "weight": w, "other output": nodes["y"].outputs[0]}[target]
    undo = region.replace(nodes["z"].outputs[0], new)
    region_outputs = [v.name for v in region.outputs()]
    assert region_outputs == ["y", "z"]
    expected = {"input": X, "weight": numpy_helper.to_array(model.export().graph.initializer[0]),
                "other output": np.maximum(X, 0)}[target]  # fmt: skip
    np.testing.assert_array_equal(run(model.export(), {"x": X})[1], expected)
    undo()
    assert serialised(model) == before


def test_replacing_the_result_of_such_an_identity_changes_nothing():
    _, region, _ = load("g (float[2] x) => (float[2] y) { y = Identity(x) }")
    before = region.fingerprint()
    (node,) = region.nodes()
    region.replace(node.outputs[0], region.inputs()[0])
    assert region.fingerprint() == before


def test_existing_value_takes_over_the_name_of_an_output():
    model, region, nodes = load()
    before = serialised(model)
    undo = region.replace(nodes["y"].outputs[0], nodes["b"].outputs[0])
    assert [v.name for v in region.outputs()] == ["y"]
    assert nodes["b"].outputs[0].name == "y"
    undo()
    assert serialised(model) == before


def test_value_that_is_an_output_twice_is_replaced_in_both_places():
    model, region, nodes = load()
    model.ir.graph.outputs.append(nodes["y"].outputs[0])
    (new,), _, _ = region.insert("relu", [nodes["b"].outputs[0]], {}, before=nodes["y"], types=[None])
    undo = region.replace(nodes["y"].outputs[0], new)
    assert region.outputs() == [new, new]
    undo()
    assert region.outputs() == [nodes["y"].outputs[0]] * 2


def test_new_value_that_reads_the_old_one_goes_on_reading_it():
    model, region, nodes = load()
    old = nodes["a"].outputs[0]
    (new,), written, _ = region.insert("neg", [old], {}, before=nodes["b"], types=[None])
    region.replace(old, new)
    assert region.users(old) == tuple(written)
    onnx.checker.check_model(model.export())


def test_metadata_of_a_replaced_node_moves_to_its_successor():
    model, region, nodes = load()
    nodes["a"].metadata_props["namespace"] = "encoder/act"
    before = serialised(model)
    (new,), written, undo = region.insert("abs", [region.inputs()[0]], {}, before=nodes["a"], types=[None])
    undo_replace = region.replace(nodes["a"].outputs[0], new)
    assert written[0].metadata_props == {"namespace": "encoder/act"}
    undo_replace()
    undo()
    assert serialised(model) == before


def test_calls_follow_the_operands():
    _, region, nodes = load()
    first = region.call(nodes["b"])
    assert region.call(nodes["b"]) is first
    x = region.inputs()[0]
    undo = region.replace(nodes["a"].outputs[0], x)
    assert region.call(nodes["b"]).operands[0] is x
    undo()
    assert region.call(nodes["b"]) is first


def test_constant_is_added_under_a_fresh_name_and_taken_back():
    model, region, nodes = load()
    before = serialised(model)
    data = ArrayRef(np.ones((2, 3), np.float32))
    value, undo = region.add_constant(data, "w")
    again, undo_again = region.add_constant(data, "w")
    assert [region.name(v) for v in (value, again)] == ["w_1", "w_2"]
    assert region.constant(value) is data
    assert region.type(value) == TensorType("float32", (2, 3))
    undo_again()
    undo()
    assert serialised(model) == before
    assert region.add_constant(data, "w")[0].name == "w_1"


def test_deferred_constant_is_evaluated_when_the_model_is_saved():
    model, region, nodes = load()
    w = nodes["b"].inputs[1]
    evaluated = []

    class Watched(ArrayRef):
        def numpy(self):
            evaluated.append(1)
            return super().numpy()

    ref = Watched(np.full((2, 3), 2, np.float32)).transpose(1, 0)
    value, _ = region.add_constant(ref, "wt")
    (new,), _, _ = region.insert(
        "transpose", [value], {"perm": (1, 0)}, before=nodes["b"], types=[TensorType("float32", (2, 3))]
    )
    region.replace(w, new)
    assert region.constant(value) is ref and not evaluated
    (y,) = run(model.export(), {"x": X})
    assert evaluated
    np.testing.assert_array_equal(y, np.maximum(X, 0) * 3)


def test_literal_operand_becomes_a_constant():
    model, region, nodes = load()
    before = serialised(model)
    (new,), _, undo = region.insert(
        "mul", [nodes["b"].outputs[0], Literal(2.0, "float32")], {}, before=nodes["y"], types=[None]
    )
    assert region.constant(region.producer(new).inputs[1]).item() == 2.0
    undo()
    assert serialised(model) == before


def test_before_version_4_a_constant_is_an_input_too():
    model = load_onnx(onnx.ModelProto.FromString(version_3().SerializeToString()))
    region = model.main
    before = serialised(model)
    assert [v.name for v in region.inputs()] == ["x"]
    value, undo = region.add_constant(ArrayRef(np.ones(2, np.float32)), "one")
    assert value in list(model.ir.graph.inputs)
    assert region.constant(value) is not None
    undo()
    assert serialised(model) == before


def version_3() -> onnx.ModelProto:
    return parse("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1,2}> { y = Add(x, w) }", 3, 8)


def test_raw_op_imports_its_domain_and_undo_takes_it_back():
    model = load_onnx(parse(CHAIN).__class__.FromString(without_domains().SerializeToString()))
    region = model.main
    nodes = {n.outputs[0].name: n for n in region.nodes()}
    before = serialised(model)
    fields = {"activation": "Relu", "alpha": 1.5, "pads": [0, 1]}
    (new,), (node,), undo = region.insert(
        "com.example::Thing",
        [nodes["a"].outputs[0], None, nodes["b"].inputs[1]],
        fields,
        before=nodes["b"],
        types=[None],
    )
    assert region.raw_name(node) == region.key(node) == "com.example::Thing"
    assert model.export().opset_import[-1].domain == "com.example"
    call = region.raw_call(node)
    assert dict(call.fields) == {"activation": "Relu", "alpha": 1.5, "pads": (0, 1)} or call.fields[
        "pads"
    ] == [0, 1]
    assert call.operands[1] is None
    undo()
    assert serialised(model) == before


def without_domains() -> onnx.ModelProto:
    model = parse(CHAIN)
    del model.opset_import[1:]
    return model


def test_failing_insert_leaves_the_graph_as_it_was():
    model, region, nodes = load()
    before = serialised(model)
    with pytest.raises(CannotEmit):
        region.insert("silu", [nodes["a"].outputs[0]], {}, before=nodes["b"], types=[None])
    with pytest.raises(TypeError):
        region.insert(
            "custom::Bad", [nodes["a"].outputs[0]], {"x": object()}, before=nodes["b"], types=[None]
        )
    assert serialised(model) == before


def test_node_that_is_read_cannot_be_removed():
    _, region, nodes = load()
    with pytest.raises(ValueError, match="still read"):
        region.remove(nodes["a"])


def test_of_nodes_that_go_together_only_what_others_still_read_stays():
    _, region, nodes = load("g (float[2] x) => (float[2] y) { a = Neg(x)  b = Relu(a)  c = Abs(a)  y = Tanh(x) }")
    a, b, c, y = (nodes[name] for name in "abcy")
    assert region.remove_unread([b, a]) == [b]
    assert region.users(a.outputs[0]) == (c,)
    assert region.remove_unread([y, c, a]) == [c, a]
    assert list(region.nodes()) == [y] and region.users(region.inputs()[0]) == (y,)


def test_node_goes_together_with_one_whose_body_reads_it():
    _, region, nodes = load("""
        g (float[2] x, bool c) => (float[2] y) {
            a = Neg(x)
            b = If(c) <then_branch = t () => (t1) { t1 = Abs(a) }, else_branch = e () => (e1) { e1 = Exp(x) }>
            y = Tanh(x)
        }
    """)
    assert region.remove_unread([nodes["a"]]) == []
    assert region.remove_unread([nodes["b"], nodes["a"]]) == [nodes["b"], nodes["a"]]
    assert region.users(region.inputs()[0]) == (nodes["y"],)


def test_order_of_nodes_is_kept_up_by_edits():
    _, region, nodes = load()
    a, b, y = nodes["a"], nodes["b"], nodes["y"]
    assert region.precedes(a, b) and not region.precedes(b, a) and not region.precedes(a, a)
    x = region.inputs()[0]
    _, (first,), _ = region.insert("relu", [x], {}, before=b, types=[None])
    _, (second,), undo = region.insert("relu", [x], {}, before=b, types=[None])
    _, (between,), _ = region.insert("relu", [x], {}, before=second, types=[None])
    order = [a, first, between, second, b, y]
    assert list(region.nodes()) == order
    assert all(region.precedes(p, q) for i, p in enumerate(order) for q in order[i + 1 :])
    undo()
    assert region.precedes(between, b)


def test_fresh_names_avoid_every_name_of_the_model():
    _, region, nodes = load(
        CHAIN.replace("a = Relu", "a_1 = Relu").replace("Mul(a,", "Mul(a_1,").replace("b, a)", "b, a_1)")
    )
    value, _ = region.add_constant(ArrayRef(np.ones(1, np.float32)), "a_1")
    assert value.name == "a_1_1"


def test_refresh_drops_weights_that_nothing_reads():
    model, region, nodes = load()
    region.replace(nodes["b"].outputs[0], nodes["a"].outputs[0])
    region.remove(nodes["b"])
    assert [w[0] for w in model.weights()] == ["w"]
    model.refresh()
    assert model.weights() == []
    assert same(run(model.export(), {"x": X}), [np.maximum(X, 0) * 2])


def test_node_names_are_unique_even_if_the_file_repeats_them():
    proto = parse(CHAIN)
    for node, name in zip(proto.graph.node, ("n", "n", ""), strict=True):
        node.name = name
    model = load_onnx(proto)
    names = [model.main.node_name(n) for n in model.main.nodes()]
    assert names == ["n:a", "n:b", "Add:y"]


def test_fingerprint_sees_structure_and_names_but_no_weights():
    base = load()[1].fingerprint()
    assert load(CHAIN.replace("{1,2,3,4,5,6}", "{6,5,4,3,2,1}"))[1].fingerprint() == base
    assert load(CHAIN.replace("Relu", "Abs"))[1].fingerprint() != base
    assert load(CHAIN, opset=17)[1].fingerprint() != base
    assert load(CHAIN.replace("Add(b, a)", "Add(a, b)"))[1].fingerprint() != base


def test_what_inference_finds_of_a_value_between_two_written_ones_is_known():
    model, region, nodes = load()
    (inner,), _, _ = region.insert("abs", [region.inputs()[0]], {}, before=nodes["a"], types=[None])
    (new,), _, _ = region.insert("relu", [inner], {}, before=nodes["a"], types=[None])
    region.replace(nodes["a"].outputs[0], new)
    region.remove(nodes["a"])
    model.refresh()
    assert region.type(inner) == region.type(new) == TensorType("float32", (2, 3))


@pytest.mark.parametrize("declared", ["float[2,3]", "float[N,3]", "float[5,3]", "float[6]", "double[2,3]"])
def test_written_value_has_the_type_that_was_known_of_what_it_replaces(declared: str):
    """Declared, inferred, or less than either where they contradict each other; and so has what replaces it in turn."""
    text = f"g (float[2,3] x) => (float[2,3] y) <{declared} a> {{ a = Relu(x)  y = Neg(a) }}"
    _, asked, nodes = load(text)
    expected = asked.type(nodes["a"].outputs[0])
    _, region, nodes = load(text)
    old, undos = nodes["a"].outputs[0], []
    for op in ("abs", "sigmoid"):
        (new,), _, undo = region.insert(op, [region.inputs()[0]], {}, before=nodes["a"], types=())
        assert region.type(new) is None
        undos += [undo, region.replace(old, new)]
        old = new
    assert region.type(old) == (expected or declared_type(old))
    for undo in reversed(undos):
        undo()
    assert region.type(nodes["a"].outputs[0]) == expected
