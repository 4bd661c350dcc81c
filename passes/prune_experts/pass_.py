"""The pass prune-experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.passes.prune_experts.fewer import Candidates, Plan, use_fewer_experts
from graphopt.passes.prune_experts.loads import Load
from graphopt.passes.prune_experts.removal import mask, remove
from graphopt.pipeline.pass_ import GraphPass

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context


@dataclass(frozen=True)
class PruneExperts(GraphPass):
    """Removes experts that calibration data has little use for: their weights, their rows of the router and their
    corrections.

    Mathematics: a router selects the k best of E scores; without some of the experts it selects the k best of the
    others. Experts go by the number of tokens that are routed to them on the tuning data, the least first, one mixture
    after the other in the order of the graph; of each group of a router with groups equally many. Where the gates are
    normalised after the selection, as in Mixtral, or each is a sigmoid of its own, removing an expert without a token
    changes nothing on that data; where they are a softmax over all E, the others take over what it had.

    Refused, with the reason: scores or numbers of experts that leave the graph or are used in a way that is not known;
    weights that are not constant or read by something else; fewer experts than are selected.

    Contract: approximate. Each mixture is one application: the model without its experts must compute what the model
    computes in which minus infinity is added to their scores, up to rounding. Whether that is good enough the budget
    says, on held-out data. Source: removal by frequency of use, Chen et al. 2022 (arXiv 2206.00277).
    """

    name: ClassVar[str] = "prune-experts"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget, on held-out data"

    share: float | None = None
    "Experts with at most this share of the tokens go, if the budget allows; 0 for those without any."

    def __post_init__(self) -> None:
        if self.share is not None and not 0.0 <= self.share < 1.0:
            raise ValueError(f"share={self.share}: expected a share in [0, 1)")

    def run(self, context: Context) -> None:
        ask = "which ones: share=0.01"
        use_fewer_experts(self, context, partial(_plans, self), asked=self.share is not None, ask=ask)


def _plans(options: PruneExperts, of: Candidates) -> Iterator[Plan]:
    """One expert less of each group after the other."""
    load, groups = of.load, of.places.groups
    most = load.experts // groups - of.places.least
    if options.share is not None:
        order = np.sort(load.share.reshape(groups, -1), axis=1)
        most = min(most, int((order <= options.share).all(axis=0).sum()))
    for less in range(1, most + 1):
        keep = _kept(load, groups, less)
        gone = ", ".join(map(str, sorted({*range(load.experts)} - set(keep.tolist()))))
        told = f"{len(keep)} experts, without {gone}"
        yield Plan(partial(remove, keep=keep), partial(mask, keep=keep), told)


def _kept(load: Load, groups: int, less: int) -> np.ndarray[Any, Any]:
    """The experts that stay if of each group the `less` go that have the fewest tokens."""
    members = load.tokens.reshape(groups, -1)
    stay = np.sort(np.argsort(members, axis=1, kind="stable")[:, less:], axis=1)
    return (stay + members.shape[1] * np.arange(groups)[:, None]).reshape(-1)
