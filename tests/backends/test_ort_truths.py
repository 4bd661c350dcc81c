import torch

import graphopt


class Masks(torch.nn.Module):
    """Every way of choosing between truth values, with sizes that are broadcast; and one in a branch."""

    def forward(self, a, b, c):
        p, q = a > 0, b > 0
        inner = torch.cond(c.any(), lambda p, q: torch.where(q, p, ~p), lambda p, q: p & q, (p, q))
        return (
            torch.where(c, p, q), torch.where(c, p, False), torch.where(c, True, q), p.masked_fill(c, True),
            p.masked_fill(c, False), p.masked_fill(c, c.new_zeros(())), torch.where(c, a, b), inner,
        )  # fmt: skip


def test_truth_values_may_be_chosen_by_masks():
    draw = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 4, generator=draw), torch.randn(3, 4, generator=draw), torch.randn(4, generator=draw) > 0
    lowered = graphopt.lower(Masks().eval(), "onnxruntime", example_inputs=(a, b, c))
    for mask in (c, ~c, torch.zeros(4) > 0, torch.zeros(4) == 0):
        for got, expected in zip(lowered(a, b, mask), Masks()(a, b, mask), strict=True):
            assert got.dtype == expected.dtype and torch.equal(got, expected)
