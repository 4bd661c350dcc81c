"""What an author gets wrong in a rule or a pass is said at once, or undone with what is wrong and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

import graphopt
from graphopt import Exact, GraphPass, Rounding, RuleError, RulePass, any_, any_of, const, many, opt, rule
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import Graph, TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import as_ref
from graphopt.rewrite.reading import EDITS
from graphopt.verify.rule_proofs import prove_rule


def scaled(storage: str) -> Any:
    """relu(x * 0.5 * 3)."""
    graph, type_ = ScratchGraph(), TensorType("float32", (2, 3))
    x = graph.add_input(type_, "x")
    for factor in (0.5, 3.0):
        x = graph.append("mul", x, as_ref(factor, "float32"), types=[type_])
    graph.add_output(graph.append("relu", x, types=[type_]))
    return from_scratch(graph, storage)


def two_products(self: Any, op: Any, x: Any, a: Any, b: Any) -> Any:
    return op.mul(op.mul(x, const(a)).named("inner"), const(b))


def merged(self: Any, m: Any, build: Any) -> Any:
    return build.mul(m.x, m.a * m.b, like=m.out)


def make(contract: Any = None, name: Any = None, **methods: Any) -> Any:
    """A rule that merges two products, but for `methods`; None leaves one out."""
    given = {"pattern": two_products, "rewrite": merged, **methods}
    definition = type("Merge", (), {key: value for key, value in given.items() if value is not None})
    return rule(contract=Rounding() if contract is None else contract, name=name)(definition)


@dataclass(frozen=True)
class Of(RulePass):
    """The rules that it is given."""

    name: ClassVar[str] = "of"
    given: Any = field(default=None, init=False)

    def rules(self) -> Any:
        return self.given


def passing(*rules: Any) -> Of:
    made = Of()
    object.__setattr__(made, "given", rules)
    return made


def reason(storage: str, rewrite: Callable[..., Any]) -> str:
    """Why what `rewrite` does is undone."""
    (application,) = graphopt.optimize(scaled(storage), [passing(make(rewrite=rewrite))]).report.applications
    assert application.status == "undone"
    return application.reason


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (lambda self, op, x: op.multiply(x, x), r"op.multiply: .* no such op \(did you mean 'mul'"),
        (lambda self, op, x: op.mul(x), "op.mul is not given 'y'; its operands are x, y"),
        (lambda self, op, x: op.relu(x)[3], r"op.relu\(...\)\[3\]: relu has 1 outputs"),
        (lambda self, op, x: op.mul(x, const(op.neg(x))), r"const\(...\) is given op.neg\(...\)"),
        (lambda self, op, x: op.mul(x, const("w")), r"const\(...\) is given 'w': expected a variable"),
        (lambda self, op, x: op.relu(any_of()), "has no alternatives"),
        (lambda self, op, x: op.relu(any_of("y", x)), "an operand must be a pattern.* not 'y'"),
        (lambda self, op, x: op.concat(many(op.neg(x)), axis=any_), r"many\(...\) is given op.neg"),
        (lambda self, op, x, w: op.mul(op.relu(x).named("w"), const(w)), "'w' is a variable and the name of an op"),
        (lambda self, op, x: x.shape, r"raised AttributeError: .*; it is a method pattern\(self, op, x, ...\)"),
        (lambda op, x: op.relu(x), r"it is a method pattern\(self, op, x, ...\)"),
        (lambda self, op, x: x, r"must return op patterns, not \(x,\)"),
        (None, r"pattern is not a method; expected pattern\(self, op, x, ...\)"),
    ],
)
def test_a_pattern_that_could_never_be_meant_is_refused_where_it_is_written(pattern: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make(pattern=pattern)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_numbers_may_be_alternatives_and_absent_operands(storage: str) -> None:
    half_or_two = make(pattern=lambda self, op, x: op.mul(op.mul(x, any_of(2.0, 0.5)), opt(3.0)))
    model = scaled(storage)
    assert [half_or_two.match(model.main, node).__class__.__name__ for node in model.main.nodes()] == [
        "NoMatch", "Match", "NoMatch",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("contract", "message"),
    [(Exact, r"write Exact\(\)"), ("exact", "contract='exact': expected"), (8.0, "expected Exact")],
)
def test_what_is_no_contract_is_refused_and_not_taken_for_rounding(contract: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make(contract)

    @dataclass(frozen=True)
    class Direct(GraphPass):
        name: ClassVar[str] = "direct"

        def run(self, context: Any) -> None:
            graph = context.model.main
            node = next(iter(graph.nodes()))
            context.editor(graph).apply("change", contract, [node], lambda journal: journal.doom([node]))

    with pytest.raises(RuleError, match=message):
        graphopt.optimize(scaled("onnx"), [Direct()])


@pytest.mark.parametrize("name", ["two words", "a/b", "", 3])
def test_a_name_that_cannot_be_written_in_an_id_is_refused(name: Any) -> None:
    with pytest.raises(RuleError, match="a rule's name is"):
        make(name=name or " ")


@pytest.mark.parametrize("storage", ["onnx", "fx"])
@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (lambda self, m, build: build.multiply(m.x, m.a), "build.multiply: not in the vocabulary (did you mean 'mul'"),
        (lambda self, m, build: build.can("sillu", m.x), "build.can('sillu'): not in the vocabulary (did you mean"),
        (lambda self, m, build: build.softmax(m.x, dim=1), "has no field 'dim'; its fields are: axis"),
        (lambda self, m, build: build.mul(m.x, m.a, m.b), "build.mul is given 3 operands; its operands are x, y"),
        (lambda self, m, build: build.mul(m.x, like=m.out), "build.mul is not given 'y'; its operands are x, y"),
        (lambda self, m, build: build.mul(m.inner, m.a), "is given a Call; .* take a value, as in m.conv.outputs[0]"),
        (lambda self, m, build: build.mul("x", m.a), "build.mul is given a str; expected values of the graph"),
        (lambda self, m, build: build.concat([m.x, m.x], axis=0), "give each of them as an operand of its own"),
        (lambda self, m, build: build.mul(m.x, m.a, like="float32"), "build.mul: like='float32': expected a value"),
        (lambda self, m, build: m.a * m.b, "the rewrite returned a Deferred .* build.const(...)"),
        (lambda self, m, build: [m.x], "the rewrite returned a list and no value of the graph"),
        (lambda self, m, build: True, "the rewrite returned a bool and no value of the graph"),
        (lambda self, m, build: 1 / 0, "ZeroDivisionError: division by zero (test_mistakes_of_authors.py, line "),
    ],
)
def test_a_rewrite_that_is_wrong_is_undone_with_what_is_wrong_in_it(storage: str, rewrite: Any, message: str) -> None:
    pieces = message.split(" .* ")
    assert all(piece in reason(storage, rewrite) for piece in pieces), reason(storage, rewrite)


def test_another_shape_and_other_bits_are_called_that() -> None:
    def summed(self: Any, m: Any, build: Any) -> Any:
        return build.reduce_sum(m.x, axes=(1,), keepdims=False)

    assert reason("onnx", summed) == "a result of shape [2, 3] becomes one of shape [2]"
    exact = graphopt.optimize(scaled("onnx"), [passing(make(Exact()))]).report.applications
    assert [a.reason for a in exact] == ["on mixed inputs the results are not the same bits, which exact promises"]


def test_a_check_that_returns_a_reason_does_not_let_the_match_pass() -> None:
    report = graphopt.optimize(scaled("onnx"), [passing(make(check=lambda self, m: "too small"))]).report
    assert not report.applications
    assert "check returned 'too small'; a match is refused by m.fail(reason, ...)" in report.why_not()[0]


@pytest.mark.parametrize("wrong", [type("NotDecorated", (), {}), None, "clean-up"])
def test_what_is_no_rule_is_refused_with_how_to_make_one(wrong: Any) -> None:
    with pytest.raises(RuleError, match=r"is no rule; decorate its class with @graphopt.rule\(contract=...\)"):
        graphopt.optimize(scaled("onnx"), [passing(wrong)])


def test_rules_may_be_yielded_and_are_not_lost() -> None:
    @dataclass(frozen=True)
    class Yields(RulePass):
        name: ClassVar[str] = "yields"

        def rules(self) -> Any:
            yield make()

    assert [a.id for a in graphopt.optimize(scaled("onnx"), [Yields()]).report.kept] == ["yields/merge#1"]
    with pytest.raises(RuleError, match="rules are None: expected a list"):
        graphopt.optimize(scaled("onnx"), [type("Nothing", (Yields,), {"rules": lambda self: None})()])


def test_a_pass_that_raises_is_named() -> None:
    @dataclass(frozen=True)
    class Broken(GraphPass):
        name: ClassVar[str] = "broken"

        def run(self, context: Any) -> None:
            raise KeyError("what")

    with pytest.raises(RuleError, match="pass broken raised KeyError: 'what'"):
        graphopt.optimize(scaled("onnx"), [Broken()])


def test_numbers_may_stand_on_the_left_of_weights() -> None:
    weight = as_ref([0.1, 4.0], "float32")
    exact = weight.numpy().astype("float64")
    pairs = [(1 + weight, 1 + exact), (1 - weight, 1 - exact), (2 * weight, 2 * exact), (1 / weight, 1 / exact)]
    for made, expected in pairs:
        assert made.numpy().tolist() == expected.astype("float32").tolist()
    rule_with = make(
        pattern=lambda self, op, x, a: op.sub(x, op.mul(x, const(a))),
        rewrite=lambda self, m, build: build.mul(m.x, 1.0 - m.a, like=m.out),
    )
    assert prove_rule(rule_with).claim == "proof for all weights"


def test_weights_are_reshaped_as_those_of_numpy() -> None:
    weight = as_ref([[1.0, 2.0, 3.0]], "float32")
    assert weight.reshape((3, 1)).shape == weight.reshape(3, 1).shape == weight.transpose((1, 0)).shape == (3, 1)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_a_rule_cannot_change_the_graph_beside_its_own_rewrite(storage: str) -> None:
    def elsewhere(self: Any, m: Any, build: Any) -> Any:
        (relu,) = [n for n in m.graph.nodes() if m.graph.key(n) == "relu"]
        m.graph.redirect(m.graph.results(relu)[0], m.x)
        return build.mul(m.x, m.a * m.b, like=m.out)

    assert "m.graph.redirect would change the graph unverified" in reason(storage, elsewhere)


def test_every_edit_of_a_graph_is_known_as_one() -> None:
    undone = {name for name, method in vars(Graph).items() if "Undo" in str(getattr(method, "__annotations__", {}))}
    assert undone | {"remove", "remove_unread"} == EDITS
