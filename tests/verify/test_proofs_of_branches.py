"""Proofs of rewrites of control flow: the body that runs is what a node with a known condition means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
from proofs import Proving

import graphopt
from graphopt.ir.graph import Graph
from graphopt.ir.onnx.load import load_onnx
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact, Proof
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.ledger import Ledger

NESTED = """<ir_version: 9, opset_import: ["" : 18]>
agraph (float[3, 4] x, bool d) => (float[3, 4] y) <bool c = {CONDITION}, bool t = {1}, float[4] w = {1, 2, 3, 4}> {
    y = If (c) <
        then_branch = yes () => (float[3, 4] p) {
            two = Constant <value = float {2}> ()
            a = Mul(x, two)
            inner = If (t) <
                then_branch = both () => (float[3, 4] r) { r = Add(a, w) },
                else_branch = none () => (float[3, 4] s) { s = Sub(a, w) }
            >
            p = Identity(inner)
        },
        else_branch = no () => (float[3, 4] q) {
            u = If (d) <
                then_branch = first () => (float[3, 4] k) { k = Neg(x) },
                else_branch = second () => (float[3, 4] m) { m = Add(x, x) }
            >
            q = Neg(u)
        }
    >
}
"""


def replaced(condition: int, write: Any) -> Proof:
    """What proof says of what `write` puts in the place of the If."""
    model = load_onnx(onnx.parser.parse_model(NESTED.replace("CONDITION", str(condition))))
    verifier, ledger = Proving(), Ledger(1)
    ledger.open_pass("test")
    node = next(n for n in model.main.nodes() if model.main.branches(n))

    def change(journal: Journal) -> None:
        x, d = model.main.inputs()
        w = next(v for v in model.main.ir.initializers.values() if v.name == "w")
        types = [model.main.type(x)]

        def op(name: str, *operands: Any) -> Any:
            return journal.insert(name, operands, {}, before=node, types=types)[0]

        journal.replace(model.main.results(node)[0], write(op, x, w))
        journal.doom([node])

    Editor(model.main, ledger, verifier).apply("test", Exact(), [node], change)
    (proof,) = verifier.proofs
    return proof


def test_a_body_in_a_body_is_run_where_both_conditions_are_known() -> None:
    proof = replaced(1, lambda op, x, w: op("add", w, op("add", x, x)))
    assert proof.level == "proof" and proof.weights == "large", proof  # the number 2 is one of the weights


@pytest.mark.parametrize("wrong", ["the other body", "a weight left out"])
def test_what_another_body_gives_is_not_proved(wrong: str) -> None:
    writes = {
        "the other body": lambda op, x, w: op("sub", op("add", x, x), w),
        "a weight left out": lambda op, x, w: op("add", x, x),
    }
    proof = replaced(1, writes[wrong])
    assert proof.level == "undecided" and "differ" in proof.reason, proof


def test_a_condition_that_is_an_input_is_not_drawn() -> None:
    """Neither body may speak for the other, whichever a draw would choose."""
    for write in (lambda op, x, w: op("neg", op("neg", x)), lambda op, x, w: op("neg", op("add", x, x))):
        proof = replaced(0, write)
        assert proof.level == "undecided" and "which of its bodies runs" in proof.reason, proof


TWINS = """<ir_version: 9, opset_import: ["" : 18]>
agraph (float[3, 4] x, float[3, 4] z, bool c) => (float[3, 4] y)
<float[4] w = {1, 2, 3, 4}, float[4] v = {1, 2, 3, 4}> {
    a = Neg(x)
    b = Neg(a)
    first = If (c) <
        then_branch = yes () => (float[3, 4] p) { p = Add(x, w) },
        else_branch = no () => (float[3, 4] q) { q = Sub(x, z) }
    >
    second = If (c) < THEN, ELSE >
    y = Add(first, second)
}
"""
THEN = "then_branch = yes2 () => (float[3, 4] k) { k = Add(b, w) }"
ELSE = "else_branch = no2 () => (float[3, 4] m) { m = Sub(b, z) }"


def merged(then: str, otherwise: str) -> Proof:
    """What proof says of reading the first If in the place of the second."""
    model = load_onnx(onnx.parser.parse_model(TWINS.replace("THEN", then).replace("ELSE", otherwise)))
    verifier, ledger = Proving(), Ledger(1)
    ledger.open_pass("test")
    nodes = {model.main.name(model.main.results(n)[0]): n for n in model.main.nodes()}

    def change(journal: Journal) -> None:
        old, new = (model.main.results(nodes[k])[0] for k in ("second", "first"))
        for value in (old, new):
            value.shape, value.type = model.main.inputs()[0].shape, model.main.inputs()[0].type
        journal.replace(old, new)
        journal.doom([nodes["second"]])

    Editor(model.main, ledger, verifier).apply("test", Exact(), [nodes[k] for k in ("a", "b", "second")], change)
    (proof,) = verifier.proofs
    return proof


def test_the_same_bodies_are_the_same_function_whatever_an_open_condition_is() -> None:
    for pair in ((THEN, ELSE), (ELSE, THEN)):  # the order of attributes says nothing
        proof = merged(*pair)
        assert proof.level == "proof" and "ai.onnx::If" in proof.functions and not proof.sampled, proof


@pytest.mark.parametrize(
    ("then", "otherwise"),
    [
        (THEN.replace("then", "else"), ELSE.replace("else", "then")),
        (THEN.replace("Add", "Sub"), ELSE),
        (THEN.replace("b, w", "w, b"), ELSE),
        (THEN, ELSE.replace("b, z", "z, b")),
        (THEN.replace("b", "a", 3).replace("then_aranch", "then_branch"), ELSE),
        (THEN.replace("w)", "v)"), ELSE),
        (THEN, ELSE.replace("m = Sub(b, z)", "r = Neg(b) m = Sub(r, z)")),
    ],
)  # fmt: skip
def test_other_bodies_are_another_function(then: str, otherwise: str) -> None:
    proof = merged(then, otherwise)
    assert not proof.holds and proof.reason, proof


def test_inlined_branches_are_proved_for_all_weights() -> None:
    text = NESTED.replace("CONDITION", "1")
    report = graphopt.optimize(onnx.parser.parse_model(text), passes="clean-up", prove=True).report
    proofs = [a.evidence.proof for a in report.kept if a.rule == "inline-constant-branch"]
    assert len(proofs) == 2
    assert all(p is not None and p.level == "proof" and p.weights == "all" for p in proofs), proofs


def test_a_cond_of_torch_names_its_bodies_and_what_they_are_given() -> None:
    torch = pytest.importorskip("torch")

    class Chooses(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            chosen = x.sum() > 0
            return torch.cond(chosen, lambda v, c: v + c, lambda v, c: v * 2, (x, chosen))

    from graphopt.ir.fx.load import load_torch

    model = load_torch(Chooses(), torch.rand(2, 3))
    graph: Graph = model.main
    node, branches = next((n, b) for n in graph.nodes() if (b := graph.branches(n)))
    assert [branches.body(True), branches.body(False)] == list(graph.subgraphs(node))
    assert graph.key(graph.producer(branches.condition)) == "greater"
    assert len(branches.operands) == len(branches.taken.inputs()) == 2
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(graph.run([x])[0], x + 1)
