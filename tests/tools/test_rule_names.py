"""Rules looked up over the registered passes."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from graphopt.errors import PipelineError, RegistryError, RuleError
from graphopt.pipeline.pass_ import GraphPass, RulePass
from graphopt.pipeline.registry import Registry
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.rule import rule
from graphopt.tools.rules import all_rules, find_rule


@rule(contract=Exact())
class DoubleNegation:
    """neg(neg(x)) is x."""

    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def rewrite(self, m, build):
        return m.x


@rule(contract=Exact(), name="double-negation")
class AnotherOfItsName:
    """The same, and another rule."""

    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def rewrite(self, m, build):
        return m.x


@dataclass(frozen=True)
class Negations(RulePass):
    name: ClassVar[str] = "negations"

    def rules(self):
        return [DoubleNegation]


@dataclass(frozen=True)
class Graphs(GraphPass):
    name: ClassVar[str] = "graphs"

    def run(self, context): ...

    def rules(self):
        return [AnotherOfItsName]


@dataclass(frozen=True)
class Uses(GraphPass):
    name: ClassVar[str] = "uses"
    uses: ClassVar = (DoubleNegation,)

    def run(self, context): ...


@dataclass(frozen=True)
class Plain(GraphPass):
    name: ClassVar[str] = "plain"

    def run(self, context): ...


@dataclass(frozen=True)
class Demanding(RulePass):
    name: ClassVar[str] = "demanding"
    energy: float

    def rules(self):
        raise AssertionError("asked without its option")


@pytest.fixture
def registry():
    made = Registry("graphopt.test", "pass")
    for pass_class in (Negations, Plain, Demanding):
        made.register(pass_class)
    return made


def test_any_pass_with_a_method_rules_shows_its_rules(registry):
    registry.register(Graphs)

    assert list(all_rules(registry)) == ["graphs/double-negation", "negations/double-negation"]


def test_a_rule_is_found_by_its_full_and_by_its_short_name(registry):
    for name in ("negations/double-negation", "double-negation"):
        assert find_rule(name, registry) == ("negations/double-negation", DoubleNegation)


def test_a_pass_that_cannot_be_loaded_does_not_hide_the_rules_of_others(registry):
    def load():
        raise ImportError("no module named 'lost'")

    registry._registered["broken"] = replace(registry._claim("plain"), name="broken", load=load)
    assert find_rule("double-negation", registry) == ("negations/double-negation", DoubleNegation)
    with pytest.raises(RegistryError, match="'broken', .* cannot be loaded: ImportError: no module named 'lost'"):
        find_rule("broken/some-rule", registry)


def test_a_pass_whose_rules_are_broken_says_so_and_hides_no_others(registry, monkeypatch):
    monkeypatch.setattr(Graphs, "rules", lambda self: [3])
    registry.register(Graphs)
    assert find_rule("double-negation", registry) == ("negations/double-negation", DoubleNegation)
    with pytest.raises(RuleError, match="pass graphs raised AttributeError"):
        find_rule("graphs/double-negation", registry)


def test_a_short_name_of_two_rules_is_refused_with_both(registry):
    registry.register(Graphs)

    with pytest.raises(PipelineError, match="graphs/double-negation or negations/double-negation"):
        find_rule("double-negation", registry)


def test_a_rule_that_several_passes_run_is_found_by_its_short_name(registry):
    registry.register(Uses)

    assert list(all_rules(registry)) == ["negations/double-negation", "uses/double-negation"]
    assert find_rule("double-negation", registry)[1] is DoubleNegation


@pytest.mark.parametrize(
    ("name", "says"), [("negations", "it has negations/double-negation"), ("plain", "it has none")]
)
def test_a_pass_is_no_rule(registry, name, says):
    with pytest.raises(PipelineError, match=f"'{name}' is a pass, expected a rule; {says}"):
        find_rule(name, registry)


def test_every_built_in_rule_is_found_whatever_option_it_needs():
    rules = all_rules()
    for name in ("clean-up/transpose-twice", "fuse-conv-bn/batch-norm-conv", "fuse-attention/einsums-to-matmuls"):
        assert find_rule(name) == (name, rules[name])


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("double-negatoin", "'double-negation'"), ("negation/double-negation", "'negations/double-negation'")],
)
def test_an_unknown_rule_is_an_error_with_the_nearest_names(registry, name, nearest):
    with pytest.raises(PipelineError, match=f"unknown rule .*did you mean {nearest}"):
        find_rule(name, registry)
