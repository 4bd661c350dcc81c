"""The vocabulary as a whole: every field is read, every meaning documented and compared with a runtime."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap

import pytest

from benchmarks.op_cases import CASES
from graphopt.ir.ops import OPS, REQUIRED, Fill


def names_read(meaning: object) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(meaning)))  # type: ignore[arg-type]
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    loads = [n for statement in function.body for n in ast.walk(statement) if isinstance(n, ast.Name)]
    return {n.id for n in loads if isinstance(n.ctx, ast.Load)}


@pytest.mark.parametrize("name", sorted(OPS))
def test_a_meaning_reads_every_operand_and_field(name: str) -> None:
    declared = {*OPS[name].operands, *OPS[name].fields}
    assert declared <= names_read(OPS[name].meaning)


@pytest.mark.parametrize("name", sorted(OPS))
def test_a_meaning_is_documented(name: str) -> None:
    assert OPS[name].meaning.__doc__


@pytest.mark.parametrize("name", sorted(OPS))
def test_an_op_is_compared_with_a_runtime(name: str) -> None:
    compared = {c.op for c in CASES if c.onnx is not None or c.torch is not None}
    assert name in compared


@pytest.mark.parametrize("name", sorted(n for n in OPS if OPS[n].fields))
def test_every_field_is_compared_at_two_values_or_more(name: str) -> None:
    """A comparison at the default alone would not see a field that does nothing."""
    for field, default in OPS[name].fields.items():
        values = {repr(c.fields.get(field, default)) for c in CASES if c.op == name}
        assert len(values) >= 2, field


def test_defaults_are_recognised() -> None:
    conv, gelu = OPS["conv"], OPS["gelu"]
    assert isinstance(conv.fields["pads"], Fill)
    assert conv.is_default("stride", (1, 1)) and not conv.is_default("stride", (1, 2))
    assert gelu.is_default("approximate", "none") and not gelu.is_default("approximate", "tanh")
    assert OPS["softmax"].fields["axis"] is REQUIRED


def test_fields_have_the_defaults_that_graphs_leave_unsaid() -> None:
    defaults = {
        (name, field): default.value if isinstance(default, Fill) else default
        for name, op in OPS.items()
        for field, default in op.fields.items()
        if default is not REQUIRED
    }
    window = {"stride": 1, "pads": 0, "dilation": 1}
    windowed = ("conv", "conv_transpose", "fused_conv", "max_pool", "avg_pool")
    assert defaults == {
        **{(op, field): value for op in windowed for field, value in window.items()},
        ("conv", "groups"): 1,
        ("conv_transpose", "groups"): 1,
        ("fused_conv", "groups"): 1,
        ("fused_conv", "parameters"): (),
        ("conv_transpose", "output_padding"): 0,
        ("max_pool", "ceil"): False,
        ("avg_pool", "ceil"): False,
        ("avg_pool", "count_include_pad"): False,
        ("resize", "sizes"): None,
        ("resize", "scales"): None,
        ("resize", "nearest"): None,
        ("depth_to_space", "mode"): "DCR",
        ("gelu", "approximate"): "none",
        ("leaky_relu", "slope"): 0.01,
        ("elu", "alpha"): 1.0,
        ("softplus", "beta"): 1.0,
        ("softplus", "threshold"): None,
        ("div", "rounding"): None,
        ("mod", "fmod"): False,
        ("linear", "trans_w"): True,
        ("attention", "causal"): False,
        ("attention", "gqa"): False,
        ("moe", "normalize"): False,
        ("moe", "alpha"): 1.0,
        ("moe", "beta"): 0.0,
        ("moe", "limit"): None,
        ("batch_norm", "training"): False,
        ("lstm", "direction"): "forward",
        ("gru", "direction"): "forward",
        ("gru", "linear_before_reset"): False,
        ("lstm_layer", "biases"): True,
        ("lstm_layer", "bidirectional"): False,
        ("lstm_layer", "batch_first"): False,
        ("cumsum", "exclusive"): False,
        ("cumsum", "reverse"): False,
        ("cumsum", "dtype"): None,
        ("sort", "descending"): False,
        ("topk", "largest"): True,
        ("reshape", "shape"): None,
        ("reshape", "allow_zero"): False,
        ("expand", "shape"): None,
        ("pad", "mode"): "constant",
        ("shape", "start"): 0,
        ("shape", "end"): None,
        ("fill", "shape"): None,
        ("trilu", "k"): 0,
        ("gather_nd", "batch_dims"): 0,
        ("scatter_elements", "reduction"): None,
        ("scatter_nd", "reduction"): None,
        ("dequantize", "axis"): None,
        ("quantize", "axis"): None,
    }


def test_operands_that_may_be_absent_are_declared() -> None:
    assert {name: set(op.optional) for name, op in OPS.items() if op.optional} == {
        "clamp": {"low", "high"},
        "linear": {"b"},
        "attention": {"mask"},
        "multi_head_attention": {"bias"},
        "moe": {"b1", "b2"},
        "conv": {"b"},
        "conv_transpose": {"b"},
        "fused_conv": {"b"},
        "batch_norm": {"scale", "shift", "mean", "var"},
        "instance_norm": {"scale", "shift"},
        "layer_norm": {"scale", "shift"},
        "rms_norm": {"scale"},
        "group_norm": {"scale", "shift"},
        "lstm": {"b", "h", "c"},
        "gru": {"b", "h"},
        "reshape": {"target"},
        "expand": {"target"},
        "fill": {"target"},
        "pad": {"value"},
        "dequantize": {"zero"},
        "quantize": {"zero"},
    }
    assert {name for name, op in OPS.items() if op.variadic} == {"concat", "einsum", "lstm_layer", "stack"}


def test_exactly_the_symmetric_ops_are_commutative() -> None:
    symmetric = {n for n, op in OPS.items() if op.commutative}
    assert symmetric == {
        "add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or", "logical_xor",
    }  # fmt: skip


def test_numbers_of_outputs_are_declared() -> None:
    assert {name: op.outputs for name, op in OPS.items() if op.outputs != 1} == {
        "topk": 2, "sort": 2, "split": None, "lstm": 3, "lstm_layer": 3, "gru": 2,
    }  # fmt: skip


def test_the_vocabulary_needs_neither_torch_nor_onnxruntime() -> None:
    program = (
        "import sys, graphopt.ir.ops; print({'torch', 'onnxruntime', 'jax', 'scipy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
