"""Small graphs for the tests of clean-up: ONNX models as text, scratch graphs for single rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from graphopt.compiler import Optimized, optimize
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Application
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule
from graphopt.verify.verifier import MatchVerifier


def onnx_model(body: str, *, opset: int = 18, ir_version: int = 8) -> onnx.ModelProto:
    """A checked model from the text of its graph ("agraph (float[N,3] x) => (float[N,3] y) {...}")."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> {body}')
    onnx.checker.check_model(model)
    return model


def clean(model: Any, **options: Any) -> Optimized:
    return optimize(model, passes="clean-up", **options)


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def applications(result: Optimized) -> list[Application]:
    return [a for record in result.report.passes for a in record.applications]


def kept_rules(result: Optimized) -> Counter[str]:
    return Counter(a.rule for a in applications(result) if a.status == "kept")


def run_onnx(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def assert_same_results(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    """Bit-equal results and equal interfaces."""
    assert [v.name for v in before.graph.input] == [v.name for v in after.graph.input]
    assert [v.name for v in before.graph.output] == [v.name for v in after.graph.output]
    for old, new in zip(run_onnx(before, feeds), run_onnx(after, feeds), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)


class Sketch:
    """A scratch graph with one input, to which ops are appended."""

    def __init__(self, dtype: str = "float64", shape: tuple[Any, ...] = (2, 3, 4)) -> None:
        self.graph = ScratchGraph()
        self.x = self.graph.add_input(TensorType(dtype, shape), "x")

    def add(
        self, op: str, *operands: Any, type: tuple[str, tuple[Any, ...]] | None = None, **fields: Any
    ) -> Any:
        """Append `op`; its output has the type of the input unless `type` says otherwise."""
        known = self.x.type if type is None else TensorType(*type)
        return self.graph.append(op, *operands, types=[known], **fields)

    def result(self, value: Any) -> Sketch:
        self.graph.add_output(value)
        return self

    def ops(self) -> list[str]:
        return [node.call.op for node in self.graph.nodes()]

    def run_rules(self, rules: Sequence[Rule]) -> list[Application]:
        ledger = Ledger()
        ledger.open_pass("test")
        Driver(rules, Editor(self.graph, ledger, MatchVerifier())).run()
        return ledger.applications
