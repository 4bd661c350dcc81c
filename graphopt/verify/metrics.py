"""How far a model's outputs are from those of the original, in one number: what a budget is stated in.

A metric is called as `metric(reference, candidate)`. Both are lists with an entry for each batch, and that is the list
of the output arrays. It returns 0 for equal outputs, and more the worse they are. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.errors import PipelineError
from graphopt.ir.weights import FLOATS, Array
from graphopt.verify.frechet import frechet, moments

Outputs: TypeAlias = Sequence[Sequence[Array]]
"""By batch, then by output."""
Metric: TypeAlias = Callable[[Outputs, Outputs], float]
Floats: TypeAlias = npt.NDArray[np.float64]


def relative_error(reference: Outputs, candidate: Outputs) -> float:
    """Root mean square of the difference by that of the reference, over all elements of all outputs; inf if the
    reference is 0 and the candidate is not."""
    return float(np.sqrt(trajectory_mse(reference, candidate)))


def trajectory_mse(reference: Outputs, candidate: Outputs) -> float:
    """Mean square of the difference by that of the reference, over all elements of all outputs: for a sampling
    program, of the final samples from the same noise."""
    apart = size = 0.0
    for a, b in _pairs(reference, candidate):
        both = np.isfinite(a)
        apart += float(np.square(a[both] - b[both]).sum())
        size += float(np.square(a[both]).sum())
    if apart == 0.0:
        return 0.0
    return apart / size if size > 0.0 else float("inf")


def cosine(reference: Outputs, candidate: Outputs) -> float:
    """1 - the mean cosine between reference and candidate, over the samples (first axis) of all outputs.

    With unit vectors u and v that is |u - v|^2 / 2, which is exact where they are nearly equal. Zero is at distance 0
    from zero and at distance 1 from everything else.
    """
    distances = []
    for a, b in _pairs(reference, candidate):
        if a.size == 0:
            continue
        u, v = (_unit(x.reshape(x.shape[0] if x.ndim else 1, -1)) for x in (a, b))
        one_is_zero = u.any(axis=1) != v.any(axis=1)
        distances.append(np.where(one_is_zero, 1.0, np.square(u - v).sum(axis=1) / 2))
    return _mean(distances)


def kl(reference: Outputs, candidate: Outputs) -> float:
    """The mean of KL(softmax(reference) || softmax(candidate)) in nats over the last axis of all outputs, which are
    logits."""
    return _mean([_divergence(_rows(a), _rows(b)) for a, b in _pairs(reference, candidate) if a.size])


def top_1(reference: Outputs, candidate: Outputs) -> float:
    """The share of all rows along the last axis of all outputs whose largest element is at another place."""
    disagree = [_rows(a).argmax(-1) != _rows(b).argmax(-1) for a, b in _pairs(reference, candidate) if a.size]
    return _mean(disagree)


class Frechet:
    """The Frechet distance between features of the reference outputs and of the candidate's.

    It compares two sets of samples and not one sample with another, so it forgives what leaves the distribution as it
    was. It falls as samples become more: compare only equal numbers of them, and give it many more than `features` has
    columns.
    """

    name = "frechet"

    def __init__(self, features: Callable[[Array], Any]) -> None:
        """
        Args:
            features: called with the first output of each batch, (n, ...); returns their features (n, d).
        """
        if not callable(features):
            raise PipelineError(f"features={features!r}: expected a callable that makes (n, d) of an output (n, ...)")
        self.features = features

    def __call__(self, reference: Outputs, candidate: Outputs) -> float:
        ours, theirs = self._all(reference), self._all(candidate)
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            return float("nan")
        return max(0.0, frechet(moments(ours), moments(theirs)))

    def _all(self, outputs: Outputs) -> Floats:
        parts = [np.asarray(self.features(batch[0]), dtype=np.float64) for batch in outputs]
        if any(part.ndim != 2 for part in parts) or sum(map(len, parts)) < 2:
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise PipelineError(
                "metric 'frechet': expected features (n, d) of two samples or more, got shapes "
                f"{shapes}; its feature function returns one row for each sample, and calibration gives the samples"
            )
        return np.concatenate(parts)


METRICS: Mapping[str, Metric] = {
    "relative-error": relative_error,
    "cosine": cosine,
    "kl": kl,
    "top-1": top_1,
    "trajectory-mse": trajectory_mse,
}
"""The metrics that have a name."""


def incomparable(reference: Outputs, candidate: Outputs) -> str | None:
    """Why no metric is to be asked: other counts or shapes, or NaN and infinities at other places."""
    if [len(batch) for batch in reference] != [len(batch) for batch in candidate]:
        return "another number of outputs"
    for a, b in _all_pairs(reference, candidate):
        if a.shape != b.shape:
            return f"an output of shape {list(a.shape)} has become {list(b.shape)}"
        x, y = (v.astype(np.float64) if v.dtype.name in FLOATS else v for v in (a, b))
        if not np.array_equal(x[~_finite(x)], y[~_finite(x)], equal_nan=True) or not np.all(_finite(y)[_finite(x)]):
            return "NaN or infinities at other places"
    return None


def unmeasurable(reference: Outputs) -> str | None:
    """Why no metric can tell another model from that of `reference`: an output is NaN throughout, or there are no
    numbers. NaN at the same places counts as equal, so whatever came of the model would be."""
    numbers = 0
    for position, batches in enumerate(zip(*reference, strict=True)):
        finite = sum(int(_finite(v.astype(np.float64) if v.dtype.name in FLOATS else v).sum()) for v in batches)
        if not finite and any(np.isnan(v.astype(np.float64)).any() for v in batches if v.dtype.name in FLOATS):
            return f"output {position} of the original is NaN throughout"
        numbers += finite
    return None if numbers else "the outputs of the original hold no numbers"


def _finite(x: Array) -> npt.NDArray[np.bool_]:
    """Where `x` is a number."""
    found: npt.NDArray[np.bool_] = np.isfinite(x) if x.dtype.kind in "fc" else np.ones(x.shape, dtype=bool)
    return found


def _all_pairs(reference: Outputs, candidate: Outputs) -> Iterator[tuple[Array, Array]]:
    for ours, theirs in zip(reference, candidate, strict=True):
        yield from zip(ours, theirs, strict=True)


def _pairs(reference: Outputs, candidate: Outputs) -> Iterator[tuple[Floats, Floats]]:
    """Every output of every batch beside the candidate's, in float64."""
    for a, b in _all_pairs(reference, candidate):
        yield a.astype(np.float64), b.astype(np.float64)


def _unit(rows: Floats) -> Floats:
    """Rows of length 1; rows of zeros as they are."""
    scaled = rows / _or_one(np.abs(rows).max(axis=1, keepdims=True, initial=0.0))
    unit: Floats = scaled / _or_one(np.sqrt(np.square(scaled).sum(axis=1, keepdims=True)))
    return unit


def _or_one(x: Floats) -> Floats:
    return np.where(x == 0.0, 1.0, x)


def _rows(x: Floats) -> Floats:
    """[..., n] as [rows, n]; a scalar is a row of one."""
    return x.reshape(-1, x.shape[-1]) if x.ndim else x.reshape(1, 1)


def _divergence(a: Floats, b: Floats) -> Floats:
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    with np.errstate(invalid="ignore"):
        terms = np.where(log_p == -np.inf, 0.0, np.exp(log_p) * (log_p - log_q))
    divergence: Floats = np.maximum(terms.sum(axis=-1), 0.0)
    return divergence


def _log_softmax(x: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
        found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _mean(parts: Sequence[Array]) -> float:
    """The mean of all elements; 0 if there are none, since then nothing differs."""
    everything = np.concatenate([np.ravel(part) for part in parts]) if parts else np.zeros(0)
    return float(everything.mean()) if everything.size else 0.0
