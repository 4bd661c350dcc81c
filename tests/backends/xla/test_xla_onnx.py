"""ONNX models on XLA: equal to onnxruntime, at the sizes that they are called with, and refused by name."""

import xla_support  # noqa: F401  # first: it skips where JAX is missing  # isort: skip

import subprocess
import sys

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import conv_bn, model, node, value

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.backends.xla import calls
from graphopt.errors import UnsupportedError
from graphopt.tools.fetch import DEFAULT_FOLDER
from graphopt.tools.inputs import make_inputs
from graphopt.tools.manifest import zoo


def expected(proto, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto, options).run(None, feeds)


def largest_error(proto, run, feeds):
    """The largest of any output, relative to its largest element; dtypes and sizes are asserted."""
    reference, got = expected(proto, feeds), run(feeds)
    assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in reference]
    return max(float(np.max(np.abs(x - y)) / np.max(np.abs(x))) for x, y in zip(reference, got, strict=True))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_sizes():
    """Flattens, repeats and slices by sizes that it computes from its input."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["rows"]),
        node("Concat", ["rows", "minus"], ["flat_shape"], axis=0),
        node("Reshape", ["x", "flat_shape"], ["flat"]),
        node("ReduceSum", ["flat", "one"], ["sums"], keepdims=1),
        node("Div", ["flat", "sums"], ["shares"]),
        node("Slice", ["shares", "zero", "rows", "one"], ["square"]),
        node("ConstantOfShape", ["rows"], ["ones"], value=numpy_helper.from_array(np.float32([1]))),
        node("MatMul", ["square", "ones"], ["y"]),
    ]
    weights = {"zero": np.int64([0]), "one": np.int64([1]), "minus": np.int64([-1])}
    return model(nodes, [value("x", ["n", "h", "w"])], [value("y", ["n"])], weights)


def test_a_convolution_with_batch_norm_equals_onnxruntime():
    proto = conv_bn()
    run = graphopt.lower(proto, "xla")
    x = random(2, 3, 8, 8)
    assert largest_error(proto.SerializeToString(), run, {"x": x}) < 1e-6
    assert (run.input_names, run.output_names) == (("x",), ("y",))
    assert run.notes == ("3 ops of distinct sizes agree with onnxruntime",)
    (by_position,), (by_name,) = run(x), run(x=x)
    np.testing.assert_array_equal(by_position, by_name)


def test_what_depends_on_sizes_is_computed_once_for_each_combination_of_them():
    proto = by_sizes()
    before = proto.SerializeToString()
    run = graphopt.lower(proto, "xla")
    assert run.compilations == 0
    for shape in ((2, 3, 4), (3, 2, 5), (2, 3, 4)):
        assert largest_error(proto.SerializeToString(), run, {"x": random(*shape) + 3}) < 1e-6
    assert run.compilations == 2
    assert proto.SerializeToString() == before


def test_a_model_of_fixed_sizes_is_checked_before_it_is_handed_over(monkeypatch):
    monkeypatch.setitem(calls.KERNELS, "matmul", lambda a, b: (a @ b) * 1.01)
    proto = model([node("MatMul", ["x", "w"], ["y"], name="product")], [value("x", [2, 3])], [value("y", [2, 4])],
                  {"w": random(3, 4)})  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"product \(ai\.onnx::MatMul.*of operands \(2, 3\).*differs from onnxr"):
        graphopt.lower(proto, "xla")
    assert graphopt.lower(proto, "xla", check=False).notes == ()


def test_a_reader_that_misreads_is_caught(monkeypatch):
    from graphopt.ir.onnx import read

    monkeypatch.setitem(read.READERS, ("", "Floor"), read.READERS[("", "Ceil")])
    proto = model([node("Floor", ["x"], ["y"])], [value("x", [5])], [value("y", [5])])
    with pytest.raises(UnsupportedError, match="differs from onnxruntime"):
        graphopt.lower(proto, "xla")


def test_all_ops_outside_of_the_vocabulary_are_named_at_once():
    nodes = [
        node("Det", ["x"], ["d"], name="volume"),
        node("Hardmax", ["x"], ["h"], name="largest"),
        node("Hardmax", ["h"], ["i"], name="again"),
        node("Inverse", ["x"], ["j"], name="inverse", domain="com.microsoft"),
    ]
    outputs = [value(n, None) for n in ("d", "i", "j")]
    proto = model(nodes, [value("x", ["n", 3, 3])], outputs, domains={"com.microsoft": 1})
    pattern = r"ai\.onnx::Det.*\(volume\).*ai\.onnx::Hardmax.*\(largest, again\).*com\.microsoft::Inverse.*\(inverse\)"
    with pytest.raises(UnsupportedError, match=pattern):
        graphopt.lower(proto, "xla")


def test_wide_integers_and_low_precision_keep_their_dtypes():
    nodes = [
        node("Mul", ["i", "big"], ["product"]),
        node("CumSum", ["product", "axis"], ["sums"]),
        node("Cast", ["f"], ["half"], to=TensorProto.FLOAT16),
        node("Softmax", ["half"], ["shares"]),
        node("Cast", ["f"], ["double"], to=TensorProto.DOUBLE),
        node("Sqrt", ["double"], ["roots"]),
    ]
    weights = {"big": np.int64([3_000_000_000]), "axis": np.int64(0)}
    inputs = [value("i", [4], TensorProto.INT64), value("f", [4])]
    outputs = [value("sums", [4], TensorProto.INT64), value("shares", [4], TensorProto.FLOAT16),
               value("roots", [4], TensorProto.DOUBLE)]  # fmt: skip
    sums, shares, roots = graphopt.lower(model(nodes, inputs, outputs, weights), "xla")(
        np.arange(1, 5), np.float32([1, 2, 3, 4])
    )
    np.testing.assert_array_equal(sums, 3_000_000_000 * np.int64([1, 3, 6, 10]))
    assert shares.dtype == np.float16 and abs(float(shares.astype(np.float64).sum()) - 1) < 2e-3
    np.testing.assert_allclose(roots, np.sqrt(np.float64([1, 2, 3, 4])), rtol=1e-15)


def test_bfloat16_is_run_and_compared_with_float32():
    x = random(4, 4).astype(ml_dtypes.bfloat16)
    proto = model([node("MatMul", ["x", "x"], ["y"])], [value("x", [4, 4], TensorProto.BFLOAT16)],
                  [value("y", [4, 4], TensorProto.BFLOAT16)])  # fmt: skip
    (y,) = graphopt.lower(proto, "xla")(x)
    wide = x.astype(np.float64)
    assert y.dtype == ml_dtypes.bfloat16
    assert np.abs(y.astype(np.float64) - wide @ wide).max() < 0.02 * np.abs(wide @ wide).max()


def test_functions_of_the_model_are_inlined():
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["c"])]
    function = helper.make_function("own", "NegRelu", ["a"], ["c"], body, [helper.make_opsetid("", 20)])
    proto = model([node("NegRelu", ["x"], ["y"], domain="own")], [value("x", [3])], [value("y", [3])],
                  domains={"own": 1})  # fmt: skip
    proto.functions.append(function)
    (y,) = graphopt.lower(proto, "xla")(np.float32([-1, 0, 2]))
    np.testing.assert_array_equal(y, [0, 0, -2])


def branching(other):
    """y = relu(x) + w if the sum of x is positive, else what `other` makes of x."""

    def body(name, *nodes):
        weights = [numpy_helper.from_array(random(5), f"w_{name}")]
        return helper.make_graph(nodes, name, [], [value(name, None)], weights)

    then = body("then", node("Relu", ["x"], ["r"]), node("Add", ["r", "w_then"], ["then"]))
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=body("otherwise", *other)),
    ]
    return model(nodes, [value("x", [2, 5])], [value("y", None)], {"zero": np.float32(0)})


def test_branches_that_depend_on_the_data_are_run_on_xla():
    proto = branching([node("Sub", ["x", "w_otherwise"], ["otherwise"], name="minus")])
    run = graphopt.lower(proto, "xla")
    for x in (random(2, 5) + 3, random(2, 5) - 3):
        assert largest_error(proto.SerializeToString(), run, {"x": x}) == 0
    assert run.compilations == 1


def test_ops_in_branches_are_checked_and_named():
    with pytest.raises(UnsupportedError, match=r"ai\.onnx::Hardmax.*\(largest\)"):
        graphopt.lower(branching([node("Hardmax", ["x"], ["otherwise"], name="largest")]), "xla")
    with pytest.raises(UnsupportedError, match="the branches of choice differ"):
        graphopt.lower(branching([node("ReduceMax", ["x"], ["otherwise"])]), "xla")(random(2, 5))


def test_a_wrong_kernel_in_a_branch_is_caught(monkeypatch):
    monkeypatch.setitem(calls.KERNELS, "matmul", lambda a, b: (a @ b) * 1.01)
    proto = branching([node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["otherwise"], name="product")])
    with pytest.raises(UnsupportedError, match=r"product .*differs from onnxruntime"):
        graphopt.lower(proto, "xla")


def test_results_that_are_small_everywhere_are_judged_by_the_meaning():
    """onnxruntime's sigmoid of -14 is a few percent off."""
    run = graphopt.lower(model([node("Sigmoid", ["x"], ["y"])], [value("x", ["n"])], [value("y", ["n"])]), "xla")
    x = np.float32([-14.0, -14.5])
    np.testing.assert_allclose(run(x)[0], 1 / (1 + np.exp(-x.astype(np.float64))), rtol=1e-6)


def test_inputs_with_a_default_value_have_it():
    proto = model([node("Mul", ["x", "factor"], ["y"])], [value("x", [2]), value("factor", [1])], [value("y", [2])],
                  {"factor": np.float32([3])})  # fmt: skip
    run = graphopt.lower(proto, "xla")
    np.testing.assert_array_equal(run(np.float32([1, 2]))[0], [3, 6])
    with pytest.raises(InputError, match="no input 'factor'"):
        run(np.float32([1, 2]), factor=np.float32([4]))


def test_wrong_calls_say_what_was_expected():
    run = graphopt.lower(conv_bn(), "xla")
    with pytest.raises(InputError, match=r"float64\[2,3,8,8\]; cast it to float32"):
        run(np.zeros((2, 3, 8, 8)))
    with pytest.raises(InputError, match="size 4 at axis 1"):
        run(random(2, 4, 8, 8))


def test_a_file_runs_in_a_process_without_graphopt(tmp_path):
    proto = conv_bn(batch=2)
    graphopt.lower(proto, "xla").save(tmp_path / "model.stablehlo")
    x = random(2, 3, 8, 8)
    np.save(tmp_path / "x.npy", x)
    reader = (
        "import sys; sys.modules['graphopt'] = None\nfrom jax import export\nimport numpy as np\n"
        "exported = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))\n"
        "np.save(sys.argv[3], np.asarray(exported.call(np.load(sys.argv[2]))[0]))"
    )
    files = [str(tmp_path / name) for name in ("model.stablehlo", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", reader, *files], check=True)
    (y,) = expected(proto.SerializeToString(), {"x": x})
    np.testing.assert_allclose(np.load(files[2]), y, rtol=1e-5, atol=1e-6)


def test_a_file_of_open_sizes_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="fixed sizes"):
        graphopt.lower(conv_bn(), "xla").save(tmp_path / "model.stablehlo")
    assert not list(tmp_path.iterdir())


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["ppocrv2_cls", "terrain_consistency_unet"])
def test_models_of_the_zoo_equal_onnxruntime(name):
    entry = zoo()[name]
    path = DEFAULT_FOLDER / name / entry.file.rpartition("/")[2]
    if not path.exists():
        pytest.skip(f"{path} is not there: make zoo MODELS={name}")
    run = graphopt.lower(path, "xla")
    assert largest_error(str(path), run, make_inputs(entry.inputs[0], 0)) < 1e-5


def test_a_function_of_another_opset_is_refused():
    body = [node("Relu", ["a"], ["b"])]
    function = helper.make_function("own", "F", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    graph = helper.make_graph(
        [node("F", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)
    with pytest.raises(UnsupportedError, match=r"own::F.*version 13 in the function.*onnxruntime"):
        graphopt.lower(proto, "xla")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "gates", "settings"), [
    ("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 0}), ("GRU", 3, {"linear_before_reset": 1}),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("started", [False, True])
def test_recurrent_layers_go_step_by_step(op, gates, settings, direction, started):
    count, states = 2 if direction == "bidirectional" else 1, ["h", "c"][: 2 if op == "LSTM" else 1]
    shapes = {"W": (count, gates * 4, 3), "R": (count, gates * 4, 4), "B": (count, 2 * gates * 4)}
    shapes |= {name: (count, 2, 4) for name in states if started}
    weights = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    results = ["y", *(f"last_{name}" for name in states)]
    layer = node(op, ["x", "W", "R", "B", "", *(states if started else ())], results,
                 hidden_size=4, direction=direction, **settings)  # fmt: skip
    shape = {"y": [5, count, 2, 4]}
    proto = model([layer], [value("x", [5, 2, 3])], [value(r, shape.get(r, [count, 2, 4])) for r in results], weights)
    assert largest_error(proto.SerializeToString(), graphopt.lower(proto, "xla"), {"x": random(5, 2, 3, seed=9)}) < 1e-5
