"""How `graphopt bench` takes turns, and what it makes of the times."""

import numpy as np
import pytest

from graphopt.backends.inputs import InputType
from graphopt.tools.bench import BenchError, difference_of, interleave, make_feeds


def test_jobs_take_turns_backwards_every_other_round_and_the_first_round_is_dropped():
    log, now = [], [0.0]

    def job(name, seconds):
        def run():
            log.append(name)
            now[0] += seconds if len(log) > 2 else 100.0

        return run

    samples = interleave([job("a", 1.0), job("b", 2.0)], rounds=3, clock=lambda: now[0])

    assert log == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples == [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]


def test_inputs_are_made_from_types_the_same_ones_for_the_same_seed():
    types = [
        InputType("x", "tensor(float16)", "float16", ("n", 3, "w", None)),
        InputType("i", "tensor(int64)", "int64", ("w", "n")),
        InputType("flag", "tensor(bool)", "bool", ()),
    ]
    feeds = make_feeds(types, {"w": 5}, seed=1)

    assert {name: (a.dtype.name, a.shape) for name, a in feeds.items()} == {
        "x": ("float16", (1, 3, 5, 16)),
        "i": ("int64", (5, 1)),
        "flag": ("bool", ()),
    }
    assert set(feeds["i"].flat) <= {0, 1}
    again, other = make_feeds(types, {"w": 5}, seed=1), make_feeds(types, {"w": 5}, seed=2)
    assert (again["x"] == feeds["x"]).all()
    assert (other["x"] != feeds["x"]).any()


@pytest.mark.parametrize(
    "type_",
    [InputType("s", "tensor(string)", None, (1,)), InputType("s", "tensor(float)", "float32", None)],
)
def test_an_input_without_a_known_type_is_refused(type_):
    with pytest.raises(BenchError, match="no inputs can be made for 's'"):
        make_feeds([type_], {}, seed=0)


@pytest.mark.parametrize(
    ("first", "other", "difference"),
    [
        ([0.0, 4.0], [1.0, 4.0], 0.25),
        ([np.nan, 4.0], [np.nan, 4.0], 0.0),
        ([np.inf, 4.0], [np.inf, 5.0], 0.25),
        ([0.0, 4.0], [np.nan, 4.0], None),
        ([np.nan, 4.0], [0.0, 4.0], None),
        ([np.inf, 4.0], [-np.inf, 4.0], None),
        (["a", "b"], ["a", "b"], 0.0),
        (["a", "b"], ["a", "c"], None),
        ([], [], 0.0),
    ],
)
def test_a_difference_that_no_number_says_is_not_called_zero(first, other, difference):
    assert difference_of([np.array(first)], [np.array(other)]) == difference
