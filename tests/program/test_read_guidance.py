"""The guidance of a pipeline is read from what it makes of both branches, and in half precision to the last bit."""

from __future__ import annotations

import pytest
import torch

from graphopt.program.guidance import Guidance, combine
from graphopt.program.pipelines.calls import Deviation
from graphopt.program.pipelines.guidance import agrees, guided, read_guidance

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def branches(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def combined(both: torch.Tensor, scale: float, rescale: float = 0.0) -> torch.Tensor:
    return combine(*both.tensor_split(2), scale, rescale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, rescale", [(7.5, 0.0), (5, 0.7), (1.0001, 0.0), (-2.0, 1.0)])
def test_scale_and_rescale_that_the_pipeline_names(dtype, scale, rescale):
    both = branches(dtype)
    found = read_guidance([both], combined(both, scale, rescale), (scale, rescale))
    assert found == Guidance(float(scale), "batch", rescale)


def test_without_names_they_are_solved_for():
    both = branches(torch.float32)
    found = read_guidance(both.tensor_split(2), combined(both, 3.25, 0.4), (None, None))
    assert found is not None and found.mode == "calls"
    assert (found.scale, found.rescale) == pytest.approx((3.25, 0.4), rel=1e-5)


def test_another_scale_than_the_pipeline_names_is_solved_for():
    both = branches(torch.float32)
    assert read_guidance([both], combined(both, 3.25), (7.5, 0.0)) == Guidance(3.25, "batch")


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_in_half_precision_another_scale_is_not_taken_for_rounding(dtype):
    both = branches(dtype)
    with pytest.raises(Deviation, match="not the usual one"):
        read_guidance([both], combined(both, 7.25), (7.5, 0.0))
    later = combined(both, 7.45)
    assert not agrees(later, guided([both], later, Guidance(7.5, "batch")))
