"""What the index of rules tells of nodes without reading them."""

from __future__ import annotations

import onnx.parser
from graphs import graph_of

from graphopt.ir.load import load_model
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.index import RuleIndex
from graphopt.rewrite.rule import rule


@rule(contract=Rounding())
class SiluOfNeg:
    def pattern(self, op, x):
        return op.mul(op.neg(x), op.sigmoid(op.neg(x)))

    def rewrite(self, m, build):
        return build.silu(build.neg(m.x))


def test_patterns_look_through_the_ops_below_their_roots_alone():
    graph, _ = graph_of("neg", "sigmoid", "exp", "relu")
    index = RuleIndex((SiluOfNeg,))
    assert [graph.key(n) for n in graph.nodes() if index.leads_on(graph, n)] == ["neg", "sigmoid"]


def test_patterns_look_through_ops_that_they_name_as_the_storage_does():
    @rule(contract=Exact())
    class OfRaw:
        def pattern(self, op, x):
            return op.relu(op.raw("ai.onnx::Exp", x))

        def rewrite(self, m, build):
            return None

    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x) => (float[4] y)'
    text = f"{head} {{a = Neg(x) b = Exp(a) y = Relu(b)}}"
    graph = load_model(onnx.parser.parse_model(text)).main
    index = RuleIndex((OfRaw,))
    assert [graph.key(n) for n in graph.nodes() if index.leads_on(graph, n)] == ["exp"]
