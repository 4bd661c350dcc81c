"""An If whose condition is known is what its branch does."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from graphopt.ir.graph import Graph, Node, Value
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

IF = "ai.onnx::If"
COND = "higher_order.cond"
BRANCHES = {True: "then_branch", False: "else_branch"}


def inline_constant_branches(editor: Editor, settled: set[Hashable]) -> bool:
    """Write the branch that a constant condition chooses in the place of its If, one application each.

    The branch's nodes are copied, its constants too. A branch that holds control flow itself waits until that is
    gone, and one with effects stays. `settled` holds nodes that were refused before; it is added to. Returns
    whether any were inlined.
    """
    graph, kept = editor.graph, False
    if getattr(graph, "function", None) is not None:
        return False
    for node in list(graph.nodes()):
        if graph.raw_name(node) != IF or node in settled or editor.ledger.exhausted:
            continue
        body = _chosen(graph, node)
        if body is None or not graph.is_pure(node) or any(body.subgraphs(inner) for inner in body.nodes()):
            continue
        application, _ = editor.apply("inline-constant-branch", Exact(), [node], write_branch(graph, node, body))
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
    return branch_of(graph, node, bool(condition.item()))


def branch_of(graph: Graph, node: Node, taken: bool) -> Graph:
    """The body that an If of ONNX or a cond of torch runs if its condition is `taken`."""
    call = graph.raw_call(node)
    if call.op == COND:
        return graph.subgraphs(node)[0 if taken else 1]
    names = [name for name in call.fields if name in BRANCHES.values()]
    return graph.subgraphs(node)[names.index(BRANCHES[taken])]


def write_branch(graph: Graph, node: Node, body: Graph) -> Callable[[Journal], None]:
    """Writes copies of the nodes of `body`, a branch of `node`, in the place of `node`."""
    inside = set(body.nodes())

    def write(journal: Journal) -> None:
        given, inputs = graph.raw_call(node).operands, body.inputs()
        # A body of torch captures nothing: it is given all that it reads, as the last operands.
        copies: dict[Value, Value] = dict(zip(inputs, given[len(given) - len(inputs) :], strict=True))

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
            operands = [None if o is None else copy(o) for o in call.operands]
            types = [None if o is None else body.type(o) for o in call.outputs]
            results = journal.insert(call.op, operands, call.fields, before=node, types=types)
            copies.update((o, r) for o, r in zip(call.outputs, results, strict=True) if o is not None)
        for old, new in zip(graph.raw_call(node).outputs, body.outputs(), strict=True):
            if old is not None:
                journal.replace(old, copy(new))
        journal.doom([node])

    return write
