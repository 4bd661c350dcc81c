"""Sizes that a model was not exported for are refused, and composite ops are what torch says, not its references."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import pytest
from torch.export import Dim
from torch_functions import Function

import graphopt
from graphopt.backends.inputs import InputError

F = torch.nn.functional


@pytest.mark.parametrize("buckets", [None, (8, 16)], ids=["as it is", "padded"])
def test_sizes_outside_of_the_exported_range_are_refused(buckets):
    """Another branch is right for them, which the program does not have."""
    function = lambda x: x * 2 if 4 <= x.shape[0] <= 7 else x * 3  # noqa: E731
    run = graphopt.lower(
        Function(function), "xla", example_inputs=(torch.randn(6, 3),),
        dynamic_shapes=(({0: Dim("length", min=4, max=7)},),), buckets=buckets,
    )  # fmt: skip
    for n in (3, 8):
        with pytest.raises(InputError, match=rf"a size of {n} is given for \w+:0, .* exported for 4 to 7"):
            run(torch.randn(n, 3))
    x = torch.randn(5, 3)
    torch.testing.assert_close(run(x), function(x))


def test_sizes_for_which_a_comparison_in_the_model_comes_out_otherwise_are_refused():
    class Compares(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] % 3 else x * 3

    run = graphopt.lower(
        Compares(), "xla", example_inputs=(torch.randn(5, 3),), dynamic_shapes=({0: Dim.AUTO},), buckets=(8,)
    )
    with pytest.raises(InputError, match=r"exported for inputs L of which .*% 3.* holds"):
        run(torch.randn(6, 3))
    x = torch.randn(7, 3)
    torch.testing.assert_close(run(x), x * 2)
    assert not any("not checked" in note for note in run.notes)


COMPOSITE = {
    "a loss for each row": lambda x: F.nll_loss(x.log_softmax(1), (x[:, 0] > 0).long(), reduction="none"),
    "prelu": lambda x: F.prelu(x, torch.linspace(0.1, 0.5, 6)),
    "variance": lambda x: x.var(1),
    "grid": lambda x: torch.stack(torch.meshgrid(x[0], x[1], indexing="ij")),
}


@pytest.mark.parametrize("function", COMPOSITE.values(), ids=COMPOSITE)
def test_composite_ops_are_taken_apart_as_torch_runs_them(function):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    run = graphopt.lower(Function(function), "xla", example_inputs=(x,))
    torch.testing.assert_close(run(x), function(x), rtol=1e-5, atol=1e-6)
