"""An If whose condition is constant, replaced by a copy of the branch that it takes: told by comparing the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.rewrite.change import Change
from graphopt.verify.compare import bit_equal

COPIED = "the nodes are those of the branch that is always taken"


def copies_taken_branch(change: Change) -> bool:
    """Whether `change` writes, node by node, what the one If that it replaces does under its constant condition.

    For branches that cannot be run, since the rank of what they read is unknown. Nodes are compared with those of the
    branch in their order, bodies within them too: ops, attributes, operands, constants to the bit.
    """
    graph, journal = change.graph, change.journal
    branches = graph.branches(change.nodes[0]) if len(change.nodes) == 1 else None
    condition = None if branches is None else graph.constant(branches.condition)
    if branches is None or condition is None or condition.size != 1:
        return False
    body = branches.body(bool(condition.item()))
    pairing = _Pairing(dict(zip(body.inputs(), branches.operands, strict=True)))
    if not pairing.same_nodes(body, body.nodes(), graph, journal.inserted):
        return False
    becomes = dict(zip(graph.results(change.nodes[0]), body.outputs(), strict=True))
    return all(old in becomes and pairing.same_value(body, becomes[old], graph, new) for old, new in journal.replaced)


class _Pairing:
    """Which value of the copy stands for which of the original."""

    def __init__(self, known: dict[Value, Value]) -> None:
        self._known = known

    def same_nodes(self, body: Graph, nodes: Iterable[Node], graph: Graph, copies: Iterable[Node]) -> bool:
        originals, copied = _computed(body, nodes), _computed(graph, copies)
        if len(originals) != len(copied):
            return False
        return all(self._same_node(body, a, graph, b) for a, b in zip(originals, copied, strict=True))

    def _same_node(self, body: Graph, node: Node, graph: Graph, copy: Node) -> bool:
        a, b = body.raw_call(node), graph.raw_call(copy)
        if a.op != b.op or a.fields.keys() != b.fields.keys() or len(a.operands) != len(b.operands):
            return False
        bodies = list(zip(body.subgraphs(node), graph.subgraphs(copy), strict=False))
        other = [name for name, value in a.fields.items() if not _equal(value, b.fields[name])]
        if len(other) != len(bodies) or len(bodies) != len(graph.subgraphs(copy)):
            return False  # Bodies are the only fields that a copy has anew.
        if not all(self.same_value(body, x, graph, y) for x, y in zip(a.operands, b.operands, strict=True)):
            return False
        if [o is None for o in a.outputs] != [o is None for o in b.outputs]:
            return False
        if not all(self._same_body(x, y) for x, y in bodies):
            return False
        self._known.update((x, y) for x, y in zip(a.outputs, b.outputs, strict=True) if x is not None)
        return True

    def _same_body(self, body: Graph, copy: Graph) -> bool:
        if len(body.inputs()) != len(copy.inputs()) or len(body.outputs()) != len(copy.outputs()):
            return False
        self._known.update(zip(body.inputs(), copy.inputs(), strict=True))
        if not self.same_nodes(body, body.nodes(), copy, copy.nodes()):
            return False
        outputs = zip(body.outputs(), copy.outputs(), strict=True)
        return all(self.same_value(body, x, copy, y) for x, y in outputs)

    def same_value(self, body: Graph, value: Value | None, graph: Graph, copy: Value | None) -> bool:
        """Whether `copy` stands for `value`: computed alike, a constant of the same bits, or the same value of a region
        around both."""
        if value is None or copy is None:
            return value is copy
        if value in self._known:
            return self._known[value] is copy
        a, b = body.constant(value), graph.constant(copy)
        if a is None or b is None:
            return value is copy
        return a is b or ((a.dtype, a.shape) == (b.dtype, b.shape) and bit_equal(a.numpy(), b.numpy()))


def _computed(graph: Graph, nodes: Iterable[Node]) -> Sequence[Node]:
    """Those of `nodes` that are no constants."""
    return [n for n in nodes if all(o is None or graph.constant(o) is None for o in graph.results(n))]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and bit_equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))
