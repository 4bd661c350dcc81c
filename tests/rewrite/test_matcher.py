"""What a pattern matches and, above all, what it refuses to match."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import VECTOR, graph_of, weight

from graphopt.errors import RuleError
from graphopt.ir.graph import Literal, TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.pattern import any_, any_of, const, many, opt
from graphopt.rewrite.rule import Match, Rule, rule


def rule_of(pattern, check=None) -> Rule:
    body = {"pattern": pattern, "rewrite": lambda self, m, build: m.x}
    if check is not None:
        body["check"] = check
    return rule(contract=Exact())(type("UnderTest", (), body))


def match_last(rule_: Rule, graph: ScratchGraph) -> Match | NoMatch:
    return rule_.match(graph, list(graph.nodes())[-1])


def binary(op: str, left, right) -> ScratchGraph:
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    operands = [x if o == "x" else o for o in (left, right)]
    graph.add_output(graph.append(op, *operands, types=[VECTOR]))
    return graph


def test_a_variable_used_twice_must_be_one_value():
    graph = ScratchGraph()
    x, y = graph.add_input(VECTOR), graph.add_input(VECTOR)
    twice = rule_of(lambda self, op, x: op.add(x, x))
    graph.append("add", x, y)
    assert "two different values" in match_last(twice, graph).reason
    graph.append("add", x, x)
    assert match_last(twice, graph)


def test_a_commutative_op_matches_in_both_orders():
    silu = rule_of(lambda self, op, x: op.mul(x, op.sigmoid(x)))
    for swap in (False, True):
        graph = ScratchGraph()
        x = graph.add_input(VECTOR)
        s = graph.append("sigmoid", x)
        graph.append("mul", *((s, x) if swap else (x, s)))
        assert match_last(silu, graph)


def test_an_op_that_is_not_commutative_matches_in_its_order_only():
    pattern = rule_of(lambda self, op, x: op.sub(x, const(1.0)))
    assert match_last(pattern, binary("sub", "x", weight(1, 1, 1, 1)))
    assert not match_last(pattern, binary("sub", weight(1, 1, 1, 1), "x"))


def test_a_constant_is_compared_not_ignored():
    pattern = rule_of(lambda self, op, x: op.mul(x, const(1.0)))
    assert match_last(pattern, binary("mul", "x", weight(1, 1, 1, 1)))
    refused = match_last(pattern, binary("mul", "x", weight(1, 1, 2, 1)))
    assert not refused


def test_an_empty_constant_equals_no_number():
    pattern = rule_of(lambda self, op, x: op.mul(x, const(1.0)))
    assert not match_last(pattern, binary("mul", "x", ArrayRef(np.zeros((0,)))))


def test_a_captured_constant_must_be_constant():
    graph = ScratchGraph()
    x, w = graph.add_input(VECTOR), graph.add_input(VECTOR)
    graph.append("mul", x, w)
    refused = match_last(rule_of(lambda self, op, x, w: op.mul(x, const(w))), graph)
    assert "is not a constant" in refused.reason


def test_literals_are_constants():
    pattern = rule_of(lambda self, op, x: op.mul(x, const(1.0)))
    assert match_last(pattern, binary("mul", "x", Literal(1.0, "float64")))
    assert not match_last(pattern, binary("mul", "x", Literal(2.0, "float64")))


def test_a_field_that_is_not_mentioned_must_have_its_default():
    graph = ScratchGraph()
    x = graph.add_input(TensorType("float64", (2, 3)))
    graph.append(
        "batch_norm", x, weight(1, 1, 1), weight(0, 0, 0), weight(0, 0, 0), weight(1, 1, 1), eps=1e-5, training=True
    )
    pattern = rule_of(
        lambda self, op, x, a, b, c, d: op.batch_norm(x, const(a), const(b), const(c), const(d), eps=any_)
    )
    refused = match_last(pattern, graph)
    assert "batch_norm.training is True" in refused.reason and "does not mention" in refused.reason


def test_a_field_that_is_mentioned_is_compared_with_its_type():
    graph, _ = graph_of()
    x = graph.inputs()[0]
    graph.append("leaky_relu", x, slope=1.0)
    assert match_last(rule_of(lambda self, op, x: op.leaky_relu(x, slope=1.0)), graph)
    assert not match_last(rule_of(lambda self, op, x: op.leaky_relu(x, slope=1)), graph)
    assert match_last(rule_of(lambda self, op, x: op.leaky_relu(x, slope=any_)), graph)


def test_an_absent_optional_operand_binds_none():
    graph = ScratchGraph()
    x = graph.add_input(TensorType("float64", (2, 3)))
    w = ArrayRef(np.ones((5, 3)))
    graph.append("linear", x, w)
    pattern = rule_of(lambda self, op, x, w, b: op.linear(x, const(w), opt(const(b))))
    assert match_last(pattern, graph).b is None
    graph.append("linear", x, w, ArrayRef(np.ones(5)))
    assert match_last(pattern, graph).b.shape == (5,)


def test_a_present_operand_that_the_pattern_does_not_mention_is_refused():
    graph = ScratchGraph()
    x = graph.add_input(TensorType("float64", (2, 3)))
    graph.append("linear", x, ArrayRef(np.ones((5, 3))), ArrayRef(np.ones(5)))
    assert not match_last(rule_of(lambda self, op, x, w: op.linear(x, const(w))), graph)


def test_optional_ops_are_followed():
    pattern = rule_of(lambda self, op, x, low: op.clamp(x, opt(op.neg(low))))
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    graph.append("clamp", x, graph.append("neg", x))
    assert match_last(pattern, graph)
    graph.append("clamp", x, x)
    assert not match_last(pattern, graph)


def test_alternatives_backtrack_through_the_whole_pattern():
    """The first alternative fits on its own but makes the rest fail; the second must then be tried."""
    graph = ScratchGraph()
    x, y = graph.add_input(VECTOR), graph.add_input(VECTOR)
    graph.append("sub", graph.append("add", x, y), y)
    pattern = rule_of(lambda self, op, x, y: op.sub(any_of(op.add(y, x), op.add(x, y)), y))
    found = match_last(pattern, graph)
    assert found and found.y is y and found.x is x


def test_a_check_inside_an_alternative_is_honoured():
    def refuse(self, m):
        m.fail("never")

    graph, _ = graph_of("neg", "neg")
    refused = match_last(rule_of(lambda self, op, x: op.neg(any_of(op.neg(x), op.relu(x))), refuse), graph)
    assert refused.reason == "never"


def test_many_binds_all_operands_of_a_variadic_op():
    graph = ScratchGraph()
    x, y = graph.add_input(VECTOR), graph.add_input(VECTOR)
    graph.append("concat", x, y, x, axis=0)
    found = match_last(rule_of(lambda self, op, x: op.concat(many(x), axis=any_)), graph)
    assert found.x == (x, y, x)


def test_a_second_output_is_not_the_first():
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    _, indices = graph.append("topk", x, k=2, axis=0)
    graph.append("neg", indices)
    assert not match_last(rule_of(lambda self, op, x: op.neg(op.topk(x, k=any_, axis=any_))), graph)
    assert match_last(rule_of(lambda self, op, x: op.neg(op.topk(x, k=any_, axis=any_)[1])), graph)


def test_several_roots_are_found_through_their_common_operand():
    graph = ScratchGraph()
    x = graph.add_input(TensorType("float64", (2, 3)))
    graph.append("matmul", x, ArrayRef(np.ones((3, 2))))
    graph.append("matmul", x, ArrayRef(np.ones((3, 5))))
    pattern = rule_of(lambda self, op, x, v, w: (op.matmul(x, const(v)), op.matmul(x, const(w))))
    found = pattern.match(graph, next(graph.nodes()))
    assert found.v.shape == (3, 2) and found.w.shape == (3, 5) and len(found.outputs) == 2


def test_the_reason_names_what_was_found_instead():
    graph, _ = graph_of("relu", "neg")
    refused = match_last(rule_of(lambda self, op, x: op.neg(op.neg(x))), graph)
    assert refused.reason == "expected neg but found relu"


def test_reasons_are_formatted_only_when_read():
    class Loud:
        read = 0

        def __format__(self, spec):
            Loud.read += 1
            return "loud"

    refused = NoMatch("{}", (Loud(),))
    assert Loud.read == 0
    assert refused.reason == "loud" and Loud.read == 1


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda self, op, x: op.frobnicate(x), "no such op"),
        (lambda self, op, x: op.relu(x, slope=1), "no field 'slope'"),
        (lambda self, op, x: op.relu(x, x), "takes 1 operands"),
        (lambda self, op, x: op.relu("x"), "must be a pattern"),
        (lambda self, op, x: x, "must return op patterns"),
        (lambda self, op, rank: op.relu(rank), "m.rank is not what the pattern binds"),
    ],
)
def test_malformed_patterns_are_refused_when_the_rule_is_made(pattern, message):
    with pytest.raises(RuleError, match=message):
        rule_of(pattern)


def test_an_unbound_name_is_an_attribute_error():
    graph, _ = graph_of("neg")
    with pytest.raises(AttributeError, match="binds no 'y'"):
        _ = match_last(rule_of(lambda self, op, x: op.neg(x)), graph).y


def test_a_constant_captured_twice_must_be_one_constant():
    graph = ScratchGraph()
    x, low, high = graph.add_input(VECTOR), *(graph.add_constant(weight(v), "c")[0] for v in (0, 1))
    twice = rule_of(lambda self, op, x, c: op.clamp(x, opt(const(c)), opt(const(c))))
    for operands in ((low, high), (low, None), (None, low)):
        graph.append("clamp", x, *operands)
        assert "c stands for two different values" in match_last(twice, graph).reason
    graph.append("clamp", x, low, low)
    assert match_last(twice, graph)
    graph.append("clamp", x, None, None)
    assert match_last(twice, graph).c is None


def test_zero_and_minus_zero_are_two_values():
    graph = ScratchGraph()
    twice = rule_of(lambda self, op, x: op.add(x, x))
    graph.append("add", Literal(0.0, "float64"), Literal(-0.0, "float64"))
    assert not match_last(twice, graph)
    graph.append("add", Literal(-0.0, "float64"), Literal(-0.0, "float64"))
    assert match_last(twice, graph)


@pytest.mark.parametrize(
    "pattern",
    [
        lambda self, op, x, xs: op.concat(many(xs), x, axis=any_),
        lambda self, op, xs: op.concat(opt(many(xs)), axis=any_),
        lambda self, op, x, xs: op.concat(any_of(x, many(xs)), axis=any_),
    ],
)
def test_a_list_beside_others_is_refused_when_the_rule_is_made(pattern):
    with pytest.raises(RuleError, match="stands for all operands of an op"):
        rule_of(pattern)
