"""docs/proofs.md says of each rule of the built-in passes what is proved of it, and that is computed again here."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

from documents import ROOT

import graphopt.passes
from graphopt.rewrite.rule import Rule
from graphopt.verify.rule_proofs import prove_rule

UNPROVED = {"heads-of-tokens", "attention-then-linear", "attention-then-matmul"}
"""Of which the page says why not."""


def built_in_rules() -> Iterator[tuple[str, Rule]]:
    """Every rule that a module of the built-in passes defines, with the module."""
    seen: set[int] = set()
    for info in pkgutil.iter_modules(graphopt.passes.__path__):
        module = importlib.import_module(f"graphopt.passes.{info.name}")
        for value in vars(module).values():
            for one in value if isinstance(value, tuple | list) else [value]:
                home = getattr(getattr(one, "definition", None), "__module__", module.__name__)
                if isinstance(one, Rule) and home == module.__name__ and id(one) not in seen:
                    seen.add(id(one))
                    yield info.name, one


def test_the_table_of_rules_is_what_is_proved() -> None:
    page = (ROOT / "docs" / "proofs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w-]+) \| ([^|]+) \| ([^|:]+)(: [^|]+)? \|$", page, re.MULTILINE)
    written = {(module, name): (contract, claim) for module, name, contract, claim, _ in rows}
    found = {(m, r.name): (str(r.contract), prove_rule(r).claim) for m, r in built_in_rules()}
    assert len(found) > 50
    assert written == found
    assert {name for (_, name), (_, claim) in found.items() if claim == "not proved"} == UNPROVED
    assert all(why for _, _, _, claim, why in rows if claim == "not proved")
