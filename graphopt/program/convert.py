"""A program's graphs in the storage of another backend, each compared with what it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model
from graphopt.ir.weights import FLOATS, Array
from graphopt.program.program import Program
from graphopt.verify.floats import draw_float
from graphopt.verify.whole import WholeCheck, whole_feeds


def convert_program(program: Program, target: str) -> Program:
    """`program` with its graphs as the backend `target` runs them; itself if they are already.

    Raises:
        UnsupportedError: a graph cannot be said there, or does not compute the same there.
    """
    from graphopt.compiler import make_backend

    backend = make_backend(target)

    def change(name: str, model: Model) -> Model:
        converted = backend.convert(model)
        if converted is not model:
            verdict = WholeCheck(model, feeds=_feeds(model)).compare(converted)
            if not verdict.ok:
                raise UnsupportedError(
                    f"{name} does not compute the same after its conversion from {model.storage} to "
                    f"{converted.storage}: {verdict}"
                )
        return converted

    return program.map_models(change)


def _feeds(model: Model) -> Sequence[Array]:
    """What the model was traced with, but for its floats, which are drawn: users trace with zeros, and zeros hide
    mistakes."""
    rng = np.random.default_rng(0)
    return [
        draw_float(rng, feed.shape, feed.dtype.name, "normal") if feed.dtype.name in FLOATS else feed
        for feed in whole_feeds(model)
    ]
