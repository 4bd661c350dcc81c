"""What a denoiser computes anew in every step although it is known before the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphopt.errors import GraphoptError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes.hoist_check import Whole, check_split
from graphopt.passes.hoist_cost import Prices, keep
from graphopt.passes.hoist_split import Place, Split, split
from graphopt.pipeline.context import RunContext
from graphopt.pipeline.pass_ import ProgramPass
from graphopt.pipeline.report_table import scaled
from graphopt.program.body import Body
from graphopt.program.program import Program
from graphopt.program.stages import Stage, Staging, input_stages, is_stored, reads, stage_lines, stages, type_bytes
from graphopt.rewrite.contract import Evidence


@dataclass(frozen=True)
class Hoist(ProgramPass):
    """Takes out of the loop what does not depend on the sample.

    A step is f(x_j, t_j, c) with the sample x, the timestep t and the conditions c. Every node that cannot be reached
    from x moves in front of the loop: what depends on c alone (keys and values of a prompt, its embeddings) into a
    prologue that runs once a request; what depends on t, and on c as well (embeddings of the timestep, AdaLN
    modulations), into a table that is evaluated for every row of the schedule. Weights that only such nodes read leave
    the step. Nodes whose results are dearer to keep than to compute (a broadcast of rotary embeddings) stay; the choice
    is the exact optimum of the cost model in `graphopt.passes.hoist_cost`.

    A prologue is evaluated in every call of a program, so nothing that was kept can be stale. Preconditions: static
    sizes; nodes with effects stay. Source: DiffusionKit and Draw Things tabulate the modulations of one model by hand;
    the dependence analysis is loop-invariant code motion (Aho, Lam, Sethi and Ullman, section 9.5).
    """

    name: ClassVar[str] = "hoist"
    contract: ClassVar[str] = "Exact: the same nodes on the same kernels, each run as early as what it reads is known"

    byte_price: float = 1e-9
    "Seconds of a request that a byte costs: of a value kept for the steps, or of a weight left in them."
    weigh: bool = True
    "Whether the cost model decides what is kept; false keeps all that the steps read and could get from outside."

    def __post_init__(self) -> None:
        if not 0.0 <= self.byte_price < float("inf"):
            raise ValueError(f"byte-price={self.byte_price}: expected seconds per byte, 0 or more")

    def run(self, program: Program, context: RunContext) -> Program:
        """Both parts of every body, as two applications: "hoist/prologue" and "hoist/table"."""
        for name, body in program.bodies.items():
            if name in program.calls:
                _note_stages(context, name, body)
                whole = Whole(body)
                program = self._take_out(program, name, "prologue", context, whole)
                program = self._take_out(program, name, "table", context, whole)
                _note_share(context, name, body, program.bodies[name])
        return program

    def _take_out(self, program: Program, name: str, place: Place, context: RunContext, whole: Whole) -> Program:
        """The program with one part of a body outside of its step, or as it is if that is not possible."""
        body = program.bodies[name]
        if getattr(body, place) is not None:
            context.notes.append(f"{name}: has a {place} already")
            return program
        if context.ledger.exhausted:
            return program
        stats = context.ledger.rule(place)
        stats.tried += 1
        staging = stages(body.step.model.main, input_stages(body.step))
        try:
            kept = self._keep(staging, place, program.calls.count(name))
        except GraphoptError as error:
            stats.refused[str(error)] += 1
            context.notes.append(f"{name}: no {place}: {error}")
            return program
        if not kept:
            return program
        stats.matched += 1
        return _apply(program, name, place, Split(staging, kept), context, whole)

    def _keep(self, staging: Staging, place: Place, rows: int) -> list[Value]:
        graph = staging.graph
        free = (Stage.MODEL, Stage.REQUEST)
        inside = free if place == "prologue" else tuple(s for s in Stage if s.before_loop)
        movable = [n for n, s in staging.nodes.items() if s in inside and not is_stored(graph, n)]

        def returned(node: Node) -> bool:
            """What depends on no timestep is for the prologue to keep: a table would hold it once for every row."""
            return place == "prologue" or staging.nodes[node] not in free

        if not self.weigh:
            return _all_read(graph, [n for n in movable if returned(n)], set(movable))
        kept_byte = self.byte_price * (1 if place == "prologue" else rows)
        return keep(graph, movable, returned, Prices(rows, self.byte_price, kept_byte))


def _all_read(graph: Graph, returned: Sequence[Node], movable: set[Node]) -> list[Value]:
    """The results of `returned` nodes that a node outside of `movable`, or the caller, reads."""
    values = {v: None for n in returned for v in graph.results(n) if v is not None}
    read = {v for n in graph.nodes() if n not in movable for v in reads(graph, n, values)} | set(graph.outputs())
    return [v for v in values if v in read]


def _apply(program: Program, name: str, place: Place, cut: Split, context: RunContext, whole: Whole) -> Program:
    """Split, verify and record; what fails is undone alone, which is to return the program as it was."""
    body = program.bodies[name]

    def change() -> tuple[Body, Evidence]:
        first, rest = split(body.step, place, cut)
        made = (
            replace(body, step=rest, prologue=first) if place == "prologue" else replace(body, step=rest, table=first)
        )
        return made, check_split(program, whole, made, name, context.verify)

    changed = context.apply(place, tuple(cut.graph.node_name(n) for n in cut.moved()), change, what="split")
    if changed is None:
        return program
    _note_split(context, name, place, cut)
    return replace(program, bodies={**program.bodies, name: changed})


def _note_stages(context: RunContext, name: str, body: Body) -> None:
    context.notes.append(f"{name}/step, by the stage at which values are known:")
    context.notes += stage_lines(stages(body.step.model.main, input_stages(body.step)))


def _note_split(context: RunContext, name: str, place: Place, cut: Split) -> None:
    sizes = [type_bytes(cut.graph.type(v)) or 0 for v in cut.kept]
    per_row = " per row" if place == "table" else ""
    context.notes.append(
        f"{name}/{place}: {len(cut.moved())} nodes; keeps {len(sizes)} values, {scaled(sum(sizes))}B{per_row}"
    )


def _note_share(context: RunContext, name: str, before: Body, after: Body) -> None:
    had, has = (sum(elements for _, elements, _ in b.step.model.weights()) for b in (before, after))
    if had:
        context.notes.append(f"{name}: {had - has:,} of {had:,} parameters ({(had - has) / had:.1%}) left the loop")
