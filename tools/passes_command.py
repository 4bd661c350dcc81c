"""`graphopt passes`: which passes there are, and what is to be known of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.tools.output import print_json, print_result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graphopt.rewrite.rule import Rule


def passes_command(
    name: Annotated[str | None, typer.Argument(help="A pass; all are listed if none is given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List all passes, or show one: its options, contract and mathematics, and what is proved of its rules.

    The list has the package that owns each pass.

    JSON keys: of the list name, owner; of one pass name, kind, owner, doc, contract, requires, ensures,
    options (name, type, default, doc) and rules (name, contract, doc, proof: what algebra says of the rule on
    graphs made from its pattern, text, for_all_weights, level, weights, functions, graphs, reason).
    """
    if name is not None:
        details = _details(name)
        print_json(details) if as_json else typer.echo(_page(details))
        return
    from graphopt.pipeline.registry import passes

    rows = [{"name": known, "owner": passes().owner(known)} for known in passes().names()]
    print_json(rows) if as_json else print_result(_listing(rows))


def _details(name: str) -> dict[str, Any]:
    from graphopt.errors import PipelineError
    from graphopt.pipeline.pass_ import describe, find_class, instantiate
    from graphopt.pipeline.registry import passes
    from graphopt.pipeline.spec import PassSpec
    from graphopt.tools.rules import rules_of

    pass_class = find_class(name, passes())
    try:
        pass_ = instantiate(PassSpec(name), passes())
        rules = rules_of(pass_)
    except PipelineError:  # an option must be given before there are rules
        rules = ()
    described = [
        {"name": rule.name, "contract": str(rule.contract), "doc": rule.doc, "proof": _proof(rule)} for rule in rules
    ]
    return describe(pass_class) | {"owner": passes().owner(name), "rules": described}


def _proof(rule: Rule) -> dict[str, Any]:
    from graphopt.verify.rule_proofs import prove_rule

    found = prove_rule(rule)
    proof = found.proof
    return {
        "text": str(found),
        "for_all_weights": found.for_all_weights,
        "level": None if proof is None else proof.level,
        "weights": None if proof is None else proof.weights,
        "functions": [] if proof is None else list(proof.functions),
        "graphs": found.graphs,
        "reason": found.reason,
    }


def _listing(rows: list[dict[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pass", no_wrap=True)
    table.add_column("owner", overflow="fold")
    for row in rows:
        table.add_row(Text(row["name"]), Text(row["owner"]))
    return table


def _page(details: dict[str, Any]) -> str:
    lines = [f"{details['name']}  ({details['kind']}, {details['owner']})", ""]
    lines += [details["doc"] or "No documentation.", ""]
    if details["contract"]:
        lines += [f"Contract: {details['contract']}", ""]
    for key in ("requires", "ensures"):
        if details[key]:
            lines += [f"{key.capitalize()}: {', '.join(details[key])}", ""]
    if details["options"]:
        lines += ["Options", *(_indented(_option(option)) for option in details["options"]), ""]
    if details["rules"]:
        lines += ["Rules", *(_indented(_rule(rule)) for rule in details["rules"])]
    return "\n".join(lines).rstrip()


def _option(option: dict[str, Any]) -> str:
    default = "must be given" if option["default"] is None else f"default {option['default']}"
    return f"{option['name']}: {option['type']}, {default}\n{_indented(option['doc'])}".rstrip()


def _rule(rule: dict[str, Any]) -> str:
    return f"{rule['name']}: {rule['contract']}\n{_indented(rule['proof']['text'])}\n{_indented(rule['doc'])}".rstrip()


def _indented(text: str) -> str:
    import textwrap

    return textwrap.indent(text, "  ")
