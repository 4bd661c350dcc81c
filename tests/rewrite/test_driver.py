"""The driver: fixed points, guards, undo, limits and ids."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from graphs import VECTOR, graph_of, ops_of, run_rules, weight

from graphopt.errors import RuleError
from graphopt.ir.graph import TensorType
from graphopt.ir.load import load_model
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.explain import explain, nearest_misses
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.pattern import any_, const
from graphopt.rewrite.rule import rule
from graphopt.verify.verifier import Structural


@rule(contract=Exact())
class DoubleNeg:
    """neg(neg(x)) is x."""

    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def rewrite(self, m, build):
        return m.x


@rule(contract=Rounding())
class Silu:
    """x * sigmoid(x)."""

    def pattern(self, op, x):
        return op.mul(x, op.sigmoid(x))

    def rewrite(self, m, build):
        return build.silu(m.x)


@rule(contract=Exact())
class WrongAbs:
    """Planted: abs is not relu."""

    def pattern(self, op, x):
        return op.abs(x)

    def rewrite(self, m, build):
        return build.relu(m.x)


@rule(contract=Exact())
class Flip:
    """relu(x) written as clamp(x, 0): right, and undone by Flop."""

    def pattern(self, op, x):
        return op.relu(x)

    def rewrite(self, m, build):
        return build.maximum(m.x, build.const(0.0, dtype="float64"))


@rule(contract=Exact())
class Flop:
    """maximum(x, 0) is relu(x)."""

    def pattern(self, op, x):
        return op.maximum(x, const(0.0))

    def rewrite(self, m, build):
        return build.relu(m.x)


def test_rules_run_to_the_fixed_point():
    graph, _ = graph_of(*["neg"] * 7)
    _, ledger = run_rules(graph, [DoubleNeg])
    assert ops_of(graph) == ["neg"] and ledger.kept == 3
    assert all(a.evidence.kind == "bit-equal" and a.evidence.inputs == 3 for a in ledger.applications)


def test_a_wrong_rule_is_undone_alone_and_the_rest_is_kept():
    graph, _ = graph_of("neg", "neg", "abs", "neg", "neg")
    _, ledger = run_rules(graph, [DoubleNeg, WrongAbs])
    assert ops_of(graph) == ["abs"]
    statuses = [(a.rule, a.status) for a in ledger.applications]
    assert statuses.count(("wrong-abs", "undone")) == 1 and statuses.count(("double-neg", "kept")) == 2
    undone = next(a for a in ledger.applications if a.status == "undone")
    assert "float64" in undone.reason


def test_an_undone_application_leaves_no_trace():
    graph, _ = graph_of("abs", "exp")
    before = graph.fingerprint()
    run_rules(graph, [WrongAbs])
    assert graph.fingerprint() == before


def test_inner_values_with_other_users_are_refused_with_the_reason():
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    inner = graph.append("neg", x, types=[VECTOR])
    graph.add_output(graph.append("neg", inner, types=[VECTOR]))
    graph.add_output(graph.append("exp", inner, types=[VECTOR]))
    _, ledger = run_rules(graph, [DoubleNeg])
    assert ledger.kept == 0
    assert any("has other users" in r for r in ledger.stats["double-neg"].refused)


def test_inner_values_that_are_outputs_are_refused_with_the_reason():
    graph, values = graph_of("neg", "neg")
    graph.add_output(values[0])
    _, ledger = run_rules(graph, [DoubleNeg])
    assert ledger.kept == 0
    assert any("is an output of the graph" in r for r in ledger.stats["double-neg"].refused)


def test_a_refusal_is_reconsidered_when_the_other_user_disappears():
    """The inner neg is also read by a sigmoid that a second rule removes."""

    @rule(contract=Exact())
    class DropZero:
        """x + 0 * y is x for finite y; here y is a relu of an integer, so exact."""

        def pattern(self, op, x, y):
            return op.add(x, op.mul(y, const(0.0)))

        def rewrite(self, m, build):
            return m.x

    integers = TensorType("int64", (4,))
    graph = ScratchGraph()
    x, z = graph.add_input(integers), graph.add_input(integers)
    inner = graph.append("neg", x, types=[integers])
    outer = graph.append("neg", inner, types=[integers])
    zero = graph.append("mul", inner, ArrayRef(np.zeros(4, np.int64)), types=[integers])
    graph.add_output(graph.append("add", z, zero, types=[integers]))
    graph.add_output(graph.append("exp", outer))
    run_rules(graph, [DoubleNeg, DropZero])
    assert ops_of(graph) == ["exp"]


def test_keep_shared_leaves_inner_nodes_in_place():
    @rule(contract=Exact(), keep_shared=True)
    class SharedDoubleNeg:
        """neg(neg(x)) is x, whoever else reads the inner neg."""

        def pattern(self, op, x):
            return op.neg(op.neg(x))

        def rewrite(self, m, build):
            return m.x

    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    inner = graph.append("neg", x, types=[VECTOR])
    graph.add_output(graph.append("exp", graph.append("neg", inner, types=[VECTOR]), types=[VECTOR]))
    graph.add_output(inner)
    run_rules(graph, [SharedDoubleNeg])
    assert ops_of(graph) == ["neg", "exp"]


def test_rules_that_undo_each_other_stop_with_a_note():
    graph, _ = graph_of("relu")
    driver, ledger = run_rules(graph, [Flip, Flop])
    assert len(ledger.applications) <= 60
    assert any("stopped" in note for note in driver.notes)


def test_limit_keeps_the_first_applications():
    graph, _ = graph_of(*["neg"] * 8)
    _, ledger = run_rules(graph, [DoubleNeg], ledger=Ledger(limit=2))
    assert ledger.kept == 2 and ops_of(graph) == ["neg"] * 4


def test_skip_leaves_one_out_and_other_ids_unchanged():
    def ids(skip: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        graph, _ = graph_of("neg", "neg", "exp", "neg", "neg", "exp", "neg", "neg")
        _, ledger = run_rules(graph, [DoubleNeg], ledger=Ledger(skip=skip))
        return {a.id: a.nodes for a in ledger.applications}

    full = ids(())
    assert list(full) == ["test/double-neg#1", "test/double-neg#2", "test/double-neg#3"]
    assert ids(("test/double-neg#2",)) == full


def test_a_rule_that_raises_midway_leaves_the_graph_as_it_was():
    @rule(contract=Exact())
    class Crash:
        """Planted: writes two nodes, then raises."""

        def pattern(self, op, x):
            return op.exp(x)

        def rewrite(self, m, build):
            build.relu(build.neg(m.x))
            raise ValueError("boom")

    graph, _ = graph_of("exp", "neg", "neg")
    before, _ = graph_of("exp", "neg", "neg")
    _, ledger = run_rules(graph, [Crash])
    crashed = ledger.applications[0]
    assert crashed.status == "undone" and "ValueError: boom" in crashed.reason
    assert graph.fingerprint() == before.fingerprint()


def test_a_check_that_raises_is_a_reason_not_a_crash():
    @rule(contract=Exact())
    class BadCheck:
        """Planted: the check raises."""

        def pattern(self, op, x):
            return op.exp(x)

        def check(self, m):
            raise KeyError("gone")

        def rewrite(self, m, build):
            return m.x

    graph, _ = graph_of("exp", "neg", "neg")
    _, ledger = run_rules(graph, [BadCheck, DoubleNeg])
    assert ops_of(graph) == ["exp"]
    assert any("KeyError" in r for r in ledger.stats["bad-check"].refused)


def test_a_rewrite_that_edits_behind_the_journal_is_named():
    @rule(contract=Exact())
    class Sneaky:
        """Planted: edits the graph itself and then says that nothing changed."""

        def pattern(self, op, x):
            return op.exp(x)

        def rewrite(self, m, build):
            graph.replace(m.out, m.x)
            return

    graph, _ = graph_of("exp", "neg")
    with pytest.raises(RuleError, match="behind the journal's back"):
        run_rules(graph, [Sneaky])


def test_a_rewrite_that_changes_nothing_is_recorded_as_such():
    @rule(contract=Exact())
    class Idle:
        """Planted: matches and does nothing."""

        def pattern(self, op, x):
            return op.exp(x)

        def rewrite(self, m, build):
            return None

    graph, _ = graph_of("exp")
    _, ledger = run_rules(graph, [Idle])
    assert [a.reason for a in ledger.applications] == ["the rewrite changed nothing"]


def test_a_changed_dtype_or_shape_is_refused_before_anything_runs():
    @rule(contract=Exact())
    class Narrow:
        """Planted: returns a value of another type."""

        def pattern(self, op, x, y):
            return op.add(x, y)

        def rewrite(self, m, build):
            return m.y

    graph = ScratchGraph()
    x, y = graph.add_input(TensorType("float64", (3, 4))), graph.add_input(VECTOR)
    graph.add_output(graph.append("add", x, y, types=[TensorType("float64", (3, 4))]))
    _, ledger = run_rules(graph, [Narrow])
    assert "would become float64[4]" in ledger.applications[0].reason


def test_two_rules_of_one_name_are_refused():
    graph, _ = graph_of("neg")
    with pytest.raises(RuleError, match="two rules of one set"):
        run_rules(graph, [DoubleNeg, DoubleNeg])


def test_work_grows_linearly():
    def visits(n: int) -> int:
        graph, _ = graph_of(*["exp", "neg", "neg", "log"] * n)
        driver, _ = run_rules(graph, [DoubleNeg, Silu])
        return driver.visits

    assert visits(40) <= 4.5 * visits(10)


def test_explain_agrees_with_what_the_driver_does():
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    inner = graph.append("neg", x, types=[VECTOR])
    last = graph.append("neg", inner, types=[VECTOR])
    graph.add_output(last)
    assert explain(graph, DoubleNeg, last.producer).matched
    graph.add_output(inner)
    verdict = explain(graph, DoubleNeg, last.producer)
    assert not verdict.matched and "output of the graph" in verdict.reason


def test_the_nearest_miss_comes_first():
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    graph.add_output(graph.append("neg", x, types=[VECTOR]))
    inner = graph.append("neg", x, types=[VECTOR])
    graph.add_output(inner)
    graph.add_output(graph.append("neg", inner, types=[VECTOR]))
    misses = nearest_misses(graph, DoubleNeg)
    assert [m.reason.split()[-3:] for m in misses][0] == ["of", "the", "graph"]
    assert len(misses) == 3 and misses[0].score > misses[1].score


def test_a_captured_weight_is_reused_not_copied():
    @rule(contract=Exact())
    class SwapMul:
        """mul(x, w) is mul(w, x)."""

        def pattern(self, op, x, w):
            return op.mul(op.neg(x), const(w))

        def rewrite(self, m, build):
            return build.mul(m.w, build.neg(m.x))

    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    data = weight(1, 2, 3, 4)
    graph.add_output(graph.append("mul", graph.append("neg", x, types=[VECTOR]), data, types=[VECTOR]))
    run_rules(graph, [SwapMul], ledger=Ledger(limit=1))
    mul = list(graph.nodes())[-1].call
    assert graph.constant(mul.operands[0]) is data


def test_what_waits_for_readers_of_another_output_is_tried_when_they_are_moved_away():
    half = TensorType("float64", (2,))

    def sliced(build, value, index, like):
        return build.slice_(value, starts=(2 * index,), ends=(2 * index + 2,), axes=(0,), steps=(1,), like=like)

    @rule(contract=Rounding())
    class First:
        def pattern(self, op, x):
            return op.relu(op.split(x, sizes=any_, axis=any_))

        def rewrite(self, m, build):
            return build.relu(sliced(build, m.x, 0, m.out), like=m.out)

    @rule(contract=Rounding(), keep_shared=True)
    class Second:
        def pattern(self, op, x):
            return op.split(op.add(x, x), sizes=any_, axis=any_)[1]

        def rewrite(self, m, build):
            return sliced(build, build.add(m.x, m.x, like=VECTOR), 1, m.out)

    @rule(contract=Exact())
    class Late:
        def pattern(self, op, x):
            return op.neg(op.neg(x))

        def rewrite(self, m, build):
            return m.x

    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    twice = graph.append("neg", graph.append("neg", x, types=[VECTOR]), types=[VECTOR])
    joined = graph.append("add", x, twice, types=[VECTOR])
    first, second = graph.append("split", joined, sizes=(2, 2), axis=0, types=[half, half])
    graph.add_output(graph.append("relu", first, types=[half]))
    graph.add_output(graph.append("neg", second, types=[half]))
    run_rules(graph, [First, Second, Late])
    assert "split" not in ops_of(graph)
    _, again = run_rules(graph, [First, Second, Late])
    assert not again.applications


def test_roots_of_which_one_is_read_in_a_body_are_replaced_before_it():
    @rule(contract=Exact())
    class Twins:
        def pattern(self, op, x):
            return op.relu(x), op.relu(x)

        def rewrite(self, m, build):
            return (build.relu(m.x, like=m.out),) * 2

    head = '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x, bool c) => (float[4] y)'
    bodies = "then_branch = t () => (float[4] u) {u = Neg(a)}, else_branch = e () => (float[4] v) {v = Abs(b)}"
    text = f"{head} {{a = Relu(x) b = Relu(x) y = If (c) <{bodies}>}}"
    graph = load_model(onnx.parser.parse_model(text)).main
    _, ledger = run_rules(graph, [Twins], verifier=Structural("none"))
    assert [a.status for a in ledger.applications] == ["kept"]
    assert [graph.key(n) for n in graph.nodes()].count("relu") == 1
