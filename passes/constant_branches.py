"""An If whose condition is known is what its branch does."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from graphopt.ir.graph import Graph, Node, Value
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

IF = "ai.onnx::If"
BRANCHES = {True: "then_branch", False: "else_branch"}


def inline_constant_branches(editor: Editor, settled: set[Hashable]) -> bool:
    """Write the branch that a constant condition chooses in the place of its If, one application each.

    The branch's nodes are copied as they are, its constants too. Branches that hold control flow themselves wait
    until that is gone. `settled` holds nodes that were refused before; it is added to. Returns whether any were
    inlined.
    """
    graph, kept = editor.graph, False
    if getattr(graph, "function", None) is not None:
        return False
    for node in list(graph.nodes()):
        if graph.raw_name(node) != IF or node in settled or editor.ledger.exhausted:
            continue
        body = _chosen(graph, node)
        if body is None or any(body.subgraphs(inner) for inner in body.nodes()):
            continue
        application, _ = editor.apply("inline-constant-branch", Exact(), [node], _write(graph, node, body))
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


def _chosen(graph: Graph, node: Node) -> Graph | None:
    """The body of the branch that is always taken, or None if that depends on the run."""
    call = graph.raw_call(node)
    condition = None if call.operands[0] is None else graph.constant(call.operands[0])
    if condition is None or condition.size != 1:
        return None
    names = [name for name in call.fields if name in BRANCHES.values()]
    return graph.subgraphs(node)[names.index(BRANCHES[bool(condition.item())])]


def _write(graph: Graph, node: Node, body: Graph) -> Callable[[Journal], None]:
    def write(journal: Journal) -> None:
        copies: dict[Value, Value] = {}

        def copy(value: Value | None) -> Value | None:
            """`value` of the body as one of the graph around it; what the body captures is there already."""
            if value is None or value in copies:
                return None if value is None else copies[value]
            data = body.constant(value)
            if data is None or value in outer:
                return value
            copies[value] = journal.add_constant(data, graph.name(value))
            return copies[value]

        outer = _constants_around(graph, body)
        for inner in body.nodes():
            call = body.raw_call(inner)
            if body.raw_name(inner) == "ai.onnx::Constant" and body.constant(call.outputs[0]) is not None:
                continue
            operands = [copy(o) for o in call.operands]
            types = [None if o is None else body.type(o) for o in call.outputs]
            results = journal.insert(call.op, operands, call.fields, before=node, types=types)
            copies.update({o: r for o, r in zip(call.outputs, results, strict=True) if o is not None})
        for old, new in zip(graph.raw_call(node).outputs, body.outputs(), strict=True):
            if old is not None:
                journal.replace(old, copy(new))
        journal.doom([node])

    return write


def _constants_around(graph: Graph, body: Graph) -> set[Value]:
    """Constants that `body` reads and that nodes of the graph around it read too."""
    around = {o for n in graph.nodes() for o in graph.raw_call(n).operands if o is not None}
    read = {o for n in body.nodes() for o in body.raw_call(n).operands if o is not None}
    return around & read
