"""The Frechet distance of two normal distributions against closed forms."""

import numpy as np
import pytest

from graphopt.verify.frechet import Moments, frechet, moments


def test_between_commuting_normals_the_distance_is_the_closed_form():
    one = Moments(np.array([1.0, 0.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    other = Moments(np.array([0.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))

    assert frechet(one, other) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_in_two_dimensions_it_is_the_closed_form_of_covariances_that_do_not_commute():
    one, other = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    # For two by two, tr sqrt(A) = sqrt(tr A + 2 sqrt(det A)).
    product = one @ other
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)

    found = frechet(Moments(zero, one), Moments(zero, other))

    assert found == pytest.approx(np.trace(one) + np.trace(other) - 2 * cross, rel=1e-12)


def test_it_is_zero_to_itself_symmetric_and_unchanged_by_a_rotation():
    rng = np.random.default_rng(0)
    one, other = (moments(rng.normal(size=(60, 48)) * rng.uniform(0.1, 3, 48)) for _ in range(2))
    turn = np.linalg.qr(rng.normal(size=(48, 48)))[0]
    turned = [Moments(turn @ x.mean, turn @ x.covariance @ turn.T) for x in (one, other)]

    assert frechet(one, one) == pytest.approx(0, abs=1e-10)
    assert frechet(one, other) == pytest.approx(frechet(other, one), rel=1e-12)
    assert frechet(one, other) == pytest.approx(frechet(*turned), rel=1e-9)


def test_singular_covariances_give_a_finite_distance():
    rng = np.random.default_rng(0)
    few = moments(rng.normal(size=(5, 48)))

    assert frechet(few, Moments(few.mean + 1, few.covariance)) == pytest.approx(48, rel=1e-9)


def test_moments_are_those_of_numpy_in_float64():
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) + 1000

    found = moments(features)

    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64).T), rtol=1e-12)


@pytest.mark.parametrize("features", [np.zeros((1, 4)), np.zeros(4), np.array([[np.nan, 0], [0, 1]])])
def test_what_has_no_moments_is_refused(features):
    with pytest.raises(ValueError, match=r"two rows|finite"):
        moments(features)
