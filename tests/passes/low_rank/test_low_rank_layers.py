"""Every kind of layer, in both storages: shapes stay, errors are predicted, ranks are what was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from low_rank_layers import KINDS, PLACES, error_on_tuning_data, ran

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
