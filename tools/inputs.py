"""Makes model inputs from a description, the same ones every time.

A description maps input names to {"dtype", "shape", "gen", ...}. `gen` says how the values are made and which
further keys are read:

    normal          standard normal times `scale` (default 1)
    uniform         between `low` and `high`
    randint         integers from `low` to `high` - 1
    sorted_randint  the same, in ascending order (the graph that each node of a batch belongs to)
    edges           [2, E]: edges between `nodes` nodes, none of them from a node to itself
    zeros, ones     all 0, all 1
    const           all `value`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import GraphoptError
from graphopt.ir.weights import numpy_dtype

Array = npt.NDArray[Any]
InputSpec = Mapping[str, Any]
Generator = Callable[[np.random.Generator, tuple[int, ...], InputSpec], Array]


class InputSpecError(GraphoptError):
    """A description of an input that cannot be understood."""


def _edges(rng: np.random.Generator, shape: tuple[int, ...], spec: InputSpec) -> Array:
    nodes, count = spec["nodes"], shape[1]
    source = rng.integers(0, nodes, count)
    return np.stack([source, (source + rng.integers(1, nodes, count)) % nodes])


_GENERATORS: Mapping[str, Generator] = {
    "normal": lambda rng, shape, spec: rng.standard_normal(shape) * spec.get("scale", 1.0),
    "uniform": lambda rng, shape, spec: rng.uniform(spec["low"], spec["high"], shape),
    "randint": lambda rng, shape, spec: rng.integers(spec["low"], spec["high"], shape),
    "sorted_randint": lambda rng, shape, spec: np.sort(rng.integers(spec["low"], spec["high"], shape)),
    "edges": _edges,
    "zeros": lambda rng, shape, spec: np.zeros(shape),
    "ones": lambda rng, shape, spec: np.ones(shape),
    "const": lambda rng, shape, spec: np.full(shape, spec["value"]),
}


def make_inputs(specs: Mapping[str, InputSpec], seed: int = 0) -> dict[str, Array]:
    """The inputs that `specs` describes, drawn in its order from one generator seeded with `seed`.

    Raises:
        InputSpecError: an unknown `gen`, or a key that it needs is missing.
    """
    rng = np.random.default_rng(seed)
    return {name: _make(name, spec, rng) for name, spec in specs.items()}


def _make(name: str, spec: InputSpec, rng: np.random.Generator) -> Array:
    kind = str(spec.get("gen"))
    if kind not in _GENERATORS:
        raise InputSpecError(f"input {name!r}: gen is {kind!r}, expected one of {', '.join(_GENERATORS)}")
    try:
        values = _GENERATORS[kind](rng, tuple(spec["shape"]), spec)
        return np.asarray(values).astype(numpy_dtype(spec["dtype"]))
    except KeyError as missing:
        raise InputSpecError(f"input {name!r}: {kind!r} needs the key {missing}") from None
