"""The end-to-end check: the whole model before and after, judged against the model's own sensitivity.

Deep models amplify rounding; two correct compilations of one model may differ by 1e-3. So the yardstick is measured
on the original: what perturbing its inputs by one unit of rounding does and, for ONNX, what the runtime's own
optimisations do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import ModelError, VerificationError
from graphopt.ir.graph import TensorType
from graphopt.ir.model import Model
from graphopt.ir.weights import FLOATS, Array
from graphopt.verify.compare import EPS
from graphopt.verify.execute import CannotRun, arrays_in, model_runner
from graphopt.verify.floats import draw_float, shake
from graphopt.verify.inputs import draw_input

FACTOR = 8.0
"""How far beyond the model's own sensitivity a result may be."""
_FLOOR = 64.0
"""Units of rounding that are always allowed."""
_CEILING = 2.0**-7
"""Share of an output's range that these units may be: of bfloat16 they would be half of it, and no error too large."""
FREE_SIZE = 2
"""Size of symbolic dimensions when no example inputs are given."""


@dataclass(frozen=True)
class Verdict:
    """Largest error of any output relative to its largest element, and what was allowed."""

    error: float
    allowed: float
    reason: str = ""
    unjudged: tuple[int, ...] = ()
    """Outputs of which nothing is said: the original's are NaN throughout; or they differ, and rounding alone changes
    them in a way that no error measures, such as integers."""

    @property
    def ok(self) -> bool:
        return not self.reason and self.error <= self.allowed

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        text = f"largest error {self.error:.1e} of the output's range, allowed {self.allowed:.1e}"
        if not self.unjudged:
            return text
        positions = ", ".join(map(str, self.unjudged))
        return f"{text}; not judged: output {positions} (NaN throughout, or rounding alone changes it beyond measure)"


class WholeCheck:
    """Runs the original once; `compare` then judges any number of candidates."""

    def __init__(self, original: Model, examples: Any = None, feeds: Sequence[Array] | None = None) -> None:
        """`feeds`, one array per input, replace what the model was traced with and the examples."""
        self.feeds = whole_feeds(original, examples) if feeds is None else list(feeds)
        try:
            run = model_runner(original)
            self.expected = run(self.feeds)
        except CannotRun as error:
            raise VerificationError(
                f"the original cannot be run end to end: {error}. Pass example_inputs that it accepts, or use "
                "verify='match', which does not run the whole model"
            ) from error
        moved = self._movements(original, run)
        self.unstable = [i for i, movement in enumerate(moved) if movement == float("inf")]
        """Outputs that have no yardstick: rounding alone changes integers, or where NaN is."""
        self.allowed = FACTOR * max([self._unit(), *(m for m in moved if m < float("inf"))])

    def _unit(self) -> float:
        names = (array.dtype.name for output in self.expected for array in arrays_in(output))
        return always_allowed(max((EPS[name] for name in names if name in FLOATS), default=0.0))

    def _movements(self, original: Model, run: Any) -> list[float]:
        """How far rounding alone moves each output."""
        rng = np.random.default_rng(0)
        others = [run([_moved(feed, rng) for feed in self.feeds])]
        if original.storage == "onnx":
            others.append(model_runner(original, optimised=True)(self.feeds))
        return [max(distance([e], [o[i]]) for o in others) for i, e in enumerate(self.expected)]

    def compare(self, candidate: Model) -> Verdict:
        try:
            got = model_runner(candidate)(self.feeds)
        except CannotRun as error:
            return Verdict(float("inf"), self.allowed, f"what came out cannot be run: {error}")
        return judged(self.expected, got, self.allowed, self.unstable)


def _moved(feed: Any, rng: np.random.Generator) -> Any:
    """`feed` with every number in its arrays moved by one unit of rounding."""
    if isinstance(feed, list):
        return [_moved(element, rng) for element in feed]
    if not isinstance(feed, np.ndarray):
        return feed
    return shake(feed, EPS.get(feed.dtype.name, 0.0), rng).astype(feed.dtype)


def always_allowed(eps: float) -> float:
    """What is allowed of a model with this unit of rounding, times FACTOR, whatever its own sensitivity."""
    return min(_FLOOR * eps, _CEILING)


def judged(expected: Sequence[Array], got: Sequence[Array], allowed: float, unstable: Collection[int]) -> Verdict:
    """The verdict on `got`; of the outputs at the positions `unstable` nothing is said unless they are equal, and of
    those that are NaN throughout never."""
    if len(expected) != len(got):
        return Verdict(float("inf"), allowed)
    errors = [distance([a], [b]) for a, b in zip(expected, got, strict=True)]
    left_out = {i for i in unstable if errors[i] > 0.0 and expected[i].dtype == got[i].dtype}
    judged_on = [e for i, e in enumerate(errors) if i not in left_out]
    nothing = {i for i, output in enumerate(expected) if errors[i] == 0.0 and _is_nan_throughout(output)}
    return Verdict(max(judged_on, default=0.0), allowed, unjudged=tuple(sorted(left_out | nothing)))


def _is_nan_throughout(output: Array) -> bool:
    """Whether `output` is all NaN, which is also what comes of most mistakes."""
    arrays = [array for array in arrays_in(output) if array.dtype.name in FLOATS and array.size]
    return bool(arrays) and all(np.isnan(array.astype(np.float64)).all() for array in arrays)


def distance(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Largest difference of any output relative to its largest finite element; inf if shapes, dtypes, integers, NaN or
    infinities differ."""
    ours, theirs = ([array for output in outputs for array in arrays_in(output)] for outputs in (expected, got))
    if len(expected) != len(got) or len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.dtype.name not in FLOATS:
            if not np.array_equal(a, b):
                return float("inf")
            continue
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.isfinite(y[finite]).all():
            return float("inf")
        if finite.any():
            scale = float(np.max(np.abs(x[finite]))) or 1.0
            worst = max(worst, float(np.max(np.abs(x[finite] - y[finite]))) / scale)
    return worst


def compare_conversion(model: Model, converted: Model) -> Verdict:
    """What `converted`, which says `model` in another storage, computes beside it. The inputs are those that the model
    was traced with, but for floats, which are drawn: users trace with zeros, and zeros hide mistakes.

    Raises:
        VerificationError: the model cannot be run with these inputs.
        ModelError: none can be made for it.
    """
    rng = np.random.default_rng(0)
    feeds = [
        draw_float(rng, feed.shape, feed.dtype.name, "normal") if feed.dtype.name in FLOATS else feed
        for feed in whole_feeds(model)
    ]
    return WholeCheck(model, feeds=feeds).compare(converted)


def whole_feeds(model: Model, examples: Any = None) -> list[Array]:
    """Arrays for the inputs of `model`: those that it was traced with, or for an ONNX model the examples, by name
    or in order; without either, seeded data of the inputs' types.

    Raises:
        ModelError: the examples do not fit the inputs.
    """
    graph = model.main
    inputs = graph.inputs()
    if (traced := model.examples()) is not None:
        return list(traced)
    if examples is not None and graph.storage == "onnx":
        return _given(examples, {graph.name(v): _is_tensor(v) for v in inputs})
    rng = np.random.default_rng(0)
    return [_draw(rng, graph.name(v), graph.type(v)) for v in inputs]


def _given(examples: Any, inputs: Mapping[str, bool]) -> list[Any]:
    """`inputs`: their names, and whether each is a tensor."""
    if not isinstance(examples, Mapping | Sequence):
        examples = [examples]
    given = examples if isinstance(examples, Mapping) else dict(zip(inputs, examples, strict=False))
    if missing := [n for n in inputs if n not in given]:
        raise ModelError(f"example inputs lack {missing[0]!r}; the model's inputs are {list(inputs)}")
    return [np.asarray(given[n]) if tensor else _as_fed(given[n]) for n, tensor in inputs.items()]


def _is_tensor(value: Any) -> bool:
    """Of an ONNX model's input: no sequence, no optional and no map."""
    import onnx_ir

    return isinstance(value.type, onnx_ir.TensorType)


def _as_fed(given: Any) -> Any:
    """What is given for a sequence, an optional or a map, as onnxruntime takes it."""
    if isinstance(given, list | tuple):
        return [_as_fed(element) for element in given]
    return given if given is None or isinstance(given, Mapping) else np.asarray(given)


def _draw(rng: np.random.Generator, name: str, type_: TensorType | None) -> Array:
    if type_ is None or type_.shape is None:
        why = "its shape is unknown" if type_ is not None else "it is not known to be a tensor of numbers"
        raise ModelError(f"no data can be drawn for input {name!r}: {why}; pass example_inputs={{{name!r}: ..., ...}}")
    shape = tuple(d if isinstance(d, int) else FREE_SIZE for d in type_.shape)
    return draw_input(rng, TensorType(type_.dtype, shape))
