"""ONNX models on the onnxruntime backend: calling, options, errors, big models, saved optimised models."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx_models import conv_bn, model, node, save_conv_bn, value

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.backends.onnxruntime import OnnxRuntimeBackend
from graphopt.backends.ort_compiled import Compiled, RunError
from graphopt.backends.ort_session import open_session
from graphopt.backends.ort_settings import Settings
from graphopt.errors import ModelError, PipelineError, UnsupportedError
from graphopt.ir.load import load_model


def weighted_sum(**options):
    """y = a + 2 * b."""
    nodes = [node("Mul", ["b", "two"], ["m"]), node("Add", ["a", "m"], ["y"])]
    inputs = [value("a", ["n", 2]), value("b", ["n", 2])]
    weights = {"two": np.float32([2])}
    return graphopt.lower(model(nodes, inputs, [value("y", ["n", 2])], weights), **options)


A, B = np.float32([[1, 2]]), np.float32([[10, 20]])


@pytest.mark.parametrize("io_binding", [True, False])
def test_arrays_are_given_by_position_by_name_or_as_one_dict(io_binding):
    compiled = weighted_sum(io_binding=io_binding)

    for (result,) in (compiled(A, B), compiled(b=B, a=A), compiled(A, b=B), compiled({"b": B, "a": A})):
        np.testing.assert_array_equal(result, [[21, 42]])


def test_the_callable_shows_its_session_and_its_names():
    compiled = weighted_sum()

    assert isinstance(compiled, Compiled)
    assert isinstance(compiled.session, onnxruntime.InferenceSession)
    assert (compiled.input_names, compiled.output_names) == (("a", "b"), ("y",))


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((A, B, A), {}, r"takes 2 inputs \(a, b\), got 3"),
        ((A,), {}, r"missing input 'b' float32\[n,2\]"),
        ((A, B), {"b": B}, "'b' is given both"),
        ((A,), {"bb": B}, r"no input 'bb' \(did you mean 'b'\?\)"),
        ((A, B.astype(np.float64)), {}, r"'b' is float32\[n,2\], got float64\[1,2\]; cast it to float32"),
        ((A, B[0]), {}, r"'b' .* of rank 2, got float32\[2\]"),
        ((A, np.ones((1, 3), np.float32)), {}, "size 3 at axis 1 where 2 is fixed"),
    ],
)
def test_wrong_inputs_are_refused_before_onnxruntime_sees_them(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        weighted_sum()(*args, **kwargs)


def test_a_scalar_input_takes_rank_0_only_and_an_open_rank_takes_any():
    scalar = graphopt.lower(model([node("Neg", ["x"], ["y"])], [value("x", [])], [value("y", [])]))
    anything = graphopt.lower(model([node("Neg", ["x"], ["y"])], [value("x", None)], [value("y", None)]))

    with pytest.raises(InputError, match="rank 0"):
        scalar(np.ones(3, np.float32))
    assert scalar(np.float32(3))[0] == -3
    assert anything(np.ones((2, 3), np.float32))[0].shape == (2, 3)


def test_an_input_with_a_default_value_may_be_left_out():
    nodes = [node("Add", ["x", "bias"], ["y"])]
    source = model(
        nodes, [value("x", [2]), value("bias", [2])], [value("y", [2])], {"bias": np.float32([5, 6])}
    )
    compiled = graphopt.lower(source)

    np.testing.assert_array_equal(compiled(np.float32([1, 1]))[0], [6, 7])
    np.testing.assert_array_equal(compiled(np.float32([1, 1]), bias=np.float32([0, 1]))[0], [1, 2])


@pytest.mark.parametrize("io_binding", [True, False])
def test_bfloat16_and_booleans_go_in_and_out(io_binding):
    bf16 = TensorProto.BFLOAT16
    inputs = [value("c", ["n"], TensorProto.BOOL), value("x", ["n"], bf16), value("z", ["n"], bf16)]
    # onnxruntime's CPU has no Where for bfloat16; Cast is what it has in both directions.
    nodes = [
        node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT),
        node("Cast", ["z"], ["z32"], to=TensorProto.FLOAT),
        node("Where", ["c", "x32", "z32"], ["y32"]),
        node("Cast", ["y32"], ["y"], to=bf16),
        node("Not", ["c"], ["d"]),
    ]
    source = model(nodes, inputs, [value("y", ["n"], bf16), value("d", ["n"], TensorProto.BOOL)])
    x = np.array([1.5, 2.5], ml_dtypes.bfloat16)

    y, d = graphopt.lower(source, io_binding=io_binding)(np.array([True, False]), x, -x)

    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), [1.5, -2.5])
    np.testing.assert_array_equal(d, [False, True])


def test_strings_are_passed_through():
    strings = TensorProto.STRING
    source = model([node("Identity", ["x"], ["y"])], [value("x", [2], strings)], [value("y", [2], strings)])

    assert list(graphopt.lower(source)(np.array(["a", "b"], object))[0]) == ["a", "b"]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thread": 1}, r"unknown option 'thread' \(did you mean 'threads'"),
        ({"threads": 0}, "threads is 0, expected a positive integer"),
        ({"threads": True}, "threads is True"),
        ({"save_path": 3}, "save_path is 3, expected a path or None"),
        ({"profile": 3}, "profile is 3, expected a path or None"),
        ({"optimization": "most"}, "expected one of all, extended, basic, off"),
        (
            {"providers": ["TpuExecutionProvider"]},
            "no provider 'TpuExecutionProvider'; it has .*CPUExecutionProvider",
        ),
        ({"providers": "CPUExecutionProvider"}, "expected a list"),
        ({"io_binding": "yes"}, "io_binding is 'yes', expected True, False or None"),
        ({"session_options": "x"}, "expected a mapping"),
    ],
)
def test_options_that_do_not_exist_or_cannot_be_are_errors(options, message):
    with pytest.raises(PipelineError, match=message):
        weighted_sum(**options)


def test_options_reach_the_session():
    compiled = weighted_sum(
        threads=np.int64(1),
        inter_threads=2,
        optimization="off",
        providers=[("CPUExecutionProvider", {})],
        session_options={"session.set_denormal_as_zero": "1"},
    )
    options = compiled.session.get_session_options()

    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def as_it_is(path):
    """A session that does not optimise any further, so that it has the same kernels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_optimised_model_is_saved_whole_and_runs(tmp_path):
    path = tmp_path / "optimised.onnx"
    compiled = graphopt.lower(conv_bn(), save_path=path, optimization="extended")
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)

    assert [n.op_type for n in onnx.load(path).graph.node] == ["FusedConv"]
    assert [p.name for p in tmp_path.iterdir()] == ["optimised.onnx"]
    saved = as_it_is(path)
    np.testing.assert_array_equal(saved.run(None, {"x": x})[0], compiled(x)[0])


def test_a_folder_that_is_missing_is_an_error_that_names_the_path(tmp_path):
    with pytest.raises(ModelError, match="nowhere/m.onnx: the folder .*nowhere does not exist"):
        graphopt.lower(conv_bn(), save_path=tmp_path / "nowhere" / "m.onnx")


def test_the_optimised_model_does_not_take_the_place_of_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ModelError, match="got a device or a pipe"):
        graphopt.lower(conv_bn(), save_path=pipe)
    assert pipe.is_fifo()


def test_a_profile_is_written(tmp_path):
    compiled = weighted_sum(profile=tmp_path / "profile")
    compiled(A, B)

    written = compiled.end_profiling()
    assert written.startswith(str(tmp_path / "profile"))
    assert "session_initialization" in Path(written).read_text()


# ---- models that cannot be run -------------------------------------------------------------------


def unary(op, dtype=TensorProto.FLOAT, *, domain="", opset=20, domains=None):
    nodes = [node(op, ["x"], ["y"], name="node[1]", domain=domain)]
    shape = [1, 2, 3, 3]
    return model(nodes, [value("x", shape, dtype)], [value("y", None, dtype)], opset=opset, domains=domains)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            unary("GlobalLpPool", TensorProto.DOUBLE),
            r"no kernel for GlobalLpPool \(opset .*'node\[1\]'.*CPUExecution",
        ),
        (unary("Nothing", domain="my.domain", domains={"my.domain": 1}), "does not know my.domain::Nothing"),
        (unary("Swish"), r"does not know ai.onnx::Swish \(node 'node\[1\]'\)"),
        (unary("Sqrt", TensorProto.INT32), r"Sqrt at node 'node\[1\]' takes no tensor\(int32\) as input 'x'"),
        (unary("Relu", opset=60), "newer opset of ai.onnx than"),
    ],
)
def test_what_onnxruntime_cannot_run_is_said_with_op_node_and_advice(source, message):
    with pytest.raises(UnsupportedError, match=message):
        open_session(onnx_ir.from_proto(source), Settings())


def test_an_invalid_model_is_an_error_with_onnxruntimes_reason():
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    source = model(nodes, [value("x", [2, 3])], [value("y", None)], {"w": np.ones((4, 5), np.float32)})
    with pytest.raises(ModelError, match="onnxruntime cannot load the model: "):
        open_session(onnx_ir.from_proto(source), Settings())


def test_a_failure_at_run_time_is_an_error_of_the_project():
    nodes = [node("Gather", ["x", "i"], ["y"])]
    source = model(nodes, [value("x", [2]), value("i", [1], TensorProto.INT64)], [value("y", [1])])

    with pytest.raises(RunError, match="indices element out of data bounds"):
        graphopt.lower(source)(np.float32([1, 2]), np.int64([7]))


# ---- squeezes that torch's exporter writes -------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize("axis", [1, -2])
def test_a_squeeze_of_a_dimension_that_is_not_1_is_taken_as_an_identity(opset, axis):
    if opset < 13:
        squeeze = node("Squeeze", ["x"], ["s"], name="squeeze[0]", axes=[axis])
        weights = {}
    else:
        squeeze, weights = (
            node("Squeeze", ["x", "axes"], ["s"], name="squeeze[0]"),
            {"axes": np.int64([axis])},
        )
    nodes = [squeeze, node("Relu", ["s"], ["y"])]
    source = model(nodes, [value("x", ["n", 4, 2])], [value("y", ["n", 4, 2])], weights, opset=opset)
    source.ir_version = 8
    loaded = load_model(source)
    before = loaded.main.fingerprint()

    compiled = OnnxRuntimeBackend().lower(loaded)
    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)

    np.testing.assert_array_equal(compiled(x)[0], np.maximum(x, 0))
    assert compiled.notes == ("squeeze[0]: Squeeze of a dimension that is not 1 was made an Identity",)
    assert loaded.main.fingerprint() == before


def test_a_squeeze_that_may_be_of_a_dimension_of_1_is_left_alone():
    source = model(
        [node("Squeeze", ["x", "axes"], ["y"])],
        [value("x", ["n", 4])],
        [value("y", None)],
        {"axes": np.int64([0])},
    )
    compiled = graphopt.lower(source)

    assert compiled(np.ones((1, 4), np.float32))[0].shape == (4,)
    assert compiled.notes == ()
    with pytest.raises(RunError):
        compiled(np.ones((2, 4), np.float32))


# ---- models that do not fit into one message -----------------------------------------------------


def test_a_model_over_the_limit_is_handed_over_in_files(tmp_path):
    source, x = conv_bn(channels=64), np.ones((1, 3, 8, 8), np.float32)
    expected = graphopt.lower(source, optimization="basic")(x)[0]
    loaded = load_model(source)
    settings = Settings(save_path=tmp_path / "big.onnx", optimization="basic")
    session = open_session(loaded.ir, settings, limit=100)

    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    saved = as_it_is(tmp_path / "big.onnx")
    np.testing.assert_array_equal(saved.run(None, {"x": x})[0], expected)


def test_weights_that_the_model_reads_are_not_replaced_by_the_optimised_ones(tmp_path):
    """As when what was exported as m.onnx and m.onnx.data was renamed."""
    source, data = tmp_path / "original.onnx", tmp_path / "m.onnx.data"
    onnx.save(conv_bn(channels=64), source, save_as_external_data=True, location=data.name, size_threshold=0)
    before, x = data.read_bytes(), np.ones((1, 3, 8, 8), np.float32)
    with pytest.raises(ModelError, match="weights of the model lie in this file"):
        graphopt.lower(source, save_path=data)
    session = open_session(load_model(source).ir, Settings(save_path=tmp_path / "m.onnx", optimization="basic"), 100)

    assert data.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.1.data", "m.onnx.data", "original.onnx"]
    np.testing.assert_array_equal(as_it_is(tmp_path / "m.onnx").run(None, {"x": x})[0], session.run(None, {"x": x})[0])


def test_external_data_is_read_from_beside_the_model(tmp_path):
    path = save_conv_bn(tmp_path / "inline.onnx")
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(path), external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = np.ones((1, 3, 8, 8), np.float32)

    np.testing.assert_array_equal(graphopt.lower(external)(x)[0], graphopt.lower(path)(x)[0])


@pytest.mark.parametrize("limit", [10**9, 100])
def test_the_optimised_model_does_not_take_the_place_of_weights(tmp_path, limit):
    folder = tmp_path / "given"
    folder.mkdir()
    data = folder / "weights.bin"
    onnx.save(
        conv_bn(channels=64), folder / "m.onnx", save_as_external_data=True, location=data.name, size_threshold=0
    )
    before = data.read_bytes()
    with pytest.raises(ModelError, match="weights.bin: weights of the model lie in this file; choose another name"):
        open_session(load_model(folder / "m.onnx").ir, Settings(save_path=data), limit=limit)
    assert data.read_bytes() == before


# ---- features ------------------------------------------------------------------------------------


def test_every_feature_has_a_kernel_in_this_onnxruntime():
    from onnxruntime.capi import _pybind_state

    kernels = {
        f"{k.domain}::{k.op_name}"
        for k in _pybind_state.get_all_opkernel_def()
        if k.provider == "CPUExecutionProvider"
    }
    assert "com.microsoft::FusedConv" in OnnxRuntimeBackend.features
    assert OnnxRuntimeBackend.features <= kernels
