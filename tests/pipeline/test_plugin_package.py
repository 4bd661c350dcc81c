"""A third party's package, really installed: its pass and its backend are found, listed, run and verified."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip has installed the example plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source")
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--disable-pip-version-check", "--target", str(target), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def run(site, tmp_path):
    """Runs Python source in a process that sees the plug-in; returns what it printed."""

    def run_source(source: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(source)
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_source


def test_both_names_are_listed_with_their_owner_and_nothing_is_imported(run):
    assert run("""
import sys
from graphopt.pipeline.registry import backends, passes
print("double-negation" in passes().names(), "numpy" in backends().names())
print(passes().owner("double-negation"))
print([m for m in sys.modules if m.startswith(("graphopt_example", "torch", "onnx", "numpy"))])
""").splitlines() == [
        "True True",
        "graphopt_example_plugin.double_negation:RemoveDoubleNegation (graphopt-example-plugin 0.1.0)",
        "[]",
    ]


def test_the_pass_is_described_from_its_source(run):
    assert run("""
from graphopt.pipeline.pass_ import describe
from graphopt.pipeline.registry import passes
described = describe(passes().get("double-negation"))
print(described["kind"], described["contract"], described["options"], sep="\\n")
""").splitlines() == [
        "rules",
        "exact: the same bits for every input",
        "[{'name': 'absolute', 'type': 'bool', 'default': 'true', "
        "'doc': 'Whether negations under an absolute value are removed too.'}]",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "graphopt_example_plugin.double_negation:DoubleNegation",
        "graphopt_example_plugin.double_negation:AbsoluteOfNegation",
        "double-negation/double-negation",
    ],
)
def test_its_rules_are_proved(run, name):
    printed = run(f"from graphopt.tools.main import main\nmain(['prove-rule', {name!r}])\n")
    assert printed.startswith(f"{name} (exact): proof for all weights, on 8 graphs")


MODEL = """
import numpy as np
import onnx
import onnx.helper as helper

def make(*ops, dtype=onnx.TensorProto.FLOAT):
    "x of shape [2, 3] through `ops`, one after the other."
    names = ["x", *(f"v{i}" for i in range(1, len(ops))), "y"]
    nodes = [helper.make_node(op, [a], [b], f"{op}_{i}")
             for i, (op, a, b) in enumerate(zip(ops, names, names[1:]))]
    value = lambda name: helper.make_tensor_value_info(name, dtype, [2, 3])
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

X = np.array([[1.5, -0.0, np.inf], [-2.25, np.nan, 3e-39]], np.float32)
"""


def test_the_pass_rewrites_an_onnx_model_and_carries_evidence(run):
    assert run(
        MODEL
        + """
import graphopt
model = make("Tanh", "Neg", "Neg", "Sin", "Neg", "Abs", "Cos")
for passes in ("double-negation", "double-negation{absolute=false}"):
    result = graphopt.optimize(model, passes=passes)
    print([n.op_type for n in result.model.graph.node], result.report.coverage())
    print([(a.id, a.status) for a in result.report.applications])
"""
    ).splitlines() == [
        "['Tanh', 'Sin', 'Abs', 'Cos'] 1.0",
        "[('double-negation/double-negation#1', 'kept'), ('double-negation/absolute-of-negation#1', 'kept')]",
        "['Tanh', 'Sin', 'Neg', 'Abs', 'Cos'] 1.0",
        "[('double-negation/double-negation#1', 'kept')]",
    ]


def test_the_backend_agrees_with_the_original_bit_for_bit_where_the_ops_are_exact(run):
    assert run(
        MODEL
        + """
import graphopt
model = make("Neg", "Relu", "Abs", "Neg")
run = graphopt.lower(model, "numpy")
(by_position,), (by_name,) = run(X), run(x=X)
expected = -np.abs(np.where(np.isnan(X), X, np.maximum(-X, 0)))
print(by_position.dtype, np.array_equal(by_position, expected, equal_nan=True))
print(np.array_equal(by_name, by_position, equal_nan=True))
optimised = graphopt.optimize(make("Neg", "Neg", "Relu"), passes="double-negation").lower("numpy")
print(np.array_equal(optimised(X)[0], np.where(np.isnan(X), X, np.maximum(X, 0)), equal_nan=True))
"""
    ).splitlines() == ["float32 True", "True", "True"]


def test_the_backend_says_what_it_cannot_do(run):
    assert run(
        MODEL
        + """
import graphopt
for attempt in (
    lambda: graphopt.lower(make("NonZero", dtype=onnx.TensorProto.INT64), "numpy"),
    lambda: graphopt.lower(make("Neg"), "numpy", threads=2),
    lambda: graphopt.lower(make("Neg"), "nunpy"),
):
    try:
        attempt()
    except graphopt.GraphoptError as error:
        print(type(error).__name__, *(word in str(error) for word in ("NonZero", "'threads'", "'numpy'")))
"""
    ).splitlines() == [
        "UnsupportedError True False True",
        "PipelineError False True True",
        "PipelineError False False True",
    ]


def test_a_second_package_with_the_same_name_is_a_clash_that_names_both(run, site, tmp_path):
    other = tmp_path / "other_plugin-2.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 2.0\n")
    (other / "entry_points.txt").write_text("[graphopt.passes]\ndouble-negation = other:Pass\n")
    message = run(f"""
import sys
sys.path.append({str(tmp_path)!r})
from graphopt.errors import RegistryError
from graphopt.pipeline.registry import passes
try:
    passes().names()
except RegistryError as error:
    print(error)
""")
    assert "'double-negation' is claimed by" in message
    assert (
        "graphopt_example_plugin.double_negation:RemoveDoubleNegation (graphopt-example-plugin 0.1.0)"
        in message
    )
    assert "other:Pass (other-plugin 2.0)" in message
