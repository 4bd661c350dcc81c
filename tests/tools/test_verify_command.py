"""`graphopt verify`: what it prints of pairs that agree, differ, or cannot be decided."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from graphopt.tools.main import app


def scaled(factor, *, twice=False):
    nodes = [helper.make_node("Mul", ["x", "c"], ["s" if twice else "y"])]
    if twice:
        nodes.append(helper.make_node("Identity", ["s"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(factor), "c")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, proto in (("a", scaled(0.7)), ("b", scaled(0.7, twice=True)), ("c", scaled(0.71))):
        onnx.save(proto, f"{name}.onnx")
    return lambda *arguments: CliRunner().invoke(app, ["verify", *arguments])


def test_a_pair_that_agrees_is_run_and_proved(call):
    result = call("a.onnx", "b.onnx", "--prove", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "run: they agree" in result.stdout and "proof: equal as expressions" in result.stdout
    assert "x [5, 3]" in result.stdout and "seed 3" in result.stdout


def test_a_refuted_pair_ends_with_1_and_keeps_the_inputs(call, tmp_path):
    result = call("a.onnx", "c.onnx", "--prove", "--json", "--counterexample", "kept.npz")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["proof"]["level"] == "refuted" and told["ok"] is False and told["error"] > told["allowed"]
    with np.load(tmp_path / "kept.npz") as kept:
        assert kept["x"].shape == (5, 3)


def test_files_of_the_current_folder_are_not_imported_in_place_of_pythons_own(call, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    assert call("a.onnx", "b.onnx").exit_code == 0


@pytest.mark.parametrize("options", [[], ["--prove"]])
def test_what_takes_too_long_is_undecided_and_no_difference(call, monkeypatch, options):
    from graphopt.verify import apart

    compare = apart.compare
    monkeypatch.setattr(apart, "compare", lambda *models, **given: compare(*models, **given | {"seconds": 1e-3}))
    result = call("a.onnx", "b.onnx", *options)
    assert result.exit_code == 1 and "differ" not in result.stdout
    assert result.stdout.startswith("run: undecided; not decided within 0.001 seconds")
    told = json.loads(call("a.onnx", "b.onnx", "--json", *options).stdout)
    assert told["error"] is None and told["allowed"] is None and "not decided" in told["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--inputs", "one.npy"], "holds one array without a name"),
        (["--inputs", "none.npz"], "none.npz: no such file; expected an .npz"),
        (["--counterexample", "none/kept.npz"], "the folder none does not exist"),
    ],
)
def test_files_that_cannot_be_are_refused_before_anything_runs(call, options, message):
    np.save("one.npy", np.ones((2, 3), np.float32))
    result = call("a.onnx", "c.onnx", *options)
    assert result.exit_code == 1 and result.stdout == "" and message in str(result.exception)


def test_without_proof_models_are_only_run(call):
    np.savez("inputs.npz", x=np.ones((2, 3), np.float32))
    result = call("a.onnx", "b.onnx", "--inputs", "inputs.npz", "--json")
    assert result.exit_code == 0 and "proof" not in json.loads(result.stdout)
    assert call("a.onnx", "c.onnx").exit_code == 1


def beside_integers(factor, offset=0):
    """z, and integers that one unit of rounding in x changes."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,3] x) => (int64[n,3] y, float[n,3] z) <float s = {1000000.0}, float f = {%s}, float o = {%s}>
    { m = Mul(x, s)  a = Add(m, o)  y = Cast<to = 7>(a)  z = Mul(x, f) }"""
    return onnx.parser.parse_model(text % (float(factor), float(offset)))


def test_an_output_that_rounding_changes_excuses_no_other(call):
    """Integers that flip have no yardstick; that of the others is their own."""
    for name, proto in (("i", beside_integers(3)), ("j", beside_integers(5)), ("k", beside_integers(3, 1000))):
        onnx.save(proto, f"{name}.onnx")
    assert call("i.onnx", "i.onnx").exit_code == 0
    other = call("i.onnx", "j.onnx")
    assert other.exit_code == 1 and other.stdout.startswith("run: they differ; largest error 6.7e-01")
    shifted = call("i.onnx", "k.onnx")
    assert shifted.exit_code == 1 and shifted.stdout.startswith("run: undecided; largest error 0.0e+00")
    said = " ".join(shifted.stdout.split())
    assert "not judged: output 0 (NaN throughout, or rounding alone changes it beyond measure)" in said
    told = json.loads(call("i.onnx", "k.onnx", "--json").stdout)
    assert told["ok"] is False and told["allowed"] < 1e-3 and "not judged: output 0" in told["reason"]


@pytest.mark.parametrize(
    ("factor", "labels", "agree"), [(1 + 2e-7, [4, 5, 6], True), (1.01, [4, 5, 6], False), (1, [4, 5, 7], False)]
)
def test_outputs_that_are_maps_are_compared_by_their_keys_and_numbers(call, factor, labels, agree):
    pair = []
    for scale, keys in ((0.7, [4, 5, 6]), (0.7 * factor, labels)):
        proto = scaled(scale)
        proto.graph.node.append(helper.make_node("ZipMap", ["y"], ["m"], domain="ai.onnx.ml", classlabels_int64s=keys))
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        maps = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.INT64, number))
        proto.graph.output[0].CopyFrom(helper.make_value_info("m", maps))
        pair.append(f"{len(pair)}.onnx")
        onnx.save(proto, pair[-1])
    result = call(*pair)
    assert ("run: they agree" in result.stdout) == agree, result.output


def test_data_for_which_nothing_but_nan_comes_out_decides_nothing(call):
    np.savez("nan.npz", x=np.full((1, 3), np.nan, np.float32))
    result = call("a.onnx", "a.onnx", "--inputs", "nan.npz")
    assert result.exit_code == 1 and result.stdout.startswith("run: undecided"), result.output
