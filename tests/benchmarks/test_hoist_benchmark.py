"""The benchmark of what leaves the loop reports what the programs hold, without allocating weights."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from benchmarks.hoist import MODELS, Published, measure, table
from graphopt.program.stages import Stage


def small(d: Any) -> Any:
    return d.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        num_embeds_ada_norm=100, norm_type="ada_norm_zero",
    )  # fmt: skip


def test_a_share_is_the_parameters_that_no_step_reads() -> None:
    outcome = measure(Published(small), rows=5)
    early = sum(s.parameters for stage, s in outcome.stages.items() if stage is not Stage.STEP)
    assert outcome.parameters == sum(s.parameters for s in outcome.stages.values()) == 34_160
    assert outcome.left_loop == pytest.approx(early / outcome.parameters)
    assert outcome.weighed[1] % 5 == 0 and outcome.weighed <= outcome.unweighed
    console = Console(width=200)
    with console.capture() as printed:
        console.print(table({"DiT-XL/2": outcome}, 5))
    assert f"{outcome.left_loop:.1%}" in printed.get() and "68.6%" in printed.get()


def test_every_published_model_has_a_share_to_be_compared_with() -> None:
    assert len(MODELS) == 7 and all(0 < m.expected < 1 for m in MODELS.values())
