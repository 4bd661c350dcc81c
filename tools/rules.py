"""The rules of registered passes, looked up by the names that reports print."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from graphopt.errors import MissingExtraError, PipelineError, RegistryError, RuleError, did_you_mean
from graphopt.pipeline.pass_ import GraphPass, Pass, instantiate
from graphopt.pipeline.pipeline import raising
from graphopt.pipeline.registry import Registry, passes
from graphopt.pipeline.spec import PassSpec

if TYPE_CHECKING:
    from graphopt.rewrite.rule import Rule


def rules_of(pass_: Pass) -> Sequence[Rule]:
    """The rules that `pass_` shows: those of its method `rules`, which every RulePass has, and those that its
    attribute `uses` lists besides."""
    listed = getattr(pass_, "rules", None)
    with raising(pass_):
        shown = (*(listed() if callable(listed) else ()), *getattr(pass_, "uses", ()))
        return tuple({rule.name: rule for rule in reversed(shown)}.values())[::-1]


def all_rules(registry: Registry | None = None) -> dict[str, Rule]:
    """Every rule by "pass/rule", of the passes that need no options, in the order of their names."""
    registry = registry or passes()
    found: dict[str, Rule] = {}
    for name in registry.names():
        try:
            rules = rules_of(instantiate(PassSpec(name), registry))
        except (PipelineError, RegistryError, MissingExtraError, RuleError):
            continue  # an option must be given, or it is broken: its rules are not known
        found |= {f"{name}/{rule.name}": rule for rule in rules}
    return found


def find_rule(name: str, registry: Registry | None = None) -> tuple[str, Rule]:
    """The full name and the rule that `name`, "pass/rule" or "rule", stands for.

    Raises:
        PipelineError: no such rule, or rules of several passes.
    """
    registry = registry or passes()
    if (owner := name.partition("/")[0]) in registry:
        with suppress(PipelineError):  # an option must be given
            rules_of(instantiate(PassSpec(owner), registry))  # says why, if it cannot be loaded
    rules = all_rules(registry)
    if name in rules:
        return name, rules[name]
    matching = [full for full in rules if full.rpartition("/")[2] == name]
    if len({id(rules[full]) for full in matching}) == 1:  # Several passes may run the same rule.
        return matching[0], rules[matching[0]]
    if matching:
        raise PipelineError(f"several passes have a rule {name!r}: say which one, {' or '.join(matching)}")
    if name in registry.names():
        own = ", ".join(full for full in rules if full.startswith(f"{name}/"))
        raise PipelineError(f"{name!r} is a pass, expected a rule; {f'it has {own}' if own else 'it has none to show'}")
    short = [full.rpartition("/")[2] for full in rules]
    hint = did_you_mean(name, rules if "/" in name else short)
    raise PipelineError(f"unknown rule {name!r}{hint}; known: {', '.join(rules) or 'none'}")


def without_rules(name: str, registry: Registry | None = None) -> bool:
    """Whether `name` is a pass of models without a method `rules`, so that only running it says all that it does."""
    registry = registry or passes()
    if name not in registry.names():
        return False
    pass_class = registry.get(name)
    return isinstance(pass_class, type) and issubclass(pass_class, GraphPass) and not hasattr(pass_class, "rules")
