"""Cutting a step in two: what is computed before the loop, and what stays in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from graphopt.ir.graph import Graph, Node, Value
from graphopt.program.body import Feed, Unit
from graphopt.program.stages import Staging, is_stored, reads

Place: TypeAlias = Literal["prologue", "table"]


@dataclass(frozen=True)
class Split:
    """A step cut in two: what is needed for the kept values, and what stays."""

    staging: Staging
    kept: Sequence[Value]

    @property
    def graph(self) -> Graph:
        return self.staging.graph

    def moved(self) -> list[Node]:
        """The nodes that compute the kept values, in order. Some may be needed in the step as well."""
        return self._needed(self.kept, ())

    def staying(self) -> list[Node]:
        """The nodes that compute the outputs when the kept values are given, and those with effects."""
        graph = self.graph
        return self._needed(graph.outputs(), self.kept, [n for n in graph.nodes() if not graph.is_pure(n)])

    def _needed(self, values: Iterable[Value], given: Iterable[Value], also: Iterable[Node] = ()) -> list[Node]:
        """The nodes that compute `values` from `given` and the inputs, and `also` with what they need; in order."""
        graph = self.graph
        known = set(given)
        wanted = {v for v in values if v not in known}
        extra = set(also)
        found = []
        for node in reversed(list(graph.nodes())):
            if is_stored(graph, node):
                continue
            if node in extra or any(v in wanted for v in graph.results(node) if v is not None):
                found.append(node)
                wanted.update(v for v in reads(graph, node, self.staging.values) if v not in known)
        return found[::-1]


def split(step: Unit, place: Place, cut: Split) -> tuple[Unit, Unit]:
    """(what runs before the loop, the step that is left)."""
    graph = cut.graph
    feeds = dict(zip(graph.inputs(), step.feeds, strict=True))
    moved, staying = cut.moved(), cut.staying()
    checks = _checks(graph, moved, staying)
    moved_inputs = _inputs_read(graph, feeds, [*moved, *checks], [])
    left = [n for n in staying if n not in checks]
    step_inputs = _inputs_read(graph, feeds, left, graph.outputs())
    first = Unit(step.model.extract([*moved, *checks], moved_inputs, cut.kept), tuple(feeds[v] for v in moved_inputs))
    second = Unit(
        step.model.extract(left, [*step_inputs, *cut.kept], graph.outputs()),
        (*(feeds[v] for v in step_inputs), *(Feed(place, index=i) for i in range(len(cut.kept)))),
    )
    return first, second


def _checks(graph: Graph, moved: Sequence[Node], staying: Sequence[Node]) -> set[Node]:
    """Nodes that only check inputs, as the assertions of torch.export do. They go with those who read the inputs, once
    instead of in every step."""
    given = set(graph.inputs())
    read_early = {v for n in moved for v in reads(graph, n, given) if v in given}
    return {
        n
        for n in staying
        if not graph.is_pure(n)
        and all(v is None or graph.type(v) is None and not graph.users(v) for v in graph.results(n))
        and all(v in read_early for v in reads(graph, n, given) if graph.constant(v) is None)
    }


def _inputs_read(
    graph: Graph, feeds: dict[Value, Feed], nodes: Iterable[Node], outputs: Iterable[Value]
) -> list[Value]:
    read = {v for n in nodes for v in reads(graph, n, feeds)} | set(outputs)
    return [v for v in feeds if v in read]
