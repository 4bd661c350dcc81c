"""`graphopt run` with a budget: data from a file, the spending in the report, and what is refused."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from approximate_passes import RoundWeights
from onnx import numpy_helper
from typer.testing import CliRunner

import graphopt
from graphopt.pipeline import registry
from graphopt.tools.main import app, main

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[n,6] x, float[n,4] s) => (float[n,4] y) {
    h = MatMul(x, w)
    y = Mul(h, s)
}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a model and inputs for it; the test pass is registered while the test runs."""
    rng = np.random.default_rng(0)
    made = onnx.parser.parse_model(TEXT)
    made.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((6, 4)).astype(np.float32), "w"))
    onnx.save(made, tmp_path / "model.onnx")
    x, s = (rng.standard_normal((16, width)).astype(np.float32) for width in (6, 4))
    np.savez(tmp_path / "inputs.npz", x=x, s=s)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "nan.npz", x=x * np.float32("nan"), s=s)
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object), s=s)
    monkeypatch.chdir(tmp_path)
    registry.passes.cache_clear()
    graphopt.register(RoundWeights)
    yield tmp_path
    registry.passes.cache_clear()


def run(*arguments):
    return CliRunner().invoke(app, ["run", "model.onnx", "-p", "round-weights", "--verify", "structure", *arguments])


def test_a_budget_and_its_data_are_given_on_the_command_line(folder):
    done = run("--budget", "0.05", "--metric", "cosine", "--calibration", "inputs.npz", "-o", "out.onnx", "--json")
    (record,) = json.loads(done.stdout)["passes"]
    assert record["spending"]["metric"] == "cosine" and record["spending"]["limit"] == 0.05
    data = np.load("inputs.npz")
    before, after = (graphopt.lower(graphopt.load(path))(**data)[0][1::2] for path in ("model.onnx", "out.onnx"))
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert record["spending"]["after"] == pytest.approx(1 - cosines.astype(np.float64).mean(), abs=1e-6)


def test_a_limit_of_inf_measures_and_the_table_says_so(folder):
    lines = run("--budget", "inf", "--calibration", "inputs.npz").stdout.splitlines()
    (line,) = [line.split() for line in lines if "relative-error" in line]
    assert line[0] == "round-weights" and 0 < float(line[3]) < 1 and line[4] == "inf"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "round-weights is approximate and never runs without a budget"),
        (["--budget", "0.1"], "needs calibration data"),
        (["--metric", "kl"], "give its limit too: --budget 0.01"),
        (["--budget", "-1"], "not negative"),
        (["--budget", "0.1", "--metric", "cos"], "did you mean 'cosine'?"),
        (["--budget", "0.1", "--calibration", "no.npz"], "no.npz: no such file"),
        (["--budget", "0.1", "--calibration", "nan.npz"], "output 0 of the original is NaN throughout; expected real"),
        (["--budget", "0.1", "--calibration", "text.npz"], "text.npz: cannot be read as arrays"),
        (["--budget", "0.1", "--calibration", "objects.npz"], "objects.npz: cannot be read as arrays"),
        (["--budget", "0.1", "--calibration", "x.npy"], "1 arrays and the model 2 inputs, x, s"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_message(folder, capsys, arguments, says):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "model.onnx", "-p", "round-weights", *arguments])
    captured = capsys.readouterr()
    assert exit_.value.code == 1 and captured.out == "" and says in captured.err
