"""Two models run on numbers: in float64 to refute, on the target's runtime where there is nothing to prove."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.verify.algebra.running import Running
from graphopt.verify.algebra.tensor import Undecided
from graphopt.verify.compare import EPS
from graphopt.verify.execute import CannotRun, _session, arrays_in, guard_file, model_runner
from graphopt.verify.floats import draw_float
from graphopt.verify.pairs import Pair
from graphopt.verify.whole import Verdict, WholeCheck, judged

DIFFERS = 1e-6
"""Relative to the largest element of an output: what differs by more in float64 is refuted."""
UNITS = 64.0
"""Units of rounding of the narrowest dtype by which stored weights may move a result."""
DRAWS = 2
"""Inputs that must all refute: one alone may be where a step of a rounding function lies."""
CLOSE = 1e-4
"""Relative to the largest element: how close outputs must be that are compared on the runtime."""


def refute(
    pair: Pair, sizes: Mapping[str, tuple[int, ...]], feeds: Mapping[str, Array], seed: int
) -> tuple[str, dict[str, Array]] | None:
    """How the models differ in float64, and for which inputs; None if they do not, or cannot be run so."""
    rng = np.random.default_rng(seed)
    found: tuple[str, dict[str, Array]] | None = None
    for _ in range(DRAWS):
        given = {
            n: draw_float(rng, sizes[n], t.dtype, "normal") if t.dtype in FLOATS else feeds[n]
            for n, t in pair.inputs.items()
        }
        reason = _float64_difference(pair, given)
        if reason is None:
            return None
        found = found or (reason, given)
    return found


def _float64_difference(pair: Pair, feeds: Mapping[str, Array]) -> str | None:
    try:
        (before, narrow), (after, other) = (_evaluated(pair, m, feeds) for m in (pair.before, pair.after))
    except (Undecided, MemoryError):
        return None
    allowed = max(DIFFERS, *(UNITS * e for e in (narrow, other) if e > EPS["float32"]), 0.0)
    for name, a, b in zip(pair.outputs, before, after, strict=True):
        if a.shape != b.shape:
            return f"in float64 output {name!r} has the shape {list(a.shape)} and then {list(b.shape)}"
        error = relative(a, b)
        if error > allowed:
            return f"in float64 output {name!r} differs by {error:.1e} of its largest element"
    return None


def _runs(pair: Pair, feeds: Mapping[str, Array]) -> bool:
    try:
        return all(_evaluated(pair, m, feeds) for m in (pair.before, pair.after))
    except (Undecided, MemoryError):
        return False


def _evaluated(pair: Pair, model: Any, feeds: Mapping[str, Array]) -> tuple[list[Array], float]:
    """The outputs in float64, and the unit of rounding of the narrowest float that the model holds."""
    run = Running(Float64(), _wide)
    for name, value in pair.values(model).items():
        feed, type_ = feeds[name], pair.inputs[name]
        run.give(value, feed.astype(np.float64) if type_.dtype in FLOATS else feed, type_)
        run.known.types[value] = type(type_)(type_.dtype, feed.shape)
    made = pair.results(model, run.run(model.main))
    if any(isinstance(r, tuple) for r in made):
        raise Undecided("sequences are not compared as numbers")
    results = [np.asarray(r) for r in made]
    return results, max((EPS.get(t.dtype, 0.0) for t in run.known.types.values()), default=0.0)


def _wide(data: TensorRef) -> tuple[Array, bool]:
    return data.numpy().astype(np.float64), True


def relative(a: Array, b: Array) -> float:
    """The largest difference relative to the largest finite element of `a`; infinite if integers, texts, or the places
    of NaN and infinities, differ."""
    if a.dtype == b.dtype == object:  # Sequences and maps, or texts.
        ours, theirs = list(arrays_in(a)), list(arrays_in(b))
        if len(ours) == len(theirs) and (len(ours) != 1 or ours[0] is not a):
            return max((relative(x, y) for x, y in zip(ours, theirs, strict=True)), default=0.0)
    if not (a.dtype.kind in "fV" and b.dtype.kind in "fV"):  # V: the floats that numpy lacks
        return 0.0 if np.array_equal(a, b) else float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.max(np.abs(x[finite]))) or 1.0
    return float(np.max(np.abs(x[finite] - y[finite]))) / scale


def run_native(pair: Pair, model: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs of a model as the runtime computes them, in the order of `pair`. Raises CannotRun."""
    try:
        results = model_runner(model)([feeds[model.main.name(v)] for v in model.main.inputs()])
    except (CannotRun, OSError, ValueError, RuntimeError) as error:
        if (raw := _as_bytes(model, feeds)) is None:
            raise CannotRun(str(error)) from error
        results = raw
    return [np.asarray(r) for r in pair.results(model, results)]


def _as_bytes(model: Any, feeds: Mapping[str, Array]) -> list[Array] | None:
    """Outputs of dtypes that numpy lacks, as the bytes that the runtime holds; None if it cannot run the model."""
    from onnxruntime import OrtValue

    with tempfile.TemporaryDirectory() as folder:
        model.save(path := Path(folder) / "model.onnx")
        try:
            guard_file(path)
            session = _session(str(path))
            given = {i.name: OrtValue.ortvalue_from_numpy(feeds[i.name]) for i in session.get_inputs()}
            values = session.run_with_ort_values([o.name for o in session.get_outputs()], given)
        except Exception:  # noqa: BLE001  onnxruntime's errors have no common base
            return None
    if not all(v.is_tensor() for v in values):
        return None
    return [np.frombuffer(ctypes.string_at(v.data_ptr(), v.tensor_size_in_bytes()), np.uint8) for v in values]


def _declared(model: Any, name: str) -> str | None:
    type_ = next(model.main.type(v) for v in model.main.outputs() if model.main.name(v) == name)
    return None if type_ is None else str(type_.dtype)


def end_to_end(pair: Pair, feeds: Mapping[str, Array]) -> Verdict:
    """Both models on the runtime, judged against the first one's own sensitivity. Raises VerificationError if the first
    one cannot be run."""
    check = WholeCheck(pair.before, feeds=[feeds[pair.before.main.name(v)] for v in pair.before.main.inputs()])
    try:
        got = run_native(pair, pair.after, feeds)
    except CannotRun as error:
        return Verdict(float("inf"), check.allowed, f"the second model cannot be run: {error}")
    positions = pair.results(pair.before, range(len(check.expected)))
    unstable = [i for i, position in enumerate(positions) if position in check.unstable]
    return judged(pair.results(pair.before, check.expected), got, check.allowed, unstable)


def compare_executed(pair: Pair, feeds: Mapping[str, Array], names: Sequence[str]) -> str | None:
    """None if the outputs called `names` agree as the runtime computes them, or in float64 where it lacks a kernel;
    else how they differ."""
    results = []
    for model, which in ((pair.before, "first"), (pair.after, "second")):
        try:
            results.append(run_native(pair, model, feeds))
        except CannotRun as error:
            if (reason := _float64_difference(pair, feeds)) is None and _runs(pair, feeds):
                return None
            return reason or f"the runtime cannot run the {which} model: {error}"
    for name, a, b in zip(pair.outputs, *results, strict=True):
        if name not in names:
            continue
        declared = [_declared(m, name) for m in (pair.before, pair.after)]
        if declared[0] != declared[1]:
            return f"output {name!r} was {declared[0]} and becomes {declared[1]}"
        if a.dtype != b.dtype or a.shape != b.shape:
            return f"output {name!r} was {a.dtype}{list(a.shape)} and becomes {b.dtype}{list(b.shape)}"
        allowed = max(CLOSE, 2.0 * EPS.get(a.dtype.name, 0.0))
        if (difference := relative(a, b)) > allowed:
            return f"output {name!r}, which is the same for every input, differs by {difference:.1e} on the runtime"
    return None
