"""What was seen of a scheduler: every value it returned, as coefficients on the symbols it had been handed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SymbolRows:
    """R denoiser calls over n symbols; a symbol is one column.

    A call hands the scheduler the symbols x_j (the sample) and m_j (the model's output), and meets the symbols
    z_{j,i} (noise it draws) and c_j (the result of a clamp). The sample x_{j+1} handed to the next call is a
    symbol of its own and not the output of call j; `substitution` puts one in the other's place.
    """

    outputs: Floats  # (R, n): coefficients of the sample that call j returned
    clip_arguments: Floats  # (R, n): coefficients of what was clamped in call j, zero where nothing was
    clip_low: Floats  # (R,)
    clip_high: Floats  # (R,)
    sample: Ints  # (R,): the column of x_j
    model: Ints  # (R,): the column of m_j
    clip: Ints  # (R,): the column of c_j, -1 where nothing was clamped
    noise: tuple[tuple[int, ...], ...]  # (R,): the columns of the noise drawn in call j, in order
    initial_scale: float  # the standard deviation of x_0, for judging what matters

    @property
    def calls(self) -> int:
        return len(self.sample)

    @property
    def symbols(self) -> int:
        return int(self.outputs.shape[1])

    def row_of_symbol(self) -> Ints:
        """The call in which each symbol first appears, shape (n,)."""
        rows = np.zeros(self.symbols, dtype=np.int64)
        for j in range(self.calls):
            rows[[self.sample[j], self.model[j], *self.noise[j]]] = j
            if self.clip[j] >= 0:
                rows[self.clip[j]] = j
        return rows

    def substitution(self) -> Floats:
        """(n, n): each symbol as a functional of the inputs (x_0, m, z, c), x_j being what call j-1 returned.

        x_0 is measured in units of its standard deviation.
        """
        inputs = np.eye(self.symbols)
        inputs[self.sample] = 0
        inputs[self.sample[0], self.sample[0]] = self.initial_scale
        for j in range(self.calls - 1):
            inputs[self.sample[j + 1]] = applied(self.outputs[j : j + 1], inputs)[0]
        return inputs

    def sample_at(self, j: int, inputs: Floats) -> Floats:
        """x_j as a functional of the inputs; x_R is what the last call returned."""
        functional: Floats = inputs[self.sample[j]] if j < self.calls else applied(self.outputs[-1:], inputs)[0]
        return functional


@dataclass(frozen=True)
class Need:
    """What must be known before a call, as functionals of the inputs."""

    sample: Floats  # (n,): x_j
    rest: Floats  # (rank - 1, n): orthonormal, and orthogonal to the sample
    weighted: Floats  # (few, n): what is used later, in units of the samples that it changes


@dataclass(frozen=True)
class Cut:
    """The state before a call: its tensors as functionals of the inputs."""

    names: tuple[str, ...]
    basis: Floats  # (live, n)


def applied(coefficients: Floats, inputs: Floats) -> Floats:
    """coefficients @ inputs for (few, n) coefficients that are mostly zero."""
    columns = np.flatnonzero(coefficients.any(axis=0))
    functionals: Floats = coefficients[:, columns] @ inputs[columns]
    return functionals


def without(functionals: Floats, basis: Floats) -> Floats:
    """The part of the functionals that is orthogonal to the basis (which may be dependent)."""
    size = np.linalg.norm(basis, axis=1)
    basis = basis[size > 0] / size[size > 0, None]
    if not len(basis):
        return functionals
    _, values, directions = np.linalg.svd(basis, full_matrices=False)
    directions = directions[values > 1e-13 * values[0]]
    for _ in range(2):  # once more against cancellation
        functionals = functionals - functionals @ directions.T @ directions
    return functionals
