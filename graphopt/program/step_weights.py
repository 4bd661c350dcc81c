"""How much each row of a schedule counts when a denoiser is approximated."""

from __future__ import annotations

import numpy as np

from graphopt.program.rows import Floats
from graphopt.program.schedule import Schedule


def step_weights(schedule: Schedule, kind: str) -> Floats:
    """A weight for each row (R,), of mean 1: "uniform", or "coefficient" for the absolute `final_coefficients`."""
    if kind == "uniform":
        return np.ones(len(schedule))
    found = np.abs(final_coefficients(schedule))
    total = found.sum()
    return found * len(found) / total if total > 0 else np.ones(len(found))


def final_coefficients(schedule: Schedule) -> Floats:
    """The coefficient with which each row's prediction enters the final sample (R,), the other predictions being what
    they are: d S_R[0] / d m_j. Clamps are taken to be inactive.

    S_{j+1} = A_j S_j + b_j m_j gives e_0^T A_{R-1} ... A_{j+1} b_j. What a prediction changes in the later ones is left
    out, so this is the error of the sample for errors of the predictions that are small and independent.
    """
    found = np.zeros(len(schedule))
    reader = np.eye(schedule.live_tensors)[0]
    for row in reversed(range(len(schedule))):
        transition, gain = schedule.transition[row], schedule.model_gain[row]
        if schedule.clip is not None:
            through = schedule.clip.gain[row]
            transition = transition + np.outer(through, schedule.clip.state[row])
            gain = gain + through * schedule.clip.model[row]
        found[row] = reader @ gain
        reader = transition.T @ reader
    return found
