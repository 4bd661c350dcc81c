"""A sampling program as one function of JAX arrays: what is known before the loop, then one scan over the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from graphopt.backends.program_rows import called_bodies, calling_rows
from graphopt.backends.xla.invariant import without_invariants
from graphopt.backends.xla.row import RowArithmetic
from graphopt.backends.xla.sharding import BRANCHES
from graphopt.ir.weights import Array
from graphopt.program.body import Known
from graphopt.program.program import Program
from graphopt.program.runner import timestep_table

RunUnit: TypeAlias = Callable[[Any, Sequence[Any]], list[Any]]
"""A unit's results, of all weights of the program and of the unit's inputs."""
Branches: TypeAlias = Mapping[str, Sequence[Known]]
"""What each call of a body knows before the loop, by body. Results of a table are stacked: [rows that call it, ...]."""


class SamplingLoop:
    """f(weights, feeds): the final sample, for the feeds of `graphopt.backends.program_inputs`.

    Prologues are evaluated once, tables for all rows together: a table for one row becomes one for all by `vmap`. The
    rows are one `lax.scan`, whose carry are the schedule's live tensors and whose scanned inputs are its coefficients.
    Where rows call several bodies, a `lax.switch` on the row's body runs one of them.
    """

    def __init__(self, program: Program, units: Mapping[tuple[str, str], RunUnit]) -> None:
        """`units`: what runs the program's graphs, by body and unit name."""
        self._program = program
        self._units = units
        self._bodies = called_bodies(program)
        self._arithmetic = RowArithmetic(program)

    def __call__(self, weights: Any, feeds: Mapping[str, Any]) -> Any:
        return self._sampled(weights, feeds, self._conditions(feeds), list)

    def divided(self, mesh: Mesh) -> Callable[[Any, Mapping[str, Any]], Any]:
        """The same function, where each device along the mesh's axis "branches" has a branch of the guidance: it
        evaluates prologue, tables and bodies of that alone. Outputs are exchanged once a row, and what follows is the
        same on all of them. The other axes of the mesh stay XLA's to divide."""

        def everyones(outputs: Sequence[Any]) -> list[Any]:
            [output] = outputs
            return list(jax.lax.all_gather(output, BRANCHES))

        def sampled(weights: Any, feeds: Mapping[str, Any]) -> Any:
            branches, mine = self._conditions(feeds), jax.lax.axis_index(BRANCHES)
            own = {name: jnp.stack([branch[name] for branch in branches])[mine] for name in branches[0]}
            return self._sampled(weights, feeds, [own], everyones)

        everywhere = PartitionSpec()
        divided: Callable[[Any, Mapping[str, Any]], Any] = jax.shard_map(
            sampled, mesh=mesh, in_specs=everywhere, out_specs=everywhere, axis_names={BRANCHES}, check_vma=False
        )
        return divided

    def _conditions(self, feeds: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Those of each call of the denoiser in a row: one for each branch of the guidance, or one for both."""
        guided = self._program.guidance is not None
        return self._program.interface.branches(feeds, jnp.concatenate, guided=guided)

    def _sampled(
        self,
        weights: Any,
        feeds: Mapping[str, Any],
        branches: Sequence[Mapping[str, Any]],
        gather: Callable[[Sequence[Any]], list[Any]],
    ) -> Any:
        """The final sample. `branches` are the conditions of the calls that are made here in each row; of their outputs
        `gather` makes those of all calls."""
        known = {name: [self._before_loop(weights, name, branch) for branch in branches] for name in self._bodies}

        def row(state: tuple[Any, ...], scanned: Mapping[str, Any]) -> tuple[tuple[Any, ...], None]:
            seen = self._arithmetic.seen(state, scanned)
            outputs = gather(self._denoise(weights, known, seen, scanned))
            prediction = self._arithmetic.prediction(outputs, scanned, feeds)
            return self._arithmetic.next_state(state, prediction, scanned, feeds), None

        scanned = {**self._arithmetic.tables(feeds), **self._calls()}
        state = self._arithmetic.first_state(feeds)
        first = {name: values[0, ...] for name, values in scanned.items()}
        final, _ = jax.lax.scan(without_invariants(row, state, first), state, scanned)
        return self._arithmetic.sample(final)

    def _calls(self) -> dict[str, Array]:
        """For each row its timestep, the number of its body, and its place among the rows that call that body."""
        calls = self._program.calls
        names, places = list(self._bodies), np.zeros(len(calls), np.int32)
        for name in names:
            rows = calling_rows(self._program, name)
            places[rows] = np.arange(len(rows))
        return {
            "timestep": timestep_table(self._program, range(len(calls))),
            "body": np.asarray([names.index(name) for name in calls], np.int32),
            "place": places,
        }

    def _before_loop(self, weights: Any, name: str, conditions: Mapping[str, Any]) -> Known:
        """What one branch of the guidance knows of a body's prologue and table."""
        body, known = self._bodies[name], Known(conditions)
        if body.prologue is not None:
            results = self._units[name, "prologue"](weights, known.feeds(body.prologue))
            known = replace(known, prologue=results)
        if (table := body.table) is None:
            return known

        def tabulate(timestep: Any) -> list[Any]:
            return self._units[name, "table"](weights, replace(known, timestep=timestep).feeds(table))

        times = jnp.asarray(timestep_table(self._program, calling_rows(self._program, name)))
        return replace(known, table=tabulate(times) if body.batched else jax.vmap(tabulate)(times))

    def _denoise(self, weights: Any, known: Branches, seen: Any, scanned: Mapping[str, Any]) -> list[Any]:
        """The denoiser's output for each branch, by the body that the row calls."""
        calls = [partial(self._call, weights, name, known[name]) for name in self._bodies]
        if len(calls) == 1:
            return calls[0](seen, scanned)
        results: list[Any] = jax.lax.switch(scanned["body"], calls, seen, scanned)
        return results

    def _call(
        self, weights: Any, name: str, branches: Sequence[Known], seen: Any, scanned: Mapping[str, Any]
    ) -> list[Any]:
        step = self._bodies[name].step
        outputs = []
        for known in branches:
            table = [jax.lax.dynamic_index_in_dim(v, scanned["place"], keepdims=False) for v in known.table]
            present = replace(known, table=table, timestep=scanned["timestep"], sample=seen)
            outputs.append(self._units[name, "step"](weights, present.feeds(step))[0])
        return outputs
