"""How good samples of digits are: Frechet distance to real digits, and how many are the digit that was asked for.

The Frechet distance is taken in the 48 features of the shipped classifier, against 1,000 real digits that no model was
trained on. It grows as samples get fewer (as every Frechet distance does): compare only equal numbers of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from graphopt.tools.digits.models import WEIGHTS, DigitClassifier, load_classifier

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) of features, float64."""

    mean: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float64]


def frechet_distance(
    images: Floats, *, reference: Moments | None = None, classifier: DigitClassifier | None = None
) -> float:
    """The Frechet distance of `images` (n, 1, 16, 16) in [-1, 1] to real digits; values outside are clipped."""
    found = moments(class_features(images, classifier))
    return frechet(found, reference or real_moments())


def accuracy(images: Floats, labels: npt.NDArray[np.integer], classifier: DigitClassifier | None = None) -> float:
    """The share of `images` (n, 1, 16, 16) that the classifier takes for the digit in `labels` (n,)."""
    model = classifier or load_classifier()
    with torch.no_grad():
        found = model(_clipped(images)).argmax(-1).numpy()
    return float((found == labels).mean())


def class_features(images: Floats, classifier: DigitClassifier | None = None) -> npt.NDArray[np.float64]:
    """The classifier's features of `images` (n, 1, 16, 16), clipped to [-1, 1]: (n, 48)."""
    model = classifier or load_classifier()
    with torch.no_grad():
        features: npt.NDArray[np.float64] = model.features(_clipped(images)).double().numpy()
    return features


def moments(features: Floats) -> Moments:
    """Mean and unbiased covariance of `features` (n, d).

    Raises:
        ValueError: fewer than two rows, or values that are not finite.
    """
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"moments need a matrix of two rows or more, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("features must be finite")
    mean = values.mean(0)
    centred = values - mean
    return Moments(mean, centred.T @ centred / (len(values) - 1))


def frechet(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared 2-Wasserstein distance of two normal distributions.

    The trace of (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): real, and exact to rounding
    where a covariance is singular.
    """
    cross = np.linalg.svd(_root(one.covariance) @ _root(other.covariance), compute_uv=False).sum()
    apart = np.square(one.mean - other.mean).sum()
    return float(apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)


def real_moments() -> Moments:
    """Moments of the 1,000 held-out real digits, as shipped."""
    tensors = load_file(WEIGHTS / "reference.safetensors")
    return Moments(tensors["mean"], tensors["covariance"])


def save_moments(values: Moments, path: Path) -> None:
    """Write `values` for `real_moments`."""
    save_file({"mean": values.mean, "covariance": values.covariance}, path)


def _root(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The symmetric square root; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    root: npt.NDArray[np.float64] = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def _clipped(images: Floats) -> torch.Tensor:
    return torch.from_numpy(np.clip(np.asarray(images, dtype=np.float32), -1, 1))
