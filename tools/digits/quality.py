"""How good samples of digits are: Frechet distance to real digits, and how many are the digit that was asked for.

The Frechet distance is taken in the 48 features of the shipped classifier, against 1,000 real digits that no model was
trained on. It grows as samples get fewer (as every Frechet distance does): compare only equal numbers of samples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from graphopt.tools.digits.models import WEIGHTS, DigitClassifier, load_classifier
from graphopt.verify.frechet import Moments, frechet, moments

Floats = npt.NDArray[np.floating]


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


def real_moments() -> Moments:
    """Moments of the 1,000 held-out real digits, as shipped."""
    tensors = load_file(WEIGHTS / "reference.safetensors")
    return Moments(tensors["mean"], tensors["covariance"])


def save_moments(values: Moments, path: Path) -> None:
    """Write `values` for `real_moments`."""
    save_file({"mean": values.mean, "covariance": values.covariance}, path)


def _clipped(images: Floats) -> torch.Tensor:
    return torch.from_numpy(np.clip(np.asarray(images, dtype=np.float32), -1, 1))
