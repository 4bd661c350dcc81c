"""The verifier by mutation: whatever is planted in rules, readers and writers is caught and undone alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from planted import PLANTED, Maker, Planted, conv_bn, conv_relu, joined, normalised, transposes

from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import Call, Graph
from graphopt.ir.model import Model
from graphopt.ir.scratch import ScratchGraph
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.pattern import any_, const, many, opt
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.verifier import MatchVerifier

STORAGES = ("onnx", "fx")
DTYPES = ("float32", "bfloat16")


@rule(contract=Rounding(), name="sigmoid-as-reciprocal")
class Companion:
    """A correct rule that must be kept beside every planted one: every planted graph holds a sigmoid or a neg."""

    def pattern(self, op, x):
        return op.sigmoid(x)

    def rewrite(self, m, build):
        return build.neg(
            build.neg(build.sigmoid(build.neg(build.neg(m.x, like=m.x), like=m.x), like=m.x), like=m.x), like=m.x
        )


@functools.cache
def model_of(make: Callable[[str], ScratchGraph], dtype: str, storage: str) -> Model:
    """One model for all tests that leave it as it was (they assert so)."""
    return from_scratch(make(dtype), storage)


def apply(graph: Graph, *rules: Rule, limit: int | None = None) -> Ledger:
    ledger = Ledger(limit)
    ledger.open_pass("test")
    Driver(rules, Editor(graph, ledger, MatchVerifier())).run()
    return ledger


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("planted", "storage"), [pytest.param(p, s, id=f"{p.name}-{s}") for p in PLANTED for s in p.storages]
)
def test_a_planted_rule_is_caught_and_undone(planted: Planted, storage: str, dtype: str):
    graph = model_of(planted.graph, dtype, storage).main
    before = graph.fingerprint()
    ledger = apply(graph, planted.rule)
    assert [a.status for a in ledger.applications] == ["undone"], ledger.applications
    assert ledger.applications[0].reason
    assert graph.fingerprint() == before


def test_enough_is_planted():
    assert len(PLANTED) >= 35


@pytest.mark.parametrize("storage", STORAGES)
def test_only_the_wrong_application_is_undone(storage: str):
    wrong = next(p for p in PLANTED if p.name == "shift-lost")
    graph = from_scratch(wrong.graph("float32"), storage).main
    ledger = apply(graph, wrong.rule, Companion, limit=1)
    assert {(a.rule, a.status) for a in ledger.applications} == {("shift-lost", "undone"), (Companion.name, "kept")}
    assert [graph.key(n) for n in graph.nodes()].count("batch_norm") == 1


# ---- planted in readers -----------------------------------------------------------------------------------------


def _conv_bn_rule() -> Rule:
    """The correct rule, so that only the reader is at fault."""

    class Fold:
        def pattern(self, op, x, w, b, scale, shift, mean, var):
            conv = op.conv(x, const(w), opt(const(b)), stride=any_, pads=any_, dilation=any_, groups=any_).named("conv")
            return op.batch_norm(conv, const(scale), const(shift), const(mean), const(var), eps=any_).named("bn")

        def rewrite(self, m, build):
            s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
            return build.conv(m.x, m.w * s.reshape(-1, 1, 1, 1), (m.b - m.mean) * s + m.shift, **m.conv.fields)

    return rule(contract=Rounding(), name="fold")(Fold)


def _rewrite_rule(op_name: str, n: int, **fields: Any) -> Rule:
    """Rewrites an op into itself: right unless reader or writer is wrong."""

    class Same:
        def pattern(self, op, x, y, z):
            operands = [x, *[const(v) for v in (y, z)[: n - 1]]]
            return getattr(op, op_name)(*operands, **fields).named("call")

        def rewrite(self, m, build):
            refs = [m.bindings.constants[k] for k in ("y", "z")[: n - 1]]
            return getattr(build, op_name)(m.x, *refs, **m.call.fields)

    return rule(contract=Rounding(), name=f"same-{op_name}")(Same)


def _misread(op: str, change: Any):
    def reader(call: Call) -> Call:
        if call.op != op:
            return call
        return change(call)

    return reader


def _field(name: str, value: Any):
    return lambda c: Call(c.node, c.op, c.operands, dict(c.fields) | {name: value}, c.outputs)


def _swap(i: int, j: int):
    def change(c: Call) -> Call:
        operands = list(c.operands)
        operands[i], operands[j] = operands[j], operands[i]
        return Call(c.node, c.op, tuple(operands), c.fields, c.outputs)

    return change


READER_FAULTS = {
    "eps-of-another-default": (conv_bn, _conv_bn_rule(), _misread("batch_norm", _field("eps", 1e-3))),
    "mean-and-variance-swapped": (conv_bn, _conv_bn_rule(), _misread("batch_norm", _swap(3, 4))),
    "scale-and-shift-swapped": (conv_bn, _conv_bn_rule(), _misread("batch_norm", _swap(1, 2))),
    "pads-misread": (conv_bn, _conv_bn_rule(), _misread("conv", _field("pads", (2, 2, 0, 0)))),
    "groups-misread": (conv_bn, _conv_bn_rule(), _misread("conv", _field("groups", 1))),
    "softmax-axis-misread": (
        normalised,
        _rewrite_rule("softmax", 1, axis=any_),
        _misread("softmax", _field("axis", 0)),
    ),
    "norm-eps-misread": (
        normalised,
        _rewrite_rule("layer_norm", 3, axis=any_, eps=any_),
        _misread("layer_norm", _field("eps", 1e-5)),
    ),
    "perm-misread": (
        transposes,
        _rewrite_rule("transpose", 1, perm=any_),
        _misread("transpose", _field("perm", (2, 0, 1))),
    ),
    "keepdims-misread": (
        joined,
        _rewrite_rule("reduce_sum", 1, axes=any_, keepdims=any_),
        _misread("reduce_sum", _field("keepdims", False)),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("fault", READER_FAULTS)
def test_a_fault_planted_in_a_reader_is_caught(fault: str, storage: str, dtype: str, monkeypatch):
    make, correct, misread = READER_FAULTS[fault]
    graph = model_of(make, dtype, storage).main
    before = graph.fingerprint()
    honest = type(graph).call

    def call(self, node):
        found = honest(self, node)
        return misread(found) if isinstance(found, Call) and self is graph else found

    monkeypatch.setattr(type(graph), "call", call)
    ledger = apply(graph, correct)
    assert ledger.applications and all(a.status == "undone" for a in ledger.applications), ledger.applications
    assert graph.fingerprint() == before


# ---- planted in writers -----------------------------------------------------------------------------------------

WRITER_FAULTS = {
    "stride-dropped": (conv_bn, _conv_bn_rule(), "conv", lambda o, f: (o, f | {"stride": (1, 1)})),
    "pads-dropped": (conv_bn, _conv_bn_rule(), "conv", lambda o, f: (o, f | {"pads": (0, 0, 0, 0)})),
    "bias-dropped": (conv_bn, _conv_bn_rule(), "conv", lambda o, f: ([o[0], o[1], None], f)),
    "axis-wrong": (normalised, _rewrite_rule("softmax", 1, axis=any_), "softmax", lambda o, f: (o, f | {"axis": 0})),
    "eps-wrong": (
        normalised,
        _rewrite_rule("layer_norm", 3, axis=any_, eps=any_),
        "layer_norm",
        lambda o, f: (o, f | {"eps": 0.1}),
    ),
    "operands-swapped": (
        normalised,
        _rewrite_rule("layer_norm", 3, axis=any_, eps=any_),
        "layer_norm",
        lambda o, f: ([o[0], o[2], o[1]], f),
    ),
    "perm-wrong": (
        transposes,
        _rewrite_rule("transpose", 1, perm=any_),
        "transpose",
        lambda o, f: (o, f | {"perm": (2, 1, 0)}),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("fault", WRITER_FAULTS)
def test_a_fault_planted_in_a_writer_is_caught(fault: str, storage: str, dtype: str, monkeypatch):
    make, correct, op, distort = WRITER_FAULTS[fault]
    graph = model_of(make, dtype, storage).main
    before = graph.fingerprint()
    honest = type(graph).insert

    def insert(self, name, operands, fields, **rest):
        if name == op:
            operands, fields = distort(list(operands), dict(fields))
        return honest(self, name, operands, fields, **rest)

    monkeypatch.setattr(type(graph), "insert", insert)
    ledger = apply(graph, correct)
    assert ledger.applications and all(a.status == "undone" for a in ledger.applications), ledger.applications
    assert graph.fingerprint() == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("storage", STORAGES)
def test_the_correct_rules_are_kept(storage: str, dtype: str):
    for make, correct in (
        (conv_bn, _conv_bn_rule()),
        (normalised, _rewrite_rule("layer_norm", 3, axis=any_, eps=any_)),
    ):
        graph = from_scratch(make(dtype), storage).main
        ledger = apply(graph, correct, limit=1)
        assert [a.status for a in ledger.applications] == ["kept"], ledger.applications
        assert ledger.applications[0].evidence.counts


def test_correct_rewrites_of_every_kind_are_not_accused():
    """The bound must not undo what is right: a few hundred seeds of correct folds, none flagged."""
    flagged = 0
    for graph_of, correct in ((conv_bn, _conv_bn_rule()), (conv_relu, _rewrite_rule("sigmoid", 1))):
        for storage in STORAGES:
            graph = from_scratch(graph_of("float32"), storage).main
            flagged += sum(a.status == "undone" for a in apply(graph, correct, limit=1).applications)
    assert flagged == 0


def test_bit_equality_is_reported_as_such():
    @rule(contract=Exact())
    class Reorder:
        """concat(a, b) of its own operands."""

        def pattern(self, op, xs):
            return op.concat(many(xs), axis=any_).named("c")

        def rewrite(self, m, build):
            return build.concat(*m.xs, **m.c.fields)

    for storage in STORAGES:
        graph = from_scratch(joined("float32"), storage).main
        kept = apply(graph, Reorder, limit=1).applications[0]
        assert kept.status == "kept" and kept.evidence.kind == "bit-equal" and kept.evidence.inputs == 3


def test_a_right_rule_does_not_vouch_for_a_wrong_one_of_its_name():
    """The error is one that only the twin sees, which is run once for each rule and structure."""

    def doubled(factor: float) -> Rule:
        class Doubled:
            def pattern(self, op, x):
                return op.add(x, x)

            def rewrite(self, m, build):
                return build.mul(m.x, build.const(factor, dtype=m.type(m.x).dtype), like=m.out)

        return rule(contract=Rounding(), name="doubled")(Doubled)

    verifier = MatchVerifier()
    statuses = []
    for factor in (2.0, 2.0 * (1 + 2.0**-22)):
        m = Maker("float32")
        x = m.input(6, 7)
        graph = from_scratch(m.done(m.add("neg", m.add("add", x, x, shape=(6, 7)), shape=(6, 7))), "onnx").main
        ledger = Ledger(None)
        ledger.open_pass("test")
        Driver([doubled(factor)], Editor(graph, ledger, verifier)).run()
        statuses += [application.status for application in ledger.applications]
    assert statuses == ["kept", "undone"]
