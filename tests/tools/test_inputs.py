"""Model inputs made from descriptions: right types and ranges, and the same values every time."""

import numpy as np
import pytest

from graphopt.tools.inputs import InputSpecError, make_inputs
from graphopt.tools.manifest import zoo


def make(seed=0, **spec):
    return make_inputs({"x": {"dtype": "float32", "shape": [4, 50], **spec}}, seed)["x"]


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ({"gen": "uniform", "low": -2, "high": 3}, -2, 3),
        ({"gen": "randint", "low": 5, "high": 9, "dtype": "int64"}, 5, 8),
        ({"gen": "zeros"}, 0, 0),
        ({"gen": "ones"}, 1, 1),
        ({"gen": "const", "value": 0.5}, 0.5, 0.5),
    ],
)
def test_values_fill_the_range_and_have_the_described_type(spec, low, high):
    x = make(**spec)
    assert x.shape == (4, 50)
    assert x.dtype == spec.get("dtype", "float32")
    assert low <= x.min() <= low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) <= x.max() <= high


def test_normal_values_have_the_scale():
    x = make(gen="normal", scale=80.0, shape=[10000])
    assert abs(x.std() / 80 - 1) < 0.05
    assert abs(x.mean()) < 3


def test_sorted_integers_ascend():
    x = make(gen="sorted_randint", low=0, high=4, dtype="int64", shape=[30])
    assert (np.diff(x) >= 0).all()
    assert set(x) == {0, 1, 2, 3}


def test_edges_join_different_nodes_that_exist():
    source, target = make(gen="edges", nodes=5, dtype="int64", shape=[2, 200])
    assert (source != target).all()
    assert set(source) == set(target) == set(range(5))


def test_a_scalar_and_an_ml_dtype_can_be_described():
    assert make(gen="const", value=16000, dtype="int64", shape=[]).item() == 16000
    assert make(gen="normal", dtype="bfloat16").dtype.name == "bfloat16"


def test_the_same_seed_gives_the_same_values_and_another_seed_others():
    a, b, c = (make(seed, gen="normal") for seed in (3, 3, 4))
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"gen": "gamma"}, "gamma.*expected one of normal"),
        ({"gen": "uniform", "low": 0}, "needs the key 'high'"),
        ({}, "None"),
    ],
)
def test_a_description_that_cannot_be_understood_is_refused(spec, message):
    with pytest.raises(InputSpecError, match=message):
        make(**spec)


def test_every_input_of_every_model_of_the_manifest_can_be_made():
    for model in zoo().values():
        for spec in model.inputs:
            shapes = {name: list(x.shape) for name, x in make_inputs(spec).items()}
            assert shapes == {name: described["shape"] for name, described in spec.items()}
