"""What a model predicts, as a change of basis.

With x = alpha x0 + sigma eps, every usual prediction is m = p x0 + q eps:

    epsilon (1: q)          p, q = 0, 1
    sample                  p, q = 1, 0
    v_prediction            p, q = -sigma, alpha, both over sqrt(alpha^2 + sigma^2)  (Salimans and Ho, 2022)
    flow_prediction         p, q = -1, 1                                            (Lipman et al., 2023)

so that (x, m) and (x0, eps) determine each other wherever alpha q - sigma p is not 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.program.rows import Floats, SymbolRows

if TYPE_CHECKING:
    from graphopt.program.schedule import Schedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
# How far a sample of known image and noise may be from what the levels say.
FIT = 1e-4
# A prediction from which x0 and eps are recovered with an error this much larger is said not to determine them.
WORST_CONDITION = 1e12


def clean_and_noise(prediction_type: str, signal: Floats, sigma: Floats) -> Floats:
    """(R, 2, 2): the rows (x0, eps) as coefficients on (x, m); not finite where they are not determined."""
    p, q = _prediction(prediction_type, signal, sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / (signal * q - sigma * p)
        return np.stack([np.stack([q, -sigma], -1), np.stack([-p, signal], -1)], -2) * inverse[:, None, None]


def _prediction(prediction_type: str, signal: Floats, sigma: Floats) -> tuple[Floats, Floats]:
    """(p, q) of m = p x0 + q eps, each (R,)."""
    zero, one, norm = np.zeros_like(signal), np.ones_like(signal), np.hypot(signal, sigma)
    return {
        "epsilon": (zero, one),
        "sample": (one, zero),
        "v_prediction": (-sigma / norm, signal / norm),
        "flow_prediction": (-one, one),
    }[prediction_type]


def tensors_of_a_call(prediction_type: str, signal: Floats | None, sigma: Floats | None) -> dict[str, Floats]:
    """x0 and eps of a call as (R, 2) coefficients on (x, m); none if the prediction is a scheduler's own."""
    if signal is None or sigma is None or prediction_type not in PREDICTION_TYPES:
        return {}
    both = clean_and_noise(prediction_type, signal, sigma)
    return {"x0": both[:, 0], "eps": both[:, 1]}


def levels_fit(rows: SymbolRows, prediction_type: str, signal: Floats, sigma: Floats) -> bool:
    """Whether the levels are the scheduler's: with a perfect model, an image stays where they say.

    Followed are the effect of an image x0 and, up to the first row with noise of its own, of the initial noise.
    """
    if prediction_type not in PREDICTION_TYPES:
        return False
    p, q = _prediction(prediction_type, signal, sigma)
    values = np.zeros((rows.symbols, 2))  # of (x0, eps) = (1, 0) and (0, 1)
    values[rows.model] = np.stack([p, q], axis=1)
    values[rows.sample[0]] = signal[0], sigma[0]
    noisy = False
    for j in range(rows.calls - 1):
        if rows.clip[j] >= 0:
            values[rows.clip[j]] = rows.clip_arguments[j] @ values
        reached = rows.outputs[j] @ values
        noisy |= bool(rows.outputs[j, list(rows.noise[j])].any())
        expected = np.array([signal[j + 1], sigma[j + 1]])
        off = np.abs(reached - expected) > FIT * np.abs(expected).max()
        if off[0] or (off[1] and not noisy):
            return False
        values[rows.sample[j + 1]] = expected
    return True


def conversion(schedule: Schedule, prediction_type: str) -> tuple[Floats, Floats]:
    """(u, w), each (R,), of old m = u x + w new m.

    Raises:
        UnsupportedError: an unknown type, no signal and noise levels, or a row that the new type leaves undetermined.
    """
    for name in (prediction_type, schedule.prediction_type):
        if name not in PREDICTION_TYPES:
            raise UnsupportedError(
                f"{schedule.source}: prediction type {name!r} cannot be converted; "
                f"known are {', '.join(PREDICTION_TYPES)}."
            )
    if schedule.signal is None or schedule.sigma is None:
        raise UnsupportedError(
            f"{schedule.source}: how much signal and noise its sample holds is not known (the scheduler has no "
            "add_noise, or one that does not fit its steps), so predictions cannot be converted."
        )
    if prediction_type == schedule.prediction_type:
        return np.zeros(len(schedule)), np.ones(len(schedule))
    both = clean_and_noise(prediction_type, schedule.signal, schedule.sigma)
    p, q = _prediction(schedule.prediction_type, schedule.signal, schedule.sigma)
    of_sample = p * both[:, 0, 0] + q * both[:, 1, 0]
    of_model = p * both[:, 0, 1] + q * both[:, 1, 1]
    undetermined = ~np.isfinite(of_sample + of_model) | (np.abs(of_sample) + np.abs(of_model) > WORST_CONDITION)
    if undetermined.any():
        row = int(np.flatnonzero(undetermined)[0])
        raise UnsupportedError(
            f"{schedule.source}, row {row}: with signal {schedule.signal[row]:g} and noise {schedule.sigma[row]:g} a "
            f"{prediction_type} prediction does not determine {schedule.prediction_type}; start at a later row or "
            "use v_prediction."
        )
    return of_sample, of_model
