"""Every op of the vocabulary and every torch op that is read, with corner cases on XLA: right, or refused by name."""

from xla_support import Function, torch  # first: it skips where JAX is missing  # isort: skip

import pytest
import torch.nn.functional as F

import graphopt
from benchmarks import xla_ops
from graphopt.ir.ops import OPS


@pytest.fixture(scope="module")
def vocabulary():
    return xla_ops.vocabulary()


@pytest.fixture(scope="module")
def torch_ops():
    return xla_ops.torch_ops()


def test_no_op_of_the_vocabulary_is_wrong(vocabulary):
    assert [v for v in vocabulary if v.outcome == "wrong"] == []
    assert {v.op for v in vocabulary if v.outcome == "right"} == set(OPS)


def test_calls_are_refused_only_where_data_says_sizes(vocabulary):
    refused = [v for v in vocabulary if v.outcome == "refused"]
    assert {v.op for v in refused} == set(xla_ops.SIZED)
    assert all("(sizes from the data)" in v.case and "computed from the data" in v.reason for v in refused)


def test_no_torch_op_is_wrong(torch_ops):
    assert [v for v in torch_ops if v.outcome == "wrong"] == []


def test_torch_ops_are_refused_by_name(torch_ops):
    refused = {v.case: v.reason for v in torch_ops if v.outcome == "refused"}
    assert refused == {
        "bernoulli": "no kernel for aten.rand.default",
        "dropout in training": "no kernel for aten.rand_like.default",
        "randn_like": "no kernel for aten.randn_like.default",
    }


def test_torch_ops_without_a_kernel_run_by_their_meaning(torch_ops):
    ways = {v.case: v.way for v in torch_ops}
    assert {ways[name] for name in ("prelu_one", "lstm", "upsample_bicubic", "conv2d_same_even")} == {"vocabulary"}


def test_a_wrong_meaning_on_xla_is_seen(monkeypatch):
    from graphopt.backends.xla import calls

    monkeypatch.setitem(calls.KERNELS, "matmul", lambda a, b: a @ b * (1 + 1e-4))
    monkeypatch.setattr(xla_ops, "CASES", [case for case in xla_ops.CASES if case.op == "matmul"])
    assert "wrong" in {v.outcome for v in xla_ops.vocabulary()}


def test_sizes_that_vary_leave_ops_to_torch():
    module = Function(lambda x: F.layer_norm(F.mish(x), (6,)))
    shapes = (({0: torch.export.Dim("n", min=2, max=9)},),)
    run = graphopt.lower(module, "xla", example_inputs=(torch.randn(3, 6),), dynamic_shapes=shapes)
    for rows in (3, 5):
        x = torch.randn(rows, 6)
        torch.testing.assert_close(run(x), module(x), rtol=1e-5, atol=1e-6)
