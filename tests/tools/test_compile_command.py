"""`graphopt compile`: models of the user's functions, and what is written."""

import importlib.util
import json
import os
import sys
import textwrap

import pytest

from graphopt.errors import ModelError, PipelineError
from graphopt.tools.sources import model_of

torch = pytest.importorskip("torch")

os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_xla = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax", "torchax")),
    reason="JAX or torchax is not installed: pip install 'graphopt[xla]'",
)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder."""
    name = "models_of_the_user"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
            import torch

            def pair():
                return torch.nn.Linear(4, 8).eval(), (torch.ones(2, 4),)

            def exported():
                return torch.export.export(*pair())

            def broken():
                raise KeyError("weights")
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


def test_a_function_gives_a_module_and_its_inputs(module):
    model, examples = model_of(f"{module}:pair")
    assert isinstance(model, torch.nn.Linear) and examples[0].shape == (2, 4)


def test_a_function_may_give_a_model_that_needs_no_inputs(module):
    model, examples = model_of(f"{module}:exported")
    assert isinstance(model, torch.export.ExportedProgram) and examples is None


@pytest.mark.parametrize("name", ["model.onnx", "folder/model.onnx", "C:\\model.onnx", "a-b:c"])
def test_whatever_is_no_function_is_a_file(name):
    path, examples = model_of(name)
    assert str(path) == name and examples is None


def test_functions_that_cannot_be_called_say_so(module):
    with pytest.raises(ModelError, match="nothing_of_the_name.*PACKAGE.MODULE:FUNCTION"):
        model_of(f"{module}:nothing_of_the_name")
    with pytest.raises(ModelError, match="No module named 'nowhere'"):
        model_of("nowhere:pair")
    with pytest.raises(ModelError, match="raised KeyError: 'weights'"):
        model_of(f"{module}:broken")


def test_other_backends_compile_nothing(module, call, tmp_path):
    with pytest.raises(PipelineError, match="--backend xla"):
        call("compile", f"{module}:pair", "--backend", "torch", "--topology", "v5e:2x2", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_xla
def test_a_bad_topology_leaves_nothing_behind(module, call, tmp_path):
    with pytest.raises(PipelineError, match="expected a chip and a grid"):
        call("compile", f"{module}:pair", "--topology", "v5e", "-o", tmp_path / "out", "--no-check")
    assert not (tmp_path / "out").exists()


@needs_xla
@pytest.mark.tpu
@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed: pip install 'graphopt[tpu]' (no TPU is needed)")
def test_a_model_is_compiled_and_reported(module, call, tmp_path):
    done = call("compile", f"{module}:pair", "--topology", "v5e:2x2", "-o", tmp_path / "out", "--json")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "model.hlo.txt", "model.pjrt", "model.stablehlo", "report.json", "weights.npz"
    ]  # fmt: skip
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    assert printed["flops"] == 2 * 2 * 4 * 8 + 2 * 8
    assert printed["status"] == "compiled for TPU, not run on one"


@pytest.fixture
def call(monkeypatch):
    """Run the command line; errors of the project pass through as exceptions."""
    from typer.testing import CliRunner

    from graphopt.tools.main import app

    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
