"""Which way to XLA is taken, by what is installed."""

import pytest

import graphopt
from graphopt.backends.xla import runtimes
from graphopt.errors import MissingExtraError, UnsupportedError

torch = pytest.importorskip("torch")


@pytest.fixture
def installed(monkeypatch):
    """Lets exactly the given packages be installed, as far as the choice can see."""

    def choose(**versions):
        monkeypatch.setattr(runtimes, "_version", versions.get)
        monkeypatch.setattr(runtimes, "find_spec", versions.get)

    return choose


def lowered():
    return graphopt.lower(torch.nn.ReLU(), "xla", example_inputs=(torch.randn(3),))


def test_jax_comes_first_where_both_are_installed(installed):
    installed(jax="0.10.2", torchax="0.0.14", torch_xla="2.9.0", torch="2.9.1")
    assert runtimes.jax_is_there()
    installed(jax="0.10.2", torch_xla="2.9.0", torch="2.9.1")
    assert not runtimes.jax_is_there()


def test_what_runs_a_model_is_named():
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    if not runtimes.jax_is_there():
        pytest.skip("torchax is not installed: pip install 'graphopt[xla]'")
    run = lowered()
    assert run.runtime in repr(run)
    assert run.runtime.startswith("torchax 0.0.14")


def test_torch_xla_for_another_torch_says_which_it_needs(installed):
    installed(torch_xla="2.9.0", torch="2.13.0+cpu")
    with pytest.raises(UnsupportedError, match=r"torch_xla 2\.9\.0 needs torch 2\.9, and torch 2\.13\.0"):
        lowered()


def test_what_torch_xla_cannot_do_is_refused_before_it_is_imported(installed):
    installed(torch_xla="2.9.0", torch="2.9.1")
    with pytest.raises(MissingExtraError, match="sampling programs need JAX and torchax, and here only torch_xla"):
        runtimes.require_jax_for("sampling programs")
