"""How far outputs are from their reference, and whether that is within the manifest's tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.tools.manifest import Tolerance

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """The worst output of a model: its error divided by max|reference|, and whether all are close enough."""

    error: float
    equal: bool
    reason: str = ""


def run_plain(model: Path | bytes, feeds: Mapping[str, Array], *, optimise: bool = False) -> list[Array]:
    """The outputs of an ONNX file on onnxruntime's CPU provider, its optimisations off unless asked for."""
    return list(session(model, optimise=optimise).run(None, dict(feeds)))


def session(model: Path | bytes, *, optimise: bool, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU with a fixed number of threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def compare(outputs: Sequence[Array], references: Sequence[Array], tolerance: Tolerance) -> Comparison:
    """Compare outputs with references: floats within the tolerance, anything else exactly.

    NaN equals NaN and an infinity equals itself; at any other place they make the error infinite.
    """
    if len(outputs) != len(references):
        return Comparison(np.inf, False, f"{len(outputs)} outputs instead of {len(references)}")
    worst = Comparison(0.0, True)
    for position, (output, reference) in enumerate(zip(outputs, references, strict=True)):
        one = _compare_one(np.asarray(output), np.asarray(reference), tolerance)
        if not one.equal:
            return Comparison(one.error, False, f"output {position}: {one.reason}")
        worst = max(worst, one, key=lambda c: c.error)
    return worst


def _compare_one(output: Array, reference: Array, tolerance: Tolerance) -> Comparison:
    if (output.shape, output.dtype) != (reference.shape, reference.dtype):
        found, expected = (f"{x.dtype}{list(x.shape)}" for x in (output, reference))
        return Comparison(np.inf, False, f"{found} instead of {expected}")
    if not np.issubdtype(reference.dtype, np.floating):
        equal = bool(np.array_equal(output, reference))
        return Comparison(0.0 if equal else np.inf, equal, "" if equal else "differs")
    output, reference = output.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(reference)
    if not np.array_equal(output[~finite], reference[~finite], equal_nan=True):
        return Comparison(np.inf, False, "differs where the reference is not finite")
    error = float(np.abs(output[finite] - reference[finite]).max(initial=0.0))
    scale = float(np.abs(reference[finite]).max(initial=0.0))
    allowed = max(tolerance.atol, tolerance.rtol * scale)
    relative = error / scale if scale else error
    return Comparison(relative, error <= allowed, f"error {error:.2g}, allowed {allowed:.2g}")
