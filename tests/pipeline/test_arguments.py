"""Arguments of `optimize` that make no sense are refused before a model is taken, with what was expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest

from graphopt.compiler import lower, optimize
from graphopt.errors import PipelineError

MODEL = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 18]>
    agraph (float[3] x) => (float[3] y) { a = Identity(x)  b = Identity(a)  y = Relu(b) }
""")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("limit", value) for value in ("a", -1, 1.5, True)]
    + [("skip", value) for value in (3, "clean-up/identity#1", [3], None)]
    + [("repro", value) for value in (3, ["folder"])]
    + [("prove", value) for value in ("x", 1, None)]
    + [("instruments", value) for value in (3, "ab", [3], None)]
    + [("verify", value) for value in ("everything", 3, [])],
)
def test_a_wrong_argument_is_named_with_what_was_expected(argument: str, value: Any) -> None:
    with pytest.raises(PipelineError) as error:
        optimize("no model is read", "clean-up", **{argument: value})
    assert f"{argument}={value!r}: expected" in str(error.value)


@pytest.mark.parametrize("name", [3, [], None])
def test_a_backend_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(PipelineError, match="expected one of onnxruntime"):
        lower(MODEL, name)


def test_what_is_read_once_may_say_what_to_leave_out(tmp_path: Path) -> None:
    (first, *_) = optimize(MODEL, "clean-up").report.kept
    skipped = optimize(MODEL, "clean-up", skip=(i for i in [first.id]), limit=np.int64(5), repro=tmp_path)
    assert first.id not in [a.id for a in skipped.report.kept]
    assert not optimize(MODEL, "clean-up", limit=0).report.kept
