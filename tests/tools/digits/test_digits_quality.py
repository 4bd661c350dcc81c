import numpy as np

from graphopt.tools.digits.quality import accuracy, frechet_distance, real_moments


def test_noise_is_far_from_real_digits_and_recognised_as_nothing_in_particular():
    images = np.random.default_rng(0).normal(size=(200, 1, 16, 16))

    assert frechet_distance(images) > np.trace(real_moments().covariance)
    assert accuracy(images, np.arange(200) % 10) < 0.3


def test_the_distance_takes_images_as_what_can_be_shown():
    images = np.random.default_rng(0).normal(size=(100, 1, 16, 16)) * 3

    assert frechet_distance(images) == frechet_distance(np.clip(images, -1, 1))
