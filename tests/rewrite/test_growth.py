"""Growth counted in work, which no other load on the machine can disturb: visits, reads, edits, answers of the
index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import pytest
from graphs import VECTOR, run_rules

from benchmarks.rewriters import Emit, chain, graphopt_rules, idle_rule, sum_of, wide
from graphopt import Exact, load, rule
from graphopt.ir.graph import Graph
from graphopt.ir.scratch import ScratchGraph
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.rule import Rule
from graphopt.verify.verifier import Structural

SMALL, LARGE = 200, 800
WORK = ("call", "insert", "redirect", "remove_unread", "add_constant")


@rule(contract=Exact())
class NegOfNeg:
    "neg(neg(x)) becomes x."

    def pattern(self, op: Any, x: Any) -> Any:
        return op.neg(op.neg(x))

    def rewrite(self, m: Any, build: Any) -> Any:
        return m.x


(ReluOfNeg,) = graphopt_rules(1)
IDLE = [idle_rule(outer, inner) for outer in ("neg", "relu", "tanh", "abs") for inner in ("exp", "log", "sin", "erf")]


def double_negations(nodes: int, emit: Emit, x: Any) -> Any:
    return sum_of([emit("tanh", emit("neg", emit("neg", x))) for _ in range(nodes // 4)], emit)


def scratch(shape: Callable[..., Any], nodes: int) -> Graph:
    graph = ScratchGraph()
    x = graph.add_input(VECTOR)
    graph.add_output(shape(nodes, lambda op, *operands: graph.append(op, *operands, types=[VECTOR]), x))
    return graph


def onnx(shape: Callable[..., Any], nodes: int) -> Graph:
    kind, size = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4])
    written: list[ir.Node] = []

    def emit(op: str, *operands: Any) -> Any:
        node = ir.node(op.capitalize(), list(operands))
        value = node.outputs[0]
        value.name, value.type, value.shape = f"v{len(written)}", kind, size
        written.append(node)
        return value

    x = ir.Value(name="x", type=kind, shape=size)
    y = shape(nodes, emit, x)
    graph = ir.Graph([x], [y], nodes=written, opset_imports={"": 20}, name="graph")
    return load(ir.Model(graph, ir_version=10)).main


def fx(shape: Callable[..., Any], nodes: int) -> Graph:
    torch = pytest.importorskip("torch")

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return shape(nodes, lambda op, *operands: getattr(torch, op)(*operands), x)

    return load(Model(), example_inputs=(torch.zeros(4),)).main


STORAGES = (scratch, onnx)
SHAPES = (chain, wide)


def work_of(graph: Graph, rules: Sequence[Rule], monkeypatch: pytest.MonkeyPatch) -> tuple[Driver, Counter[str], int]:
    """The driver after its run, how often it called what costs time, and how many rewrites it kept."""
    done: Counter[str] = Counter()
    with monkeypatch.context() as patched:
        for name in WORK:
            patched.setattr(graph, name, _counted(name, getattr(graph, name), done))
        driver, ledger = run_rules(graph, rules, verifier=Structural("none"))
    return driver, done, ledger.kept


def _counted(name: str, method: Callable[..., Any], done: Counter[str]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        done[name] += 1
        return method(*args, **kwargs)

    return counted


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_work_grows_with_the_graph_and_no_faster(
    storage: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, done_small, kept_small = work_of(storage(shape, SMALL), [ReluOfNeg], monkeypatch)
    large, done_large, kept_large = work_of(storage(shape, LARGE), [ReluOfNeg], monkeypatch)
    assert (kept_small, kept_large) == (SMALL // 4, LARGE // 4)
    assert large.visits <= 4.1 * small.visits
    assert done_large["call"] <= 4.1 * done_small["call"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_an_application_makes_the_same_few_edits_in_every_graph(
    storage: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = storage(shape, LARGE)
    before = len(list(graph.nodes()))
    _, done, kept = work_of(graph, [ReluOfNeg], monkeypatch)
    edits = {name: done[name] / kept for name in WORK if name != "call"}
    assert edits == {"insert": 1, "redirect": 1, "remove_unread": 1, "add_constant": 0}
    assert len(list(graph.nodes())) == before - kept


@pytest.mark.parametrize("storage", STORAGES)
def test_other_readers_of_a_value_are_not_visited_again_for_each_new_one(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, _, _ = work_of(storage(double_negations, SMALL), [NegOfNeg], monkeypatch)
    large, _, kept = work_of(storage(double_negations, LARGE), [NegOfNeg], monkeypatch)
    assert kept == LARGE // 4
    assert large.visits <= 4.1 * small.visits


@pytest.mark.parametrize("storage", STORAGES)
def test_no_node_is_read_where_the_ops_in_front_of_it_rule_every_pattern_out(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, done, _ = work_of(storage(chain, SMALL), IDLE, monkeypatch)
    assert driver.visits == SMALL
    assert not done


def test_rules_are_asked_once_for_each_combination_of_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    def questions(nodes: int) -> int:
        asked: Counter[str] = Counter()
        for one in IDLE:
            method = type(one.matcher).may_match.__get__(one.matcher)
            monkeypatch.setattr(one.matcher, "may_match", _counted("asked", method, asked))
        run_rules(scratch(chain, nodes), IDLE, verifier=Structural("none"))
        return asked["asked"]

    assert 0 < questions(SMALL) == questions(LARGE)


def test_both_real_storages_turn_the_same_nodes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [*IDLE, ReluOfNeg]
    visits = [work_of(storage(chain, 40), rules, monkeypatch)[0].visits for storage in (fx, onnx)]
    assert visits[0] == visits[1]
