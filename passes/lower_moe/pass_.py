"""The pass lower-moe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.graph import Graph
from graphopt.passes.lower_moe.experts import write_experts
from graphopt.passes.lower_moe.grouped import NotGrouped, grouped_by, nodes_of, sorts_of, write_unsorted
from graphopt.passes.lower_moe.picked import Picked, picked_rows
from graphopt.passes.lower_moe.rules import FOLLOWING, PREPARING
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.contract import Rounding

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

SPLITS_BY_ROWS = 13
"""The first opset in which Split takes sizes that are computed."""


@dataclass(frozen=True)
class LowerMoe(GraphPass):
    """Lowers mixtures of experts to what the target runs fast."""

    name: ClassVar[str] = "lower-moe"
    contract: ClassVar[str] = "Rounding: at most 8 times the rounding error of the original, per application"

    def run(self, context: Context) -> None:
        for step in (self._prepare, self._lower, self._follow):
            kept = context.ledger.kept
            step(context)
            if context.ledger.kept > kept:
                context.model.refresh()

    @staticmethod
    def _prepare(context: Context) -> None:
        context.run_rules(PREPARING)

    def _lower(self, context: Context) -> None:
        for graph in context.model.regions():
            if graph.storage == "fx":
                self._unsort(context, graph)
            else:
                self._split(context, graph)

    @staticmethod
    def _follow(context: Context) -> None:
        context.run_rules(FOLLOWING)

    @staticmethod
    def _unsort(context: Context, graph: Graph) -> None:
        for sort in list(sorts_of(graph)):
            try:
                found = grouped_by(graph, sort)
            except NotGrouped as error:
                context.notes.append(f"{graph.node_name(sort.node)} left alone: {error}")
                continue
            context.editor(graph).apply(
                "grouped-experts", Rounding(), nodes_of(found), lambda journal, f=found: write_unsorted(f, journal)
            )

    @staticmethod
    def _split(context: Context, graph: Any) -> None:
        for found in list(picked_rows(graph)):
            if not isinstance(found, Picked):
                call, reason = found
                context.notes.append(f"{graph.node_name(call.node)} left alone: {reason}")
                continue
            if graph.opset < SPLITS_BY_ROWS:
                reason = f"a Split whose sizes are computed needs opset {SPLITS_BY_ROWS}, the model has {graph.opset}"
                context.notes.append(f"{graph.node_name(found.nodes[0])} left alone: {reason}")
                continue
            context.editor(graph).apply(
                "picked-experts", Rounding(), found.nodes, lambda journal, f=found: write_experts(f, journal)
            )
