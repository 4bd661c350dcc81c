"""The state that lives between calls is the smallest one, and made of tensors with names where that serves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedule_cases import Case
from graphopt.errors import UnsupportedError
from graphopt.program.realise import Realisation, realise
from graphopt.program.rows import SymbolRows


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (Case("DDIM"), ("x",)),
        (Case("EulerAncestralDiscrete"), ("x",)),
        (Case("DPMSolverMultistep"), ("x", "x0[-1]")),
        (Case("DPMSolverMultistep", config={"solver_order": 3}), ("x", "x0[-1]", "x0[-2]")),
        (Case("DPMSolverMultistep", config={"prediction_type": "sample"}), ("x", "m[-1]")),
        (Case("UniPCMultistep"), ("x", "x0[-1]", "x0[-2]")),
        (Case("HeunDiscrete"), ("x", "m[-1]")),
        (Case("KDPM2Discrete"), ("x", "m[-1]")),
        (Case("DEISMultistep"), ("x", "m[-1]")),
        (Case("LMSDiscrete"), ("x", "m[-1]", "m[-2]", "m[-3]")),
        (Case("PNDM", config={"skip_prk_steps": True}), ("x", "m[-1]", "m[-2]", "m[-3]")),
    ],
    ids=lambda value: value.title if isinstance(value, Case) else "",
)
def test_live_tensors_are_few_and_have_names(case, names):
    assert case.read().state_names == names


def test_past_outputs_move_up_without_arithmetic():
    schedule = Case("LMSDiscrete").read()
    np.testing.assert_array_equal(schedule.model_gain[:-1, 1], 1)
    np.testing.assert_array_equal(schedule.transition[1:-1, 2], [[0, 1, 0, 0]] * 18)
    np.testing.assert_array_equal(schedule.transition[2:-1, 3], [[0, 0, 1, 0]] * 17)


def test_outputs_that_no_later_call_uses_are_not_kept():
    """Heun's second call of a step ends it; what it predicted is never looked at again."""
    schedule = Case("HeunDiscrete").read()
    np.testing.assert_array_equal(schedule.model_gain[:-1:2, 1], 1)
    np.testing.assert_array_equal(schedule.model_gain[1::2, 1], 0)


def multistep(past: np.ndarray, own: np.ndarray, on_sample: np.ndarray) -> SymbolRows:
    """x' = a x + b m + sum_l past_l m[-l], as a scheduler would show it; two symbols a call."""
    calls, order = len(own), past.shape[1]
    outputs = np.zeros((calls, 2 * calls))
    for j in range(calls):
        outputs[j, 2 * j], outputs[j, 2 * j + 1] = on_sample[j], own[j]
        for lag in range(1, min(j, order) + 1):
            outputs[j, 2 * (j - lag) + 1] = past[j, lag - 1]
    columns = np.arange(calls) * 2
    nothing = np.zeros(calls)
    return SymbolRows(
        outputs, np.zeros_like(outputs), nothing, nothing, columns, columns + 1, np.full(calls, -1), ((),) * calls, 1.0
    )


def replayed(found: Realisation, sample: float, model: np.ndarray) -> list[float]:
    state = np.zeros(found.transition.shape[1])
    state[0] = sample
    samples = []
    for transition, gain, m in zip(found.transition, found.model_gain, model, strict=True):
        state = transition @ state + gain * m
        samples.append(state[0])
    return samples


@settings(max_examples=60, deadline=None)
@given(calls=st.integers(1, 9), order=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_multistep_methods_need_one_tensor_for_each_past_output_that_is_still_used(calls, order, seed):
    rng = np.random.default_rng(seed)
    past, own, on_sample = rng.uniform(0.5, 1.5, (calls, order)), rng.normal(size=calls), rng.uniform(0.5, 1.5, calls)
    found = realise(multistep(past, own, on_sample))
    used = [min(order, j, calls - j, order) for j in range(calls)]
    assert found.transition.shape[1] == 1 + max(used)

    model, sample, expected = rng.normal(size=calls), 0.7, []
    for j in range(calls):
        before = [past[j, lag - 1] * model[j - lag] for lag in range(1, min(j, order) + 1)]
        sample = on_sample[j] * sample + own[j] * model[j] + sum(before)
        expected.append(sample)
    np.testing.assert_allclose(replayed(found, 0.7, model), expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(calls=st.integers(3, 9), hidden=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_private_states_are_found_through_what_they_do(calls, hidden, seed):
    """A scheduler that keeps h' = F h + g m and returns x' = a x + b m + c h."""
    rng = np.random.default_rng(seed)
    outputs = np.zeros((calls, 2 * calls))
    private = np.zeros((hidden, 2 * calls))
    for j in range(calls):
        outputs[j] = rng.normal(size=hidden) @ private
        outputs[j, 2 * j], outputs[j, 2 * j + 1] = rng.uniform(0.5, 1.5), rng.normal()
        private = rng.normal(size=(hidden, hidden)) @ private
        private[:, 2 * j + 1] = rng.normal(size=hidden)
    rows = multistep(np.zeros((calls, 0)), np.zeros(calls), np.ones(calls))
    rows = SymbolRows(**{**vars(rows), "outputs": outputs})
    found = realise(rows)
    assert found.transition.shape[1] <= 1 + hidden

    model, samples = rng.normal(size=calls), [0.3]
    for j in range(calls):
        symbols = np.stack([samples[: j + 1], model[: j + 1]], axis=1).ravel()
        samples.append(outputs[j, : 2 * (j + 1)] @ symbols)
    np.testing.assert_allclose(replayed(found, 0.3, model), samples[1:], rtol=1e-7, atol=1e-7)


def test_rows_that_cannot_be_carried_accurately_are_refused(monkeypatch):
    import graphopt.program.realise as module

    monkeypatch.setattr(module, "SIGNIFICANT", 1e-1)
    monkeypatch.setattr(module, "natural_state", lambda *_: None)
    with pytest.raises(UnsupportedError, match="rows found differ"):
        Case("LMSDiscrete").read()
