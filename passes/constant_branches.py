"""An If whose condition is known is what its branch does."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from graphopt.ir.graph import Branches, Graph, Node, Value
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal


def inline_constant_branches(editor: Editor, settled: set[Hashable]) -> bool:
    """Write the branch that a constant condition chooses in the place of its If, one application each.

    The branch's nodes are copied, its constants and control flow too; one with effects stays. `settled` holds nodes
    that were refused before; it is added to. Returns whether any were inlined.
    """
    graph, kept = editor.graph, False
    if getattr(graph, "function", None) is not None:
        return False
    for node in list(graph.nodes()):
        branches = graph.branches(node)
        if branches is None or node in settled or editor.ledger.exhausted:
            continue
        condition = graph.constant(branches.condition)
        if condition is None or condition.size != 1 or not graph.is_pure(node):
            continue
        write = write_branch(graph, node, branches, bool(condition.item()))
        application, _ = editor.apply("inline-constant-branch", Exact(), [node], write)
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


def write_branch(graph: Graph, node: Node, branches: Branches, condition: bool) -> Callable[[Journal], None]:
    """Writes copies of the nodes that `node` runs if its condition is as given, in the place of `node`."""
    body = branches.body(condition)
    inside = set(_all_nodes(body))

    def write(journal: Journal) -> None:
        copies: dict[Value, Value] = dict(zip(body.inputs(), branches.operands, strict=True))

        def copy(value: Value) -> Value:
            """`value` of the body as one of the graph around it, where what the body captures is already."""
            if value not in copies:
                data = body.constant(value)
                if data is not None and all(user in inside for user in body.users(value)):
                    copies[value] = journal.add_constant(data, graph.name(value))
                else:
                    copies[value] = value
            return copies[value]

        for inner in body.nodes():
            call = body.raw_call(inner)
            if any(o is not None and body.constant(o) is not None for o in call.outputs):
                continue
            results: Sequence[Value | None]
            if body.subgraphs(inner):
                results = journal.insert_copy(inner, copy, before=node)
            else:
                operands = [None if o is None else copy(o) for o in call.operands]
                types = [None if o is None else body.type(o) for o in call.outputs]
                results = journal.insert(call.op, operands, call.fields, before=node, types=types)
            copies.update((o, r) for o, r in zip(call.outputs, results, strict=True) if o is not None)
        for old, new in zip(graph.raw_call(node).outputs, body.outputs(), strict=True):
            if old is not None:
                journal.replace(old, copy(new))
        journal.doom([node])

    return write


def _all_nodes(body: Graph) -> Iterator[Node]:
    """The nodes of `body` and of the bodies that they have."""
    for node in body.nodes():
        yield node
        for inner in body.subgraphs(node):
            yield from _all_nodes(inner)
