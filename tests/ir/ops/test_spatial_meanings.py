"""Convolution, pooling, resizing and block rearrangement mean what onnxruntime and torch compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.op_cases.runtimes import Case, check, meaning, parameters
from benchmarks.op_cases.spatial import CASES, sample


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime)


def test_conv_of_a_large_image_equals_conv_of_its_parts() -> None:
    x, w = sample.normal(1, 32, 300, 200), sample.normal(1, 32, 3, 3)
    geometry = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1)}
    (whole,) = meaning("conv", x, w, **geometry)
    parts = [meaning("conv", x[:, :, i : i + 52], w, **geometry)[0] for i in range(0, 250, 50)]
    np.testing.assert_allclose(whole[:, :, :250], np.concatenate(parts, axis=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_a_window_larger_than_the_input_is_refused(op: str) -> None:
    with pytest.raises(ValueError, match="window of 5"):
        meaning(op, sample.normal(1, 1, 4), kernel=(3,), stride=(1,), pads=(0, 0), dilation=(2,))


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_negative_pads_are_refused(op: str) -> None:
    extra = {"output_padding": (0,)} if op == "conv_transpose" else {}
    x, w = sample.normal(1, 1, 5), sample.normal(1, 1, 3)
    with pytest.raises(ValueError, match="negative"):
        meaning(op, x, w, stride=(1,), pads=(-1, 0), dilation=(1,), **extra)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mode": "linear", "coordinates": "half_pixel"}, "sizes or scales"),
        ({"sizes": (4,), "mode": "linear", "coordinates": "tf_crop_and_resize"}, "coordinates"),
        ({"sizes": (4,), "mode": "area", "coordinates": "half_pixel"}, "mode"),
        ({"sizes": (4,), "mode": "nearest", "coordinates": "half_pixel"}, "rounding"),
    ],
)
def test_resize_refuses_what_it_does_not_know(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meaning("resize", sample.normal(3), **fields)
