"""`graphopt explain`: why a rule does not apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.errors import ModelError, did_you_mean
from graphopt.tools.output import print_json, print_result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graphopt.ir.graph import Graph, Node
    from graphopt.ir.model import Model
    from graphopt.rewrite.explain import Explanation


def explain(
    file: Annotated[Path, typer.Argument(help="The model, an .onnx file.")],
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="The rule, as PASS/RULE or as RULE; or a PASS that has no rules.")
    ],
    node: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Ask about this node; by default about every possible root."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Show at most this many nodes.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say why RULE does not apply, the nearest miss first.

    Every node with the op at which the rule starts is asked. Nodes at which it does apply come before all
    others. A pass that looks at whole graphs is run on a copy without verification, and what it notes is printed.

    JSON keys: file, rule, explanations: a list of rule, node, matched, reason, stopped_at, score; of a pass also
    notes, a list of lines.
    """
    from graphopt.compiler import load
    from graphopt.tools.rules import all_rules, find_rule, without_rules

    if without_rules(rule.partition("/")[0]) and rule not in all_rules():
        _print_trial(file, rule, node, most, as_json)
        return
    name, found = find_rule(rule)
    model = load(file)
    explanations = _at_node(model, found, node) if node is not None else _nearest(model, found, most)
    if as_json:
        shown = [e.to_dict() for e in explanations[:most]]
        print_json({"file": str(file), "rule": name, "explanations": shown})
    elif explanations:
        print_result(_table(explanations[:most]))
    else:
        typer.echo(f"{file} has no node of the op {found.key}, at which {name} starts")


def _print_trial(file: Path, name: str, node: str | None, most: int, as_json: bool) -> None:
    """What a pass, or "PASS/APPLICATION", does to a copy of the model in `file`, and what it says of the rest."""
    from graphopt.compiler import optimize
    from graphopt.rewrite.explain import Explanation

    pass_name, _, wanted = name.partition("/")
    report = optimize(str(file), [pass_name], verify="off").report
    notes = [note for note in report.passes[0].notes if node is None or note.startswith(f"{node} ")]
    explanations = [
        Explanation(a.rule, a.nodes[0], True, f"{a.rule} applies here", a.nodes[0], 1_000_000)
        for a in report.kept
        if (node is None or node in a.nodes) and wanted in ("", a.rule)
    ]
    if as_json:
        shown = [e.to_dict() for e in explanations[:most]]
        print_json({"file": str(file), "rule": name, "explanations": shown, "notes": notes[:most]})
        return
    if explanations:
        print_result(_table(explanations[:most]))
    for note in notes[:most]:
        typer.echo(note)
    if not explanations and not notes:
        typer.echo(f"{name} finds nothing in {file}")


def _nearest(model: Model, rule: Any, most: int) -> list[Explanation]:
    from graphopt.rewrite.explain import nearest_misses

    found = [e for region in model.regions() for e in nearest_misses(region, rule, most)]
    return sorted(found, key=lambda e: -e.score)


def _at_node(model: Model, rule: Any, name: str) -> list[Explanation]:
    from graphopt.rewrite.explain import explain as explain_node

    return [explain_node(region, rule, node) for region, node in _named(model, name)]


def _named(model: Model, name: str) -> list[tuple[Graph, Node]]:
    """The nodes called `name`, or those that compute a value of that name."""
    nodes = [(region, node) for region in model.regions() for node in region.nodes()]
    found = [(region, node) for region, node in nodes if region.node_name(node) == name]
    found = found or [(r, n) for r, n in nodes if name in _output_names(r, n)]
    if not found:
        hint = did_you_mean(name, {region.node_name(node) for region, node in nodes})
        raise ModelError(f"the model has no node {name!r}{hint}; `graphopt dump` lists all nodes")
    return found


def _output_names(region: Graph, node: Node) -> list[str]:
    return [region.name(value) for value in region.raw_call(node).outputs if value is not None]


def _table(explanations: list[Explanation]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", "applies", "why", "stopped at"):
        table.add_column(column, overflow="fold")
    for e in explanations:
        table.add_row(Text(e.node), "yes" if e.matched else "no", Text(e.reason), Text(e.stopped_at))
    return table
