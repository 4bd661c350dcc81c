"""Every kind of layer, in both storages: shapes stay, errors are predicted, ranks are what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from low_rank_layers import KINDS, PLACES, Kind, error_on_tuning_data, ran

from graphopt.ir.weights import Array, numpy_dtype
from graphopt.verify.compare import EPS
from graphopt.verify.execute import evaluate

every_layer = pytest.mark.parametrize(("name", "storage"), PLACES)


@every_layer
def test_the_error_of_a_chain_is_predicted_and_shapes_stay(name: str, storage: str) -> None:
    kind = KINDS[name]
    found = ran(kind, storage, "rank=6")
    assert len(found.kept) == 1, found.notes
    predicted, measured = found.errors
    assert 0.01 < predicted < 0.9
    assert measured == pytest.approx(predicted, rel=1e-3)
    assert error_on_tuning_data(kind, found) == pytest.approx(predicted, rel=1e-3)
    x = kind.batches()[1]
    assert found.run(x).shape == evaluate(kind.graph(), [x])[0].shape


@every_layer
def test_energy_is_kept_by_the_lowest_rank_that_keeps_it(name: str, storage: str) -> None:
    kind = KINDS[name]
    found = ran(kind, storage, "energy=0.9 multiple=1")
    assert len(found.kept) == 1, found.notes
    assert error_on_tuning_data(kind, found) ** 2 <= 0.1
    if len(set(found.ranks)) == 1:
        lower = ran(kind, storage, f"rank={found.ranks[0] - 1}")
        assert error_on_tuning_data(kind, lower) ** 2 > 0.1


@every_layer
def test_ratio_is_kept_by_the_highest_rank_that_keeps_it(name: str, storage: str) -> None:
    kind = KINDS[name]
    found = ran(kind, storage, "ratio=0.5 multiple=1")
    before, after = found.parameters
    assert len(found.kept) == 1, found.notes
    assert kind.size - (before - after) <= 0.5 * kind.size
    if len(set(found.ranks)) == 1:
        before, after = ran(kind, storage, f"rank={found.ranks[0] + 1}").parameters
        assert kind.size - (before - after) > 0.5 * kind.size


@pytest.mark.parametrize("name", ["linear", "matmul, three axes", "table", "conv 1x1", "conv 3x2, spatial"])
@pytest.mark.parametrize(("storage", "dtype"), [("onnx", "float16"), ("fx", "float16"), ("fx", "bfloat16")])
def test_errors_in_low_precision_are_predicted(name: str, storage: str, dtype: str) -> None:
    kind = KINDS[name]
    found = ran(kind, storage, "rank=4", dtype=dtype)
    assert len(found.kept) == 1, found.notes
    predicted, measured = found.errors
    assert measured == pytest.approx(predicted, rel=1e-3)
    assert found.run(kind.batches(dtype)[0]).dtype.name == dtype


LOW = {
    "linear": "split-linear",
    "linear, untransposed": "split-linear",
    "matmul": "split-matmul",
    "table": "split-gather",
    "conv 1x1": "split-channels",
    "conv 3x2, channels": "split-channels",
    "conv 3x2, spatial": "split-spatial",
    "conv 3x3, tucker": "split-tucker",
}


def low(kind: Kind, rank: int, seed: int = 0) -> Array:
    """A weight of this rank, in the sense of the kind's chain."""
    draw, shape = np.random.default_rng(seed).standard_normal, kind.weight
    if "spatial" in kind.options:
        return np.einsum("oxr,riy->oiyx", draw((shape[0], shape[3], rank)), draw((rank, *shape[1:3])))
    if "tucker" in kind.options:
        outer, core, inner = draw((shape[0], rank)), draw((rank, rank, *shape[2:])), draw((rank, shape[1]))
        return np.einsum("op,pqyx,qi->oiyx", outer, core, inner)
    return (draw((shape[0], rank)) @ draw((rank, kind.size // shape[0]))).reshape(shape)


NARROW = [("onnx", "float32"), ("fx", "float32"), ("onnx", "float16"), ("fx", "bfloat16")]


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize(("storage", "dtype"), NARROW)
def test_a_weight_of_low_rank_is_recognised_whatever_the_layer(name: str, storage: str, dtype: str) -> None:
    kind = KINDS[name]
    weight = low(kind, 6)
    found = ran(kind, storage, "multiple=1 cost=parameters", weight=weight, dtype=dtype, budget=0.0)
    assert found.kept == [LOW[name]], [found.notes, *[a.reason for a in found.result.report.applications]]
    assert found.ranks in ((6,), (6, 6)) and "under rounding, spends no budget" in found.notes
    rounded = weight.astype(numpy_dtype(dtype)).astype(np.float64)
    assert error_on_tuning_data(kind, found, rounded, dtype) < 4 * EPS[dtype]


@pytest.mark.parametrize("name", LOW)
def test_a_delta_of_low_rank_that_was_merged_into_one_adds_its_rank(name: str) -> None:
    kind = KINDS[name]
    weight = low(kind, 3) + 0.1 * low(kind, 2, seed=1)
    found = ran(kind, "onnx", "multiple=1 cost=parameters", weight=weight, budget=0.0)
    assert found.kept == [LOW[name]] and max(found.ranks) == 5


@pytest.mark.parametrize("name", LOW)
@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_a_weight_of_zeros_has_rank_0_and_becomes_the_least_chain(name: str, storage: str) -> None:
    kind = KINDS[name]
    found = ran(kind, storage, "multiple=1 cost=parameters", weight=np.zeros(kind.weight), budget=0.0)
    assert found.kept == [LOW[name]] and set(found.ranks) == {1}
    x = kind.batches()[0]
    wanted = evaluate(kind.graph(np.zeros(kind.weight)), [x])[0]
    assert np.array_equal(found.run(x), wanted.astype(np.float32))
