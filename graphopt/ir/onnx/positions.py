"""Order labels for the nodes of a region: `a` stands before `b` if its label is less."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

_BELOW = -(1 << 62)


class Positions:
    """Labels that survive insertion: what is inserted before a node takes a label between its neighbours.

    A label is a tuple that ends in 0. Inserting before `b` extends `b`'s label with a large negative number
    that grows with every insertion, so later insertions before `b` stand nearer to it.
    """

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._labels: dict[ir.Node, tuple[int, ...]] = {n: (i, 0) for i, n in enumerate(nodes)}
        self._end = len(self._labels)
        self._count = 0

    def insert_before(self, node: ir.Node, new: Iterable[ir.Node]) -> None:
        prefix = self._labels[node][:-1]
        for n in new:
            self._count += 1
            self._labels[n] = (*prefix, _BELOW + self._count, 0)

    def append(self, node: ir.Node) -> None:
        self._labels[node] = (self._end, 0)
        self._end += 1

    def prepend(self, node: ir.Node) -> None:
        self._count += 1
        self._labels[node] = (-self._count, 0)

    def discard(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            self._labels.pop(node, None)

    def label(self, node: ir.Node) -> tuple[int, ...]:
        return self._labels[node]

    def precedes(self, a: ir.Node, b: ir.Node) -> bool:
        return self._labels[a] < self._labels[b]
