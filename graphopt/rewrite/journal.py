"""The journal of one application: every edit with its undo, so that taking it back costs what it cost.

Nodes that an application makes superfluous are only marked; they leave the graph when the application is decided.
Until then the original is whole, which is what lets verification run both sides and lets undo be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphopt.ir.graph import CannotEmit, Graph, Node, TensorType, Undo, Value, compatible
from graphopt.ir.weights import TensorRef


class Journal:
    """Edits of one graph, to be committed or rolled back as one."""

    __slots__ = ("graph", "inserted", "replaced", "readers", "doomed", "removed", "_undos")

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inserted: list[Node] = []
        self.replaced: list[tuple[Value, Value]] = []
        self.readers: list[Node] = []
        """Nodes that read a value which was replaced, and read what replaced it now."""
        self.doomed: list[Node] = []
        self.removed: list[Node] = []
        self._undos: list[Undo] = []

    def __enter__(self) -> Journal:
        """Commits what is written inside, or takes it back if that raises."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    def insert(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        *,
        before: Node,
        types: Sequence[TensorType | None],
    ) -> list[Value]:
        values, nodes, undo = self.graph.insert(op, operands, fields, before=before, types=types)
        self.inserted += nodes
        self._undos.append(undo)
        return values

    def insert_copy(self, node: Node, read: Callable[[Value], Value], *, before: Node) -> list[Value | None]:
        values, nodes, undo = self.graph.insert_copy(node, read, before=before)
        self.inserted += nodes
        self._undos.append(undo)
        return values

    def add_constant(self, data: TensorRef, name: str) -> Value:
        value, undo = self.graph.add_constant(data, name)
        self._undos.append(undo)
        return value

    def store(self, value: Value, data: TensorRef) -> None:
        self._undos.append(self.graph.store(value, data))

    def retype(self, node: Node, types: Sequence[TensorType | None]) -> None:
        self._undos.append(self.graph.retype(node, types))

    def replace(self, old: Value, new: Value, *, resized: bool = False) -> None:
        """Let whoever reads `old` read `new`. Raises CannotEmit if their dtypes or shapes are known to differ, unless
        it is `resized` on purpose and what reads it follows."""
        becomes = None if resized else self.graph.type(new)
        if becomes is not None and (was := self.graph.type(old)) is not None and not compatible(was, becomes):
            raise CannotEmit(f"{self.graph.name(old)} was {was} and would become {becomes}")
        readers, undo = self.graph.redirect(old, new)
        self._undos.append(undo)
        self.readers += readers
        self.replaced.append((old, new))

    def doom(self, nodes: Sequence[Node]) -> None:
        """Mark `nodes` (in topological order) for removal at commit, those of them that nothing reads by then."""
        self.doomed += nodes

    @property
    def is_empty(self) -> bool:
        return not self._undos and not self.doomed

    def commit(self) -> None:
        """Make the edits final and fill `removed`."""
        self.removed += self.graph.remove_unread(reversed(self.doomed))
        self._undos.clear()

    def rollback(self) -> None:
        for undo in reversed(self._undos):
            undo()
        self._undos.clear()
        self.inserted.clear()
        self.replaced.clear()
        self.readers.clear()
        self.doomed.clear()
