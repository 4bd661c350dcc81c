"""Costs in seconds: a layer and its chains, timed on the target one after the other, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.errors import GraphoptError
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import activations
from graphopt.passes.low_rank.candidates import Candidate, Choices
from graphopt.passes.low_rank.choice import steps
from graphopt.passes.low_rank.layers import node_called
from graphopt.passes.low_rank.splitting import write
from graphopt.pipeline.registry import backends

TIMED = 6
"""At most so many chains of a layer are timed, from along its hull of error against FLOPs."""
ROUNDS = 7
"""Each is run so often, in turns; the median counts."""
SHORTEST = 2e-3
"""Seconds that one round of a layer takes at least, by repetition."""


def timed(choices: Choices, model: Model, feeds: Sequence[list[Array]], target: str | None, min_gain: float) -> Choices:
    """`choices` with seconds for costs; chains that do not save `min_gain` of them are gone."""
    chains = [c for c in choices.candidates if c.exact] + [s.candidate for s in steps([choices])]
    if len(chains) > TIMED:
        chains = [chains[round(i * (len(chains) - 1) / (TIMED - 1))] for i in range(TIMED)]
    if not chains:
        return choices
    backend = target or {"onnx": "onnxruntime", "fx": "torch"}[model.storage]
    x = next(activations(model, [choices.layer.x], feeds[:1]))[0]
    try:
        runs = [_lowered(choices, model, candidate, backend, x) for candidate in (None, *chains)]
    except GraphoptError as error:
        return replace(choices, candidates=(), reason=f"{backend} cannot run it to be timed: {error}")
    dense, *seconds = _medians(runs)
    saving = [
        replace(chain, cost=took) for chain, took in zip(chains, seconds, strict=True) if took <= (1 - min_gain) * dense
    ]
    best = min(seconds) / dense
    reason = "" if saving else f"on {backend}, the fastest chain takes {best:.2f} of its time"
    return replace(choices, cost=dense, candidates=tuple(saving), reason=reason)


def _lowered(choices: Choices, model: Model, candidate: Candidate | None, backend: str, x: Array) -> Callable[[], Any]:
    found = backends().get(backend)
    layer = choices.layer
    part = model.extract([node_called(model.main, layer.name)], [layer.x], [layer.out])
    if candidate is not None:
        write(part.main, layer, candidate)
        part.refresh()
    run = (found() if isinstance(found, type) else found).lower(part)
    fed: Any = x
    if model.storage == "fx":
        from graphopt.ir.fx.tensors import to_torch

        fed = to_torch(np.ascontiguousarray(x))
    return lambda: run(fed)


def _medians(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Median seconds of each, run in turns."""
    for run in runs:
        run()
    repeat = max(1, round(SHORTEST / max(min(_seconds(run, 1) for run in runs), 1e-7)))
    rounds = [[_seconds(run, repeat) for run in runs] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], Any], repeat: int) -> float:
    started = time.perf_counter()
    for _ in range(repeat):
        run()
    return (time.perf_counter() - started) / repeat
