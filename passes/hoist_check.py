"""The evidence that a split step computes what the whole one does: both run on the same requests, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType, compatible
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.rounding_check import cannot_run
from graphopt.program.body import Body, Known
from graphopt.program.program import Program
from graphopt.program.reference import run_unit
from graphopt.program.runner import timestep_table, to_numpy, to_torch
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.verify.compare import bit_equal
from graphopt.verify.inputs import draw_input

REQUESTS = 2
ROWS = 3
"""How many rows of the schedule every request runs: first, last and between."""
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "prologue": ("condition",),
    "table": ("condition", "timestep", "prologue"),
    "step": ("condition", "timestep", "prologue", "table", "sample"),
}
"""What every unit may read."""


def check_split(program: Program, whole: Whole, after: Body, name: str, verify: str) -> Evidence:
    """Evidence that `after` computes what the `whole` body does.

    Raises:
        Rejected: types or results differ, or nothing can be executed although the level asks for it.
    """
    if (reason := _types_differ(whole.body, after)) is not None:
        raise Rejected(reason, Evidence("none"))
    if verify == "off":
        return Evidence("none")
    if verify == "structure":
        return Evidence("types", notes=("types only: nothing was executed",))
    if any(_without_data(unit.model) for _, unit in whole.body.units()):
        raise Rejected(
            f"the weights of {name} have no data (device meta), so nothing can be executed to compare; "
            "verify='structure' compares types only",
            Evidence("none"),
        )
    return _execute(program, whole, after, name)


def _types_differ(before: Body, after: Body) -> str | None:
    """Why the units of `after` do not fit together, or do not return what `before` does."""
    returned = {name: after.result_types(name) for name, _ in after.units()}
    for name, unit in after.units():
        for feed, type_ in zip(unit.feeds, _types(unit.model, unit.model.main.inputs()), strict=True):
            if feed.kind not in _KNOWN[name]:
                return f"the {name} reads the {feed}, which is not known when it runs"
            given = returned[feed.kind][feed.index] if feed.kind in returned else type_
            if given is not None and type_ is not None and not compatible(given, type_):
                return f"the {name} takes {feed} as {type_}, and it is {given}"
    was, is_ = before.result_types("step"), returned["step"]
    if was != is_:
        return f"the step returned {_listed(was)} and would return {_listed(is_)}"
    return None


def _types(model: Model, values: Sequence[Any]) -> list[TensorType | None]:
    return [model.main.type(v) for v in values]


def _listed(types: Sequence[TensorType | None]) -> str:
    return ", ".join(map(str, types))


def _without_data(model: Model) -> bool:
    weights = getattr(model.main, "weights", {}) if model.storage == "fx" else {}
    return any(w.tensor.is_meta for w in weights.values())


def _execute(program: Program, whole: Whole, after: Body, name: str) -> Evidence:
    runs = 0
    try:
        parts = Runs(after)
        for request in range(REQUESTS):
            got = parts.request(draw_request(program, request), program.storage)
            for timestep in _timesteps(program, name):
                sample = _sample(program, runs)
                expected = whole.results(program, request, timestep, runs)
                runs += 1
                _compare(expected, got(sample, timestep), request, timestep, runs)
    except Rejected:
        raise
    except Exception as error:
        raise cannot_run(error) from error
    return Evidence("bit-equal", runs)


class Whole:
    """What a body gives as it is. A denoiser is dear to run: results are kept for the next split of the same body."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self._requests: dict[int, Callable[[Array, Array], Sequence[Any]]] = {}
        self._results: dict[tuple[int, bytes, int], list[Array]] = {}

    @cached_property
    def _runs(self) -> Runs:
        return Runs(self.body)

    def results(self, program: Program, request: int, timestep: Array, sample: int) -> list[Array]:
        """The step's outputs for a drawn request, by number, at a timestep, from a drawn sample, by number."""
        key = request, timestep.tobytes(), sample
        if key not in self._results:
            if request not in self._requests:
                self._requests[request] = self._runs.request(draw_request(program, request), program.storage)
            found = self._requests[request](_sample(program, sample), timestep)
            self._results[key] = list(map(to_numpy, found))
        return self._results[key]


def _compare(expected: Sequence[Array], got: Sequence[Any], request: int, timestep: Array, runs: int) -> None:
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not bit_equal(a, to_numpy(b)):
            raise Rejected(
                f"output {number} of request {request} at timestep {timestep.reshape(-1)[0]:g} is not bit-equal",
                Evidence("executed", runs, float("inf")),
            )


class Runs:
    """A body on the runtime of its storage."""

    def __init__(self, body: Body, units: Collection[str] = tuple(_KNOWN)) -> None:
        """`units`: those that will be run."""
        self._body = body
        self._run = {name: run_unit(unit.model) for name, unit in body.units() if name in units}

    def request(self, conditions: Mapping[str, Array], storage: str) -> Callable[[Array, Array], Sequence[Any]]:
        """The step's outputs as a function of sample and timestep, for one set of conditions."""
        feeds = self.step_feeds(conditions, storage)
        return lambda sample, timestep: self._run["step"](feeds(sample, timestep))

    def step_feeds(self, conditions: Mapping[str, Array], storage: str) -> Callable[[Array, Array], list[Any]]:
        """What the step is fed, as a function of sample and timestep, for one set of conditions."""
        own = to_torch if storage == "fx" else to_numpy
        body, known = self._body, Known({name: own(value) for name, value in conditions.items()})
        if body.prologue is not None:
            known = replace(known, prologue=self._run["prologue"](known.feeds(body.prologue)))

        def feeds(sample: Array, timestep: Array) -> list[Any]:
            row = replace(known, sample=own(sample), timestep=own(timestep))
            row = replace(row, table=body.table_of_row(lambda given: self._run["table"](given), row))
            return list(row.feeds(body.step))

        return feeds


def _timesteps(program: Program, name: str) -> list[Array]:
    """First, last and middle timestep of the rows that call the body, as the denoiser takes them."""
    rows = [row for row, called in enumerate(program.calls) if called == name]
    chosen = sorted({rows[round(i * (len(rows) - 1) / max(1, ROWS - 1))] for i in range(ROWS)})
    return [np.asarray(timestep) for timestep in timestep_table(program, chosen)]


def draw_request(program: Program, number: int) -> dict[str, Array]:
    """Seeded conditions, others for every request. Integers are indices for all that is known: 0 and 1 are valid
    where any two are."""
    rng = np.random.default_rng(number)
    seen = {c.name: program.interface.seen("condition", c.name) for c in program.interface.conditions}
    return {name: draw_input(rng, type_) for name, type_ in seen.items()}


def _sample(program: Program, number: int) -> Array:
    return draw_input(np.random.default_rng(1000 + number), program.interface.seen("sample"))
