"""A denoiser that chooses by its timestep what it runs becomes one body for each choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.passes.hoist_check import Whole, check_split
from graphopt.passes.timestep_choices import Choice, decided, find_choices, selected
from graphopt.pipeline.context import RunContext
from graphopt.pipeline.pass_ import ProgramPass
from graphopt.pipeline.report_table import scaled
from graphopt.program.body import Body
from graphopt.program.guidance import Guidance, row_scales
from graphopt.program.program import Program
from graphopt.rewrite.contract import Evidence


@dataclass(frozen=True)
class RouteTimesteps(ProgramPass):
    """Rows call a body of their own for what the denoiser chooses by the timestep.

    A denoiser with experts inside chooses by s(t), a value that depends on nothing but the timestep: the condition of
    where(s, x, y) or of a branch (If, torch.cond), or the index of gather(W, s) into stacked weights. The schedule has
    fixed timesteps, so s is a number in every row. Rows are grouped by these numbers; each group calls a copy of the
    body in which they are written down, the other sides are gone, and with them the weights that only those read. A
    row runs one expert instead of two or of a choice at run time, and one expert's weights need to be live.

    Preconditions: before `hoist`; the bodies belong to the schedule's timesteps and cannot be given others. A choice
    among many (an embedding of every timestep) is left to be tabulated, and so is one whose bodies would store more
    weights in common than `growth` allows. A branch within a branch takes another run. Source: partial evaluation of a
    program whose inputs are known in part (Jones, Gomard and Sestoft 1993).
    """

    name: ClassVar[str] = "route-timesteps"
    contract: ClassVar[str] = "Exact: the same nodes on the same kernels, without those whose results are not chosen"

    most: int = 4
    "Most bodies that one becomes."
    growth: float = 0.1
    "By which share of the body's weights all its bodies together may store more, for what they have in common."

    def __post_init__(self) -> None:
        if self.most < 1 or not self.growth >= 0:
            raise ValueError(f"most={self.most}, growth={self.growth}: expected 1 or more, and a share of 0 or more")

    def run(self, program: Program, context: RunContext) -> Program:
        """Every body, each as one application "route-timesteps/rows"."""
        for name, body in program.bodies.items():
            if name in program.calls and not context.ledger.exhausted:
                program = self._route(program, name, body, context)
        return program

    def _route(self, program: Program, name: str, body: Body, context: RunContext) -> Program:
        found = find_choices(body.step)
        if not any(choice.leads for choice in found):
            return program
        stats = context.ledger.rule("rows")
        stats.tried += 1
        try:
            groups = self._groups(program, name, body, found)
            bodies = [Body(decided(body.step, values)) for _, values in groups]
            self._require_small(body, bodies)
        except GraphoptError as error:
            stats.refused[str(error)] += 1
            context.notes.append(f"{name}: chooses at run time: {error}")
            return program
        stats.matched += 1
        names = [f"{name}_{number + 1}" for number in range(len(groups))]
        calls = list(program.calls)
        for made, (rows, _) in zip(names, groups, strict=True):
            for row in rows:
                calls[row] = made
        routed = _with_bodies(program, name, dict(zip(names, bodies, strict=True)), calls)
        graph = body.step.model.main
        nodes = tuple(graph.node_name(choice.node) for choice in found)
        kept = context.apply("rows", nodes, lambda: (routed, _check(routed, body, names, context.verify)))
        if kept is None:
            return program
        sizes = ", ".join(f"{made} {scaled(_bytes(routed.bodies[made]))}B" for made in names)
        context.notes.append(f"{name}: {len(names)} bodies with weights of {sizes}, of {scaled(_bytes(body))}B")
        return kept

    def _groups(
        self, program: Program, name: str, body: Body, found: Sequence[Choice]
    ) -> list[tuple[list[int], list[int | None]]]:
        """Rows that choose alike, and what is chosen at each of `found` by all of them, or None."""
        rows = [row for row, called in enumerate(program.calls) if called == name]
        if body.table is not None or body.prologue is not None:
            raise UnsupportedError("parts of it run before the loop already; route timesteps before hoist")
        values = selected(program, rows, body.step, found)
        few = [None not in chosen and len(set(chosen)) <= self.most for chosen in values]
        leading = [i for i, choice in enumerate(found) if choice.leads and few[i]]
        if not leading:
            several = any(None in chosen for chosen in values)
            what = "elements of a batch choose differently" if several else f"a choice among more than {self.most}"
            raise UnsupportedError(what)
        groups: dict[tuple[object, ...], list[int]] = {}
        for place in range(len(rows)):
            groups.setdefault(tuple(values[i][place] for i in leading), []).append(place)
        if len(groups) > self.most:
            raise UnsupportedError(f"{len(groups)} bodies would be needed, and most={self.most}")
        return [
            ([rows[p] for p in places], [_common([chosen[p] for p in places]) for chosen in values])
            for places in groups.values()
        ]

    def _require_small(self, body: Body, bodies: Sequence[Body]) -> None:
        before, after = _bytes(body), sum(map(_bytes, bodies))
        if after > (1 + self.growth) * before:
            raise UnsupportedError(
                f"its bodies would have weights of {scaled(after)}B for {scaled(before)}B, as most are read whatever "
                f"the timestep is; growth={self.growth:g} allows {scaled(int((1 + self.growth) * before))}B"
            )


def _common(values: Sequence[int | None]) -> int | None:
    return values[0] if len(set(values)) == 1 else None


def _bytes(body: Body) -> int:
    return sum(size for _, _, size in body.step.model.weights())


def _with_bodies(program: Program, name: str, made: dict[str, Body], calls: Sequence[str]) -> Program:
    """The program with bodies in the place of one; guidance scales by body are said by row."""
    bodies: dict[str, Body] = {}
    for other, body in program.bodies.items():
        bodies |= made if other == name else {other: body}
    if clash := sorted(set(made) & (set(program.bodies) - {name})):
        raise UnsupportedError(f"there is a body {clash[0]!r} already")
    guidance: Guidance | None = program.guidance
    if guidance is not None and guidance.varies:
        guidance = replace(guidance, scale=row_scales(guidance.scale, program.calls))
    return replace(program, bodies=bodies, calls=tuple(calls), guidance=guidance)


def _check(routed: Program, body: Body, names: Sequence[str], verify: str) -> Evidence:
    """Each body against the one that it is made of, at rows that call it."""
    whole = Whole(body)
    found = [check_split(routed, whole, routed.bodies[name], name, verify) for name in names]
    return replace(found[0], inputs=sum(evidence.inputs for evidence in found))
