"""A branch that cannot be run is compared with what was written for it; whatever differs is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest
from onnx.parser import parse_model

from graphopt.ir.graph import Value
from graphopt.ir.load import load_model
from graphopt.passes.constant_branches import write_branch
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Application, Exact
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.branches import COPIED
from graphopt.verify.verifier import MatchVerifier

MODEL = """<ir_version: 8, opset_import: ["": 18]>
agraph (float[1, 3] t, bool d) => (z) <bool c = {1}, float[3] w = {1, 2, 3}> {
    u = If (d) <
        then_branch = one () => (e) { first = Constant <value_ints = [0]> () e = Squeeze(t, first) },
        else_branch = other () => (f) { f = Identity(t) }
    >
    z = If (c) <
        then_branch = yes () => (p) {
            two = Constant <value = float {2}> ()
            a = Sub(u, w)
            b = LeakyRelu <alpha = 0.5> (a)
            p = If (d) <
                then_branch = deep () => (r) { r = Sub(b, two) },
                else_branch = flat () => (s) { s = Sub(u, b) }
            >
        },
        else_branch = no () => (q) { q = Neg(u) }
    >
}
"""
Fault = Callable[[Any], None]


def applied(fault: Fault | None = None, taken: bool = True) -> Application:
    """The branch written, `fault` done to what was written, then verified."""
    graph = load_model(parse_model(MODEL)).main
    (node,) = [n for n in graph.nodes() if graph.constant(graph.raw_call(n).operands[0]) is not None]
    branches = graph.branches(node)
    assert branches is not None
    write = write_branch(graph, node, branches, taken)

    def faulty(journal: Journal) -> None:
        write(journal)
        if fault is not None:
            fault(journal)

    ledger, before = Ledger(), graph.fingerprint()
    ledger.open_pass("test")
    application, _ = Editor(graph, ledger, MatchVerifier()).apply("branch", Exact(), [node], faulty)
    assert (graph.fingerprint() == before) == (application.status == "undone")
    return application


def written(journal: Journal, op: str) -> ir.Node:
    found: ir.Node = next(n for n in journal.inserted if n.op_type == op)
    return found


def swap_operands(journal: Journal) -> None:
    node = written(journal, "Sub")
    first, second = node.inputs
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)


def change_attribute(journal: Journal) -> None:
    written(journal, "LeakyRelu").attributes["alpha"] = ir.AttrFloat32("alpha", 0.25)


def lose_attribute(journal: Journal) -> None:
    del written(journal, "LeakyRelu").attributes["alpha"]


def change_op(journal: Journal) -> None:
    written(journal, "Sub").op_type = "Add"


def change_constant(journal: Journal) -> None:
    node = written(journal, "Sub")
    value: Value = node.inputs[1]
    node.replace_input_with(1, journal.add_constant(journal.graph.constant(value) * 2.0, "other"))


def swap_bodies(journal: Journal) -> None:
    attributes = written(journal, "If").attributes
    then, otherwise = (attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    attributes["then_branch"] = ir.AttrGraph("then_branch", otherwise)
    attributes["else_branch"] = ir.AttrGraph("else_branch", then)


def change_body(journal: Journal) -> None:
    (inner,) = written(journal, "If").attributes["then_branch"].as_graph()
    inner.op_type = "Add"


def capture_another(journal: Journal) -> None:
    (inner,) = written(journal, "If").attributes["else_branch"].as_graph()
    inner.replace_input_with(1, inner.inputs[0])


def one_more_node(journal: Journal) -> None:
    node = written(journal, "LeakyRelu")
    journal.insert("ai.onnx::Neg", [node.inputs[0]], {}, before=node, types=[None])


def another_result(journal: Journal) -> None:
    old, _ = journal.replaced.pop()
    journal.replaced.append((old, written(journal, "LeakyRelu").outputs[0]))


FAULTS = [
    swap_operands, change_attribute, lose_attribute, change_op, change_constant, swap_bodies, change_body,
    capture_another, one_more_node, another_result,
]  # fmt: skip


def test_a_faithful_copy_is_kept_with_the_reason() -> None:
    application = applied()
    assert application.status == "kept"
    assert (application.evidence.kind, application.evidence.notes) == ("construction", (COPIED,))


def test_the_branch_that_is_not_taken_is_refused() -> None:
    application = applied(taken=False)
    assert application.status == "undone"
    assert "cannot be run" in application.reason


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_copy_that_differs_is_refused(fault: Fault) -> None:
    application = applied(fault)
    assert application.status == "undone"
    assert "cannot be run" in application.reason
