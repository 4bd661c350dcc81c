"""Every metric against a computation of its own; what cannot be compared is never within a budget."""

import math

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats

from graphopt import Budget, Frechet
from graphopt.errors import PipelineError
from graphopt.verify.metrics import METRICS, unmeasurable


def outputs(seed, *shapes, batches=3, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(batches)]


def near(reference, noise=0.1, seed=9):
    rng = np.random.default_rng(seed)
    return [[(a + noise * rng.standard_normal(a.shape)).astype(a.dtype) for a in batch] for batch in reference]


def everything(outputs):
    return np.concatenate([a.astype(np.float64).ravel() for batch in outputs for a in batch])


def rows(outputs):
    return np.concatenate([a.astype(np.float64).reshape(-1, a.shape[-1]) for batch in outputs for a in batch])


REFERENCE = outputs(0, (4, 10), (4, 3, 10))
CANDIDATE = near(REFERENCE)


def test_relative_error_and_trajectory_mse():
    a, b = everything(REFERENCE), everything(CANDIDATE)
    expected = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert METRICS["relative-error"](REFERENCE, CANDIDATE) == pytest.approx(expected, rel=1e-12)
    assert METRICS["trajectory-mse"](REFERENCE, CANDIDATE) == pytest.approx(expected**2, rel=1e-12)


def test_cosine_is_that_of_scipy_for_each_sample():
    pairs = [
        (a[i].ravel().astype(np.float64), b[i].ravel().astype(np.float64))
        for ours, theirs in zip(REFERENCE, CANDIDATE, strict=True)
        for a, b in zip(ours, theirs, strict=True)
        for i in range(len(a))
    ]
    expected = np.mean([scipy.spatial.distance.cosine(a, b) for a, b in pairs])
    assert METRICS["cosine"](REFERENCE, CANDIDATE) == pytest.approx(expected, rel=1e-9)


def test_cosine_sees_angles_that_a_dot_product_loses_and_takes_zeros():
    a = np.array([[1.0, 0.0]])
    assert METRICS["cosine"]([[a]], [[np.array([[1.0, 1e-9]])]]) == pytest.approx(0.5e-18, rel=1e-6)
    assert METRICS["cosine"]([[a]], [[-3 * a]]) == pytest.approx(2.0)
    assert METRICS["cosine"]([[0 * a]], [[0 * a]]) == 0.0
    assert METRICS["cosine"]([[a]], [[0 * a]]) == 1.0


def test_kl_is_that_of_scipy():
    p, q = (scipy.special.softmax(rows(x), axis=-1) for x in (REFERENCE, CANDIDATE))
    expected = scipy.stats.entropy(p, q, axis=-1).mean()
    assert METRICS["kl"](REFERENCE, CANDIDATE) == pytest.approx(expected, rel=1e-9)


def test_kl_takes_large_logits_and_masks_of_minus_infinity():
    a = [[np.array([[1e4, 0.0, -np.inf], [0.0, 0.0, -np.inf]])]]
    b = [[np.array([[1e4, 9.0, -np.inf], [0.0, math.log(3), -np.inf]])]]
    expected = 0.5 * (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert METRICS["kl"](a, b) == pytest.approx(expected, rel=1e-12)


def test_top_1_is_the_share_of_rows_that_disagree():
    expected = np.mean(rows(REFERENCE).argmax(-1) != rows(CANDIDATE).argmax(-1))
    assert 0 < expected < 1
    assert METRICS["top-1"](REFERENCE, CANDIDATE) == expected


def test_frechet_is_the_closed_form_with_the_matrix_root_of_scipy():
    reference = outputs(0, (40, 2, 3))
    candidate = near(reference, 0.5)
    features = [np.concatenate([b[0].reshape(40, -1) for b in x]).astype(np.float64) for x in (reference, candidate)]
    (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f.T)) for f in features)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    metric = Frechet(lambda x: x.reshape(len(x), -1))
    assert metric(reference, candidate) == pytest.approx(expected, rel=1e-6)
    assert metric(reference, reference) == pytest.approx(0.0, abs=1e-10)
    assert Budget(metric).name == "frechet"


@pytest.mark.parametrize("wrong", [lambda x: x[:1], lambda x: x.ravel()], ids=["one row", "no matrix"])
def test_frechet_refuses_features_that_are_no_rows_of_two_samples(wrong):
    one = outputs(0, (4, 3), batches=1)
    with pytest.raises(PipelineError, match="one row for each sample"):
        Frechet(wrong)(one, one)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_equal_outputs_are_at_no_distance_and_others_are_not(name, dtype):
    reference = outputs(1, (4, 10), dtype=dtype)
    assert Budget(name, 0).measure(reference, [[a.copy() for a in b] for b in reference]) == 0.0
    assert Budget(name, 0).measure(reference, near(reference, 2.0)) > 0.0


@pytest.mark.parametrize("name", [*METRICS, "callable"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("limit", [0.0, 0.5, math.inf])
def test_nan_and_infinity_in_the_candidate_never_pass(name, value, limit):
    budget = Budget((lambda a, b: 0.0) if name == "callable" else name, limit)
    spoilt = [[a.copy() for a in batch] for batch in REFERENCE]
    spoilt[1][0][2, 3] = value
    assert not budget.allows(budget.measure(REFERENCE, spoilt))
    assert not budget.allows(budget.measure(spoilt, REFERENCE))


NAN, NUMBER, MASK = np.full((2, 3), np.nan, np.float32), np.ones((2, 3), np.float32), np.full((2, 3), -np.inf)
NONE = np.ones((0, 3), np.float32)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ([[NAN], [NAN]], "output 0 of the original is NaN throughout"),
        ([[NUMBER, NAN.astype(ml_dtypes.bfloat16)]], "output 1 of the original is NaN throughout"),
        ([[NONE], [NONE]], "the outputs of the original hold no numbers"),
        ([[MASK]], "the outputs of the original hold no numbers"),
        ([[NAN], [NUMBER]], None),
        ([[NUMBER, NONE, MASK]], None),
        ([[np.arange(3), np.array(["text"], object)]], None),
    ],
)
def test_outputs_without_numbers_measure_nothing(reference, says):
    """Every metric calls all models equal on them, however much was pruned."""
    assert unmeasurable(reference) == says


@pytest.mark.parametrize("name", ["relative-error", "trajectory-mse", "top-1"])
def test_infinities_at_the_same_places_are_equal(name):
    masked = [[a.copy() for a in batch] for batch in REFERENCE]
    for batch in masked:
        batch[0][:, 0] = -np.inf
    assert Budget(name).measure(masked, masked) == 0.0
    other = [[a.copy() for a in batch] for batch in masked]
    other[0][0][0, 0] = np.inf
    assert math.isnan(Budget(name).measure(masked, other))


@pytest.mark.parametrize("name", METRICS)
def test_other_counts_and_shapes_never_pass(name):
    budget = Budget(name, math.inf)
    for other in (REFERENCE[:2], [b[:1] for b in REFERENCE], [[a[:2] for a in b] for b in REFERENCE]):
        assert not budget.allows(budget.measure(REFERENCE, other))


@pytest.mark.parametrize("name", METRICS)
def test_empty_outputs_and_scalars_can_be_measured(name):
    reference = [[np.zeros((0, 4), np.float32), np.float32(2.0).reshape(())]]
    assert Budget(name).measure(reference, reference) == 0.0


def test_a_reference_of_zeros_is_infinitely_far_from_anything_else():
    zero = [[np.zeros(3)]]
    assert METRICS["relative-error"](zero, [[np.ones(3)]]) == math.inf
    assert METRICS["relative-error"](zero, zero) == 0.0


def test_integers_and_flags_count_as_numbers():
    a, b = [[np.array([3, 4])]], [[np.array([3, 5])]]
    assert METRICS["relative-error"](a, b) == pytest.approx(1 / 5)
    assert Budget().measure([[np.array([True, False])]], [[np.array([True, True])]]) == 1.0


def test_what_a_callable_raises_is_said_with_how_it_is_called():
    with pytest.raises(PipelineError, match=r"raised TypeError: .* it is called as metric\(reference, candidate\)"):
        Budget(lambda a: 0.0).measure(REFERENCE, CANDIDATE)
    with pytest.raises(PipelineError, match="features=None: expected a callable"):
        Frechet(None)


# ---- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [-0.1, math.nan, "0.1", True, None, [0.1], -math.inf])
def test_a_limit_that_is_no_number_from_zero_on_is_refused(limit):
    with pytest.raises(PipelineError, match="limit is .*expected a number that is not negative"):
        Budget("kl", limit)


def test_an_unknown_metric_is_refused_with_the_nearest_names():
    with pytest.raises(PipelineError, match=r"unknown metric 'relativ-error' \(did you mean 'relative-error'\?\)"):
        Budget("relativ-error")
    with pytest.raises(PipelineError, match="expected the name of a metric or a callable"):
        Budget(7)
    with pytest.raises(PipelineError, match="expected the name of a metric or a callable"):
        Budget(Frechet)


@pytest.mark.parametrize("value", ["0.01", True, [1], math.nan, {"limit": 1}])
def test_what_is_no_budget_is_refused(value):
    with pytest.raises(PipelineError, match=r"graphopt.Budget\(metric, limit\)"):
        Budget.of(value)


def test_a_number_is_the_limit_of_the_default_metric():
    assert Budget.of(np.float32(0.5)) == Budget("relative-error", 0.5)
    assert Budget.of(1, "trajectory-mse") == Budget("trajectory-mse", 1.0)
    assert Budget.of(None) is None


def test_limits_of_zero_and_infinity():
    assert Budget(limit=0).allows(0.0) and not Budget(limit=0).allows(1e-300)
    assert Budget(limit=math.inf).allows(1e300) and not Budget(limit=math.inf).allows(math.nan)


def test_a_callable_is_given_both_sides_and_named_after_itself():
    def largest(reference, candidate):
        return np.abs(everything(reference) - everything(candidate)).max()

    budget = Budget(largest, 1.0)
    assert budget.name == "largest"
    assert budget.measure(REFERENCE, CANDIDATE) == np.abs(everything(REFERENCE) - everything(CANDIDATE)).max()


def test_a_callable_that_returns_no_number_is_refused():
    with pytest.raises(PipelineError, match="returned None: expected a number"):
        Budget(lambda a, b: None).measure(REFERENCE, CANDIDATE)
