"""`graphopt prove-rule`: what algebra says of one rule, for those who write it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.errors import PipelineError, did_you_mean
from graphopt.tools.output import print_json

if TYPE_CHECKING:
    from graphopt.rewrite.rule import Rule


def prove_rule_command(
    name: Annotated[
        str,
        typer.Argument(metavar="RULE", help='"module:Rule", or "pass/rule" of a registered pass.'),
    ],
    seed: Annotated[int | None, typer.Option(help="Of the random points; drawn anew if absent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Apply RULE to graphs made from its own pattern, and prove what it did.

    Modules are looked for in the current folder as well. Exit code 1 if the rule is not proved.

    JSON keys: rule, contract, claim, for_all_weights, level, weights, functions, laws, log2_error, graphs, reason,
    seed; null where nothing was proved.
    """
    from graphopt.tools.rules import find_rule
    from graphopt.verify.claims import claim
    from graphopt.verify.rule_proofs import prove_rule

    shown, rule = (name, imported_rule(name)) if ":" in name else find_rule(name)
    found = prove_rule(rule, seed=seed)
    proof = found.proof
    if as_json:
        keys = ("level", "weights", "functions", "laws", "log2_error", "seed")
        details = {key: None if proof is None else getattr(proof, key) for key in keys}
        own = {"rule": shown, "contract": str(rule.contract), "claim": found.claim, "graphs": found.graphs}
        print_json({**details, **own, "for_all_weights": found.for_all_weights, "reason": found.reason})
    else:
        typer.echo(f"{shown} ({rule.contract}): {found}")
        if proof is not None and proof.holds:
            typer.echo(claim(proof))
    if proof is None or not proof.holds:
        raise typer.Exit(1)


def imported_rule(text: str) -> Rule:
    """The rule that "module:Name" stands for. Raises PipelineError."""
    from graphopt.rewrite.rule import Rule

    module_name, _, name = text.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # Whatever the code of the module raises.
        reason = f"{type(error).__name__}: {error}"
        raise PipelineError(f"{text}: the module {module_name!r} cannot be imported: {reason}") from error
    rules = {known: value for known, value in vars(module).items() if isinstance(value, Rule)}
    if name not in rules:
        listed = ", ".join(rules) or "none"
        raise PipelineError(f"{text}: {module_name} has no rule {name!r}{did_you_mean(name, rules)}; it has {listed}")
    return rules[name]
