import io

import numpy as np
import pytest
from PIL import Image

from graphopt.tools.digits.grid import grid, png, write_grids


def test_a_png_holds_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (7, 11), dtype=np.uint8)

    with Image.open(io.BytesIO(png(picture))) as image:
        image.load()
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_images_are_placed_row_by_row_and_scaled():
    images = np.linspace(-1, 1, 5).reshape(5, 1, 1, 1) * np.ones((1, 1, 2, 3))

    picture = grid(images, columns=3, scale=2)

    assert picture.shape == (2 * 2 * 2, 3 * 3 * 2)
    assert picture[::4, ::6].tolist() == [[0, 64, 128], [191, 255, 0]]
    assert (picture[:4, :6] == 0).all()


def test_values_outside_the_range_become_black_and_white():
    assert grid(np.array([-7.0, 9.0]).reshape(2, 1, 1, 1), columns=2, scale=1).tolist() == [[0, 255]]


def test_two_grids_stand_side_by_side_with_a_white_gap(tmp_path):
    dark, half = np.full((4, 1, 16, 16), -1.0), np.zeros((4, 1, 16, 16))

    write_grids(tmp_path / "both.png", dark, half, columns=2, scale=1, gap=5)

    with Image.open(tmp_path / "both.png") as image:
        picture = np.asarray(image)
    assert picture.shape == (32, 32 + 5 + 32)
    assert [set(part.ravel()) for part in np.split(picture, [32, 37], axis=1)] == [{0}, {255}, {128}]


def test_grids_of_different_heights_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_grids(tmp_path / "both.png", np.zeros((4, 1, 8, 8)), np.zeros((6, 1, 8, 8)), columns=2)
