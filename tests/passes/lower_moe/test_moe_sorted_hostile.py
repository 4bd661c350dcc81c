"""Tokens that torch sorts by expert, nearly as lower-moe knows it: put in their own order exactly, or left with the
reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphopt

pytest.importorskip("transformers.integrations.moe")

EXPERTS, WIDE, OUT = 4, 6, 5
TOKENS, CHOICES = 5, 2


def grouped(rows: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """A product of groups as transformers exports it."""
    result: torch.Tensor = torch.ops.transformers.grouped_mm_fallback(rows, weights, ends)
    return result


class Sorted(torch.nn.Module):
    """A mixture of experts as transformers sorts it, with places where it can be another one."""

    def __init__(self, *, scores: int = EXPERTS, bins: int = EXPERTS, divisor: int = CHOICES, last_first: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.gate = torch.nn.Linear(WIDE, scores)
        self.w1 = torch.nn.Parameter(torch.randn(bins, WIDE, WIDE))
        self.w2 = torch.nn.Parameter(torch.randn(bins, WIDE, OUT))
        self.bins, self.divisor, self.last_first = bins, divisor, last_first

    def sort(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.sort(ids, descending=self.last_first)

    def forward(self, x: torch.Tensor, given: torch.Tensor | None = None) -> Any:
        shares, top = self.gate(x).softmax(-1).topk(CHOICES, -1)
        ids = top.reshape(-1) if given is None else given
        expert, order = self.sort(ids)
        ends = torch.histc(expert.float(), self.bins, 0, self.bins - 1).cumsum(0, dtype=torch.int32)
        rows = x[torch.div(order, self.divisor, rounding_mode="floor")]
        hidden = self.between(grouped(rows, self.w1, ends), expert, order, shares)
        y = grouped(hidden, self.w2, ends)
        out = y[self.inverse(order, ids)].view(x.shape[0], CHOICES, OUT)
        return self.final((out * shares.unsqueeze(-1)).sum(1), y, expert, order, ids)

    def between(self, h: torch.Tensor, expert: torch.Tensor, order: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return torch.relu(h)

    def inverse(self, order: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.sort(order)[1]

    def final(self, result: Any, y: Any, expert: Any, order: Any, ids: Any) -> Any:
        return result


def variant(**methods: Any) -> torch.nn.Module:
    return type("Variant", (Sorted,), methods)()


def unsorted(module: torch.nn.Module, *, given: torch.Tensor | None = None) -> Any:
    """What the pass makes of `module`, run on several numbers of tokens, verified or not."""
    torch.manual_seed(0)
    more = () if given is None else (given,)
    sizes = ({0: torch.export.Dim("tokens", min=1, max=64)},) if given is None else None
    for verify in ("off", "match"):
        result = graphopt.optimize(
            module.eval(), ["lower-moe"], example_inputs=(torch.randn(TOKENS, WIDE), *more), dynamic_shapes=sizes,
            verify=verify, target="onnxruntime",
        )  # fmt: skip
        for count in (TOKENS,) if given is not None else (TOKENS, 1, 33):
            feed = (torch.randn(count, WIDE), *more)
            with torch.no_grad():
                expected, found = module(*feed), result.model(*feed)
            pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    assert not result.report.undone
    return result


def reasons(result: Any) -> str:
    """Why things were left as they are."""
    return "\n".join(result.report.passes[0].notes)


def is_unsorted(result: Any) -> bool:
    return any(a.rule == "grouped-experts" for a in result.report.kept)


def picked_in(order: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ids[order], order


KNOWN: dict[str, dict[str, Any]] = {
    "as transformers has it": {},
    "shares of the rows before the second product": {
        "between": lambda self, h, expert, order, shares: h * shares.reshape(-1)[order].unsqueeze(1)
    },
    "an inverse that is scattered": {
        "inverse": lambda self, order, ids: torch.empty_like(order).index_put((order,), torch.arange(order.shape[0]))
    },
    "argsort for the order": {"sort": lambda self, ids: picked_in(torch.argsort(ids), ids)},
    "argsort for the inverse": {"inverse": lambda self, order, ids: torch.argsort(order)},
    "ids that are read elsewhere too": {"final": lambda self, result, y, expert, order, ids: (result, ids * 2)},
}  # fmt: skip


@pytest.mark.parametrize("methods", KNOWN.values(), ids=KNOWN)
def test_sorted_tokens_are_put_in_their_own_order(methods: dict[str, Any]) -> None:
    assert is_unsorted(unsorted(variant(**methods)))


STRANGE: dict[str, tuple[Any, str]] = {
    "softmax over the rows": (
        {"between": lambda self, h, expert, order, shares: h.softmax(0)}, "softmax along the rows"),
    "a mean over the rows": (
        {"between": lambda self, h, expert, order, shares: h - h.mean()}, "along the rows"),
    "rows backwards": ({"between": lambda self, h, expert, order, shares: h.flip(0)}, "left alone"),
    "rows in the order of the tokens": (
        {"between": lambda self, h, expert, order, shares: h * shares.reshape(-1, 1)}, "may differ from row to row"),
    "the number of a row in the sorted order": (
        {"between": lambda self, h, expert, order, shares: h + order.unsqueeze(1).float()}, "reads more than rows"),
    "the order itself for its inverse": ({"inverse": lambda self, order, ids: order}, "left alone"),
    "the order of the ids for its inverse": ({"inverse": lambda self, order, ids: torch.sort(ids)[1]}, "picks rows"),
    "the inverse, last first": (
        {"inverse": lambda self, order, ids: torch.sort(order, descending=True)[1]}, "reads more than rows"),
    "the inverse of the inverse": (
        {"inverse": lambda self, order, ids: torch.sort(torch.sort(order)[1])[1]}, "reads more than rows"),
    "sorted rows are an output": (
        {"final": lambda self, result, y, expert, order, ids: (result, y)}, "an output of the graph is in"),
    "sorted experts are an output": (
        {"final": lambda self, result, y, expert, order, ids: (result, expert)}, "an output of the graph is in"),
    "the order is an output": (
        {"final": lambda self, result, y, expert, order, ids: (result, order)}, "an output of the graph is in"),
    "a sum of sorted rows is an output": (
        {"final": lambda self, result, y, expert, order, ids: (result, y.sum(0))}, "along the rows"),
}  # fmt: skip


@pytest.mark.parametrize("methods, reason", STRANGE.values(), ids=STRANGE)
def test_what_needs_the_sorted_order_keeps_it_and_the_reason_is_said(methods: dict[str, Any], reason: str) -> None:
    result = unsorted(variant(**methods))
    assert not is_unsorted(result) and reason in reasons(result)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"scores": 6}, "not certain to be numbers of"),
        ({"bins": 3}, "not certain to be numbers of"),
        ({"divisor": 3}, "not 3 rows for each"),
        ({"divisor": 20}, "not 20 rows for each"),
        ({"last_first": True}, "last expert first"),
    ],
    ids=str,
)
def test_sorted_tokens_that_do_not_add_up_are_left_and_the_reason_is_said(options: dict[str, Any], reason: str) -> None:
    example = (torch.randn(TOKENS, WIDE),)
    module = Sorted(**options).eval()
    result = graphopt.optimize(module, ["lower-moe"], example_inputs=example, target="onnxruntime")
    assert not result.report.applications and reason in reasons(result)


def test_ids_that_the_caller_gives_may_be_of_no_expert() -> None:
    result = unsorted(variant(), given=torch.arange(TOKENS * CHOICES) % EXPERTS)
    assert not is_unsorted(result) and "given are not certain to be numbers of" in reasons(result)
