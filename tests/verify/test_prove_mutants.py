"""No mutant of a proved rewrite is proved if its numbers differ."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.mutant_checks import rejection
from benchmarks.mutant_corpus import recorded
from benchmarks.mutant_keys import Namer
from benchmarks.mutant_weights import altered
from benchmarks.mutants import Hunt, Mutant, Tally, differ, evaluated, mutants
from benchmarks.proof_catalogue import Ops
from benchmarks.proof_catalogue_more import CATALOGUE, Entry
from graphopt.ir.load import load_model
from graphopt.ir.weights import ArrayRef, Deferred
from graphopt.verify.fragment import Fragment
from graphopt.verify.prove import prove

RIGHT = [e for e in CATALOGUE if e.after is not None]
EACH = 4


@pytest.fixture(scope="module")
def found() -> Tally:
    tally = Tally()
    for entry in RIGHT:
        assert entry.after is not None
        Hunt(entry.name, entry.fragment(entry.after), entry.feeds(), 2026, tally).make(EACH)
    return tally


def test_no_mutant_whose_numbers_differ_is_proved(found: Tally):
    assert not found.wrong, found.wrong
    assert not found.missed, found.missed


def test_most_mutants_can_be_computed_and_differ(found: Tally):
    assert found.made >= EACH * len(RIGHT) * 0.9
    assert found.differing >= 0.5 * found.made
    assert found.differing + found.equal + found.failing == found.made


@pytest.mark.parametrize("entry", RIGHT, ids=lambda e: e.name)
def test_what_is_proved_is_equal_in_double_precision(entry: Entry):
    assert entry.after is not None
    fragment = entry.fragment(entry.after)
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal(f.shape).astype(np.float32) for f in entry.feeds()]
    assert differ(evaluated(fragment, fragment.before, feeds), evaluated(fragment, fragment.after, feeds)) == ""


def test_a_mutant_is_the_after_side_with_a_change_and_nothing_else_is_touched():
    entry = next(e for e in RIGHT if e.name == "silu")
    assert entry.after is not None
    fragment = entry.fragment(entry.after)
    source = mutants(fragment, random.Random(0))
    made: list[Mutant] = [next(source) for _ in range(10)]
    assert all(m.fragment.before is fragment.before for m in made)
    assert all(set(m.fragment.after.nodes).isdisjoint(fragment.after.nodes) for m in made)
    assert len({m.change for m in made}) > 3


def test_what_is_equal_over_the_reals_alone_is_proved_and_caught_by_the_executed_checks():
    """Of softmax by blocks, with a power where the greatest is subtracted: any number may be, a NaN may not."""
    entry = next(e for e in RIGHT if e.name == "softmax by blocks")

    def by_powers(o: Ops, x: Any) -> Any:
        parts = [o.cut(x, 0, 2, 1), o.cut(x, 2, 5, 1)]
        tops = [o.reduce_max(p, axes=(1,), keepdims=True) for p in parts]
        top = o.pow(*tops)
        powers = [o.mul(o.exp(o.sub(p, t)), o.exp(o.sub(t, top))) for p, t in zip(parts, tops, strict=True)]
        return o.div(o.concat(*powers, axis=1), o.add(*(o.sum(p, 1) for p in powers)))

    fragment = entry.fragment(by_powers)
    assert prove(fragment, entry.feeds()).holds
    reason = rejection(fragment)
    assert reason is not None and "inputs the error is" in reason
    assert entry.after is not None and rejection(entry.fragment(entry.after)) is None


def test_differences_of_nan_alone_are_told_apart():
    assert differ([np.array([1.0, np.nan])], [np.array([1.0, 2.0])]) == "special"
    assert differ([np.array([1.0, np.nan])], [np.array([1.1, 2.0])]) == "number"
    assert differ([np.array([1.0])], [np.array([1.0 + 1e-12])]) == ""
    assert differ([np.zeros(2)], [np.zeros((1, 2))]) == "number"


def built(write: Callable[[Ops, Any], Any]) -> Fragment:
    entry = Entry("", ((2, 3),), lambda o, x: o.relu(x), write)
    return entry.fragment(write)


@pytest.mark.parametrize(
    "write",
    [
        lambda o, x: o.add(o.mul(x, 2.0), o.relu(x)),
        lambda o, x: o.add(o.relu(x), o.mul(2.0, x)),
        lambda o, x: o.add(o.identity(o.relu(x)), o.mul(x, np.asarray(2.0, np.float32))),
    ],
)
def test_the_same_mutant_has_one_name_however_it_is_written(write: Any):
    namer = Namer()
    one, other = (built(w) for w in (lambda o, x: o.add(o.mul(x, 2.0), o.relu(x)), write))
    assert namer.name(one, one.after) == namer.name(other, other.after)


@pytest.mark.parametrize(
    "write",
    [
        lambda o, x: o.add(o.mul(x, 2.02), o.relu(x)),
        lambda o, x: o.sub(o.mul(x, 2.0), o.relu(x)),
        lambda o, x: o.add(o.mul(x, 2.0), o.abs(x)),
    ],
)
def test_another_mutant_has_another_name(write: Any):
    namer = Namer()
    one, other = (built(w) for w in (lambda o, x: o.add(o.mul(x, 2.0), o.relu(x)), write))
    assert namer.name(one, one.after) != namer.name(other, other.after)


def test_a_hunt_counts_no_mutant_twice_whatever_the_seeds():
    entry = next(e for e in RIGHT if e.name == "silu")
    assert entry.after is not None
    tally = Tally()
    for seed in range(4):
        Hunt(entry.name, entry.fragment(entry.after), entry.feeds(), seed, tally).make(40)
    assert tally.repeated > tally.made == tally.failing + tally.equal + tally.differing
    assert tally.made == len(tally.met) - 1  # the rewrite itself is no mutant


def test_a_step_of_the_arithmetic_of_a_folded_weight_is_mutated():
    weight = ArrayRef(np.ones((2, 3), np.float32)) * ArrayRef(np.full(3, 4.0, np.float32)).sqrt()
    assert isinstance(weight, Deferred)
    rng = random.Random(0)
    made = [m for _ in range(40) if (m := altered(weight, rng)) is not None]
    assert len({what for _, what in made}) > 8
    assert sum(not np.array_equal(ref.numpy(), weight.numpy()) for ref, _ in made) > 20
    assert np.array_equal(weight.numpy(), np.full((2, 3), 2.0))


def test_what_is_proved_of_a_pass_is_cut_out_and_hunted():
    found = list(recorded(load_model(conv_and_norm()), "conv", set()))
    folds = [f for f in found if "conv-batch-norm" in f.name]
    assert len(folds) == 1
    tally = Tally()
    Hunt(folds[0].name, folds[0].fragment, folds[0].feeds, 1, tally).make(40)
    assert tally.differing > 15 and not tally.wrong


def conv_and_norm() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    numbers = {"w": rng.standard_normal((4, 3, 3, 3))} | {k: rng.uniform(0.5, 1.5, 4) for k in "sbmv"}
    stored = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in numbers.items()]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        onnx.helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(k, 1, [2, c, 6, 7]) for k, c in (("x", 3), ("y", 4))]
    graph = onnx.helper.make_graph(nodes, "fold", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
