"""What both halves of a guided batch have in common is computed for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphopt.errors import GraphoptError
from graphopt.ir.graph import CannotEmit, Graph, Node, Value
from graphopt.passes.hoist_cost import LAUNCH, MEMORY_RATE, bytes_of, cheapest, seconds
from graphopt.passes.hoist_split import Split
from graphopt.passes.share_check import cut_after, cut_before, judge
from graphopt.passes.twin_rules import Kind
from graphopt.passes.twins import Twins, find_twins, write_halves
from graphopt.pipeline.context import RunContext
from graphopt.pipeline.pass_ import ProgramPass
from graphopt.program.body import Body, Feed, Unit
from graphopt.program.program import Program
from graphopt.program.stages import Stage, input_stages, reads, stages
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence


@dataclass(frozen=True)
class ShareGuidance(ProgramPass):
    """Computes once what is the same in both halves of the batch that guidance makes.

    Classifier-free guidance in one batch calls the denoiser on [x, x], [t, t] and [negative, c]. A node that reads
    only what is the same in both halves, f([h, h]) with f acting on each sample by itself, is [f(h), f(h)]: it runs on
    h, and where the condition comes in, its result is written twice. In a U-Net that is all that stands before the
    first cross-attention, the skip connections from there included; in a transformer with cross-attention the
    self-attention of its first block. Where the class or a pooled prompt enters the embedding of the timestep, next to
    nothing is common, and the pass says so.

    Where to stop is the exact optimum of the cost model of `hoist`: a half of the work of every node saved, against a
    copy of each value that is needed twice. Preconditions: guidance with mode="batch"; static sizes; a rule in
    `graphopt.passes.twin_rules` for every op. Before `batch-tables`, whose tables have another first axis.

    Contract: rounding, since kernels may add up in another order for another batch; checked against float64. Source:
    common subexpressions across the elements of a batch; that the branches of guidance have the same x and t is by
    Ho and Salimans 2022, arXiv 2207.12598.
    """

    name: ClassVar[str] = "share-guidance"
    contract: ClassVar[str] = (
        "Rounding: the same ops on half of the batch, whose kernels may add up in another order; checked against "
        "float64"
    )

    def run(self, program: Program, context: RunContext) -> Program:
        """The step of every body, each as one application "share-guidance/step"."""
        if not program.interface.doubled:
            context.notes.append("no guidance in one batch, so nothing is in a batch twice")
            return program
        for name, body in program.bodies.items():
            if name in program.calls and not context.ledger.exhausted:
                program = _share(program, name, body, context)
        return program


def _share(program: Program, name: str, body: Body, context: RunContext) -> Program:
    stats = context.ledger.rule("step")
    stats.tried += 1
    step = Unit(body.step.model.copy(), body.step.feeds)
    graph = step.model.main
    twins = find_twins(graph, _kinds(program, body, step))
    try:
        kept, saved = _choose(step, twins)
    except GraphoptError as error:
        stats.refused[str(error)] += 1
        context.notes.append(f"{name}: both halves stay whole: {error}")
        return program
    if not kept:
        stats.refused["nothing that both halves have in common costs more than to copy it"] += 1
        context.notes.append(
            f"{name}: {len(twins.calls)} nodes compute the same for both halves of the guidance, and none so much "
            "that a copy is cheaper"
        )
        return program
    stats.matched += 1
    nodes = _needed(graph, twins, kept)
    names = tuple(graph.node_name(n) for n in nodes)
    changed = context.apply("step", names, lambda: _change(program, name, body, step, twins, kept, context.verify))
    if changed is None:
        return program
    context.notes.append(
        f"{name}: {len(nodes)} nodes run for one half of the guidance, {len(kept)} results are copied; "
        f"about {1e6 * saved:.0f} µs of a step by the cost model"
    )
    return replace(program, bodies={**program.bodies, name: changed})


def _kinds(program: Program, body: Body, unit: Unit) -> dict[Value, Kind]:
    """What is known of the inputs of a unit."""

    def kind(feed: Feed) -> Kind:
        match feed.kind:
            case "sample":
                return Kind.TWIN
            case "timestep":
                return Kind.WHOLE if program.interface.timestep.shape in ((), (1,)) else Kind.TWIN
            case "condition":
                return Kind.OTHER if program.interface.condition(feed.name).branched else Kind.WHOLE
        made: Unit | None = getattr(body, feed.kind)
        if made is None or (feed.kind == "table" and body.batched):
            return Kind.OTHER
        graph = made.model.main
        return find_twins(graph, _kinds(program, body, made)).kind(graph.outputs()[feed.index])

    found: dict[Feed, Kind] = {feed: kind(feed) for feed in dict.fromkeys(unit.feeds)}
    return {v: found[feed] for v, feed in zip(unit.model.main.inputs(), unit.feeds, strict=True)}


def _choose(step: Unit, twins: Twins) -> tuple[list[Value], float]:
    """The values to copy, and the seconds of a step that this saves.

    Raises:
        UnsupportedError: a size is not known.
    """
    graph = twins.graph
    staged = stages(graph, input_stages(step)).nodes

    def half(node: Node) -> float:
        """What is known before the loop is for `hoist` to take away, and weighs nothing."""
        return 0.0 if staged[node] is not Stage.STEP else max(0.0, seconds(graph, node) - LAUNCH) / 2

    def copy(value: Value, node: Node) -> float:
        return 0.0 if staged[node] is not Stage.STEP else LAUNCH + 1.5 * bytes_of(graph, value, node) / MEMORY_RATE

    kept = cheapest(graph, list(twins.calls), half, copy)
    if not kept:
        return [], 0.0
    nodes = _needed(graph, twins, kept)
    given = set(graph.inputs())
    sliced = {v for n in nodes for v in reads(graph, n, given) if v in given and twins.kind(v) is Kind.TWIN}
    saved = sum(map(half, nodes)) - LAUNCH * len(sliced)
    saved -= sum(copy(v, node) for v in kept if (node := graph.producer(v)) is not None)
    return (kept, saved) if saved > 0 else ([], 0.0)


def _needed(graph: Graph, twins: Twins, kept: Sequence[Value]) -> list[Node]:
    """The twins that `kept` are computed from, in order."""
    return [n for n in _before(graph, kept) if n in twins.calls]


def _before(graph: Graph, kept: Sequence[Value]) -> list[Node]:
    """All nodes that `kept` are computed from, in order."""
    return Split(stages(graph, {}), kept).moved()


def _change(
    program: Program, name: str, body: Body, step: Unit, twins: Twins, kept: Sequence[Value], verify: str
) -> tuple[Body, Evidence]:
    """The body with a step that computes `kept` for one half, and the evidence that it computes the same."""
    graph = twins.graph
    before = _before(graph, kept)
    shared = [n for n in before if n in twins.calls]
    executed = verify not in ("off", "structure")
    fragment = cut_before(graph, before, kept) if executed else None
    try:
        written, copies = write_halves(twins, set(shared), kept)
    except CannotEmit as error:
        raise Rejected(str(error), Evidence("none")) from error
    evidence = Evidence("none" if verify == "off" else "types")
    if fragment is not None:
        after = {*written, *before}.difference(shared)
        fragment = cut_after(graph, [n for n in graph.nodes() if n in after], copies, fragment)
        evidence = judge(program, name, body, fragment)
    graph.remove_unread(reversed(shared))
    step.model.refresh()
    return replace(body, step=step), evidence
