"""Tables that depend on the schedule alone: evaluated once, when a program is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backends.ort_session import open_session
from graphopt.backends.ort_settings import Settings
from graphopt.backends.program_rows import called_bodies, calling_rows
from graphopt.ir.weights import Array
from graphopt.program.body import Body
from graphopt.program.program import Program
from graphopt.program.runner import timestep_table

LARGEST = 64 << 20
"""Bytes up to which such a table is stored; a larger one is evaluated in every request."""


def constant_tables(
    program: Program, models: Mapping[tuple[str, str], ir.Model], settings: Settings
) -> dict[str, list[Array]]:
    """The results of every table that reads nothing but the timestep, by body: [rows that call it, ...] each.

    Args:
        program: a program whose graphs are ONNX.
        models: its graphs, by body and unit name.
        settings: of the session that evaluates them, so that kernels are those of the program.
    """
    found = {}
    for name, body in called_bodies(program).items():
        if body.table is None or any(feed.kind != "timestep" for feed in body.table.feeds):
            continue
        stacked = _tabulated(program, name, body, models[name, "table"], settings)
        if sum(array.nbytes for array in stacked) <= LARGEST:
            found[name] = stacked
    return found


def _tabulated(program: Program, name: str, body: Body, model: ir.Model, settings: Settings) -> list[Array]:
    """The results of one table; its session, and the weights with it, live no longer than this call."""
    session = open_session(model, settings)
    times = timestep_table(program, calling_rows(program, name))
    if body.batched:
        return _evaluate(session, times)
    return [np.stack(column) for column in zip(*(_evaluate(session, t) for t in times), strict=True)]


def _evaluate(session: Any, timestep: Array) -> list[Array]:
    feeds = {argument.name: np.asarray(timestep) for argument in session.get_inputs()}
    return [np.asarray(result) for result in session.run(None, feeds)]
