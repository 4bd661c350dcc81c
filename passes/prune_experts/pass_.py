"""The pass prune-experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.errors import PipelineError
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
from graphopt.passes.prune_experts.loads import Load, loads
from graphopt.passes.prune_experts.mixtures import mixtures
from graphopt.passes.prune_experts.removal import NotRemovable, mask, places_of, remove
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal
from graphopt.verify.compare import EPS, relative_error
from graphopt.verify.execute import CannotRun, model_runner

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context
    from graphopt.verify.approximation import Approximation

UNITS = 64.0
"""Units of rounding by which removed and masked experts may differ."""


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
        approximation = context.approximation(self)
        if self.share is None and approximation.limit == float("inf"):
            raise PipelineError("prune-experts: an infinite budget sets no limit, so say which ones: share=0.01")
        found = mixtures(context.model.main)
        known = loads(context.model, found, approximation.feeds)
        for number, load in enumerate(known):
            if context.ledger.exhausted:
                break
            _prune(self, context, approximation, number, load)
        approximation.settle(approximation.measure(context.model) if context.approximated else approximation.spent)


def _prune(options: PruneExperts, context: Context, approximation: Approximation, number: int, load: Load) -> None:
    """Remove experts of one mixture, as many as the budget allows."""
    try:
        places = places_of(mixtures(context.model.main)[number])
    except NotRemovable as reason:
        context.notes.append(f"{load.name} keeps all experts: {reason}")
        return
    most = load.experts // places.groups - places.least
    if options.share is not None:
        order = np.sort(load.share.reshape(places.groups, -1), axis=1)
        most = min(most, int((order <= options.share).all(axis=0).sum()))
    chosen = 0
    while chosen < most:
        try:
            trial = _trial(context.model, number, _kept(load, places.groups, chosen + 1))
        except CannotEmit as reason:
            context.notes.append(f"{load.name}: a model with fewer experts cannot be written: {reason}")
            break
        if not approximation.measure(trial) <= approximation.limit:
            break
        chosen += 1
    if not chosen:
        context.notes.append(f"{load.name} keeps all {load.experts} experts")
        return
    keep = _kept(load, places.groups, chosen)
    nodes = tuple(context.model.main.node_name(n) for n in places.calls)
    change = partial(_remove, context, approximation, number, keep)
    if context.apply("experts", nodes, change, approximate=True) is not None:
        gone = ", ".join(map(str, sorted({*range(load.experts)} - set(keep.tolist()))))
        context.model.refresh()
        context.notes.append(f"{load.name}: {load.experts} → {len(keep)} experts, without {gone}")


def _kept(load: Load, groups: int, less: int) -> np.ndarray[Any, Any]:
    """The experts that stay if of each group the `less` go that have the fewest tokens."""
    members = load.tokens.reshape(groups, -1)
    stay = np.sort(np.argsort(members, axis=1, kind="stable")[:, less:], axis=1)
    return (stay + members.shape[1] * np.arange(groups)[:, None]).reshape(-1)


def _trial(model: Model, number: int, keep: np.ndarray[Any, Any], edit: Any = remove) -> Model:
    """A copy of the model without the others. Raises CannotEmit."""
    copy = model.copy()
    journal = Journal(copy.main)
    edit(places_of(mixtures(copy.main)[number]), keep, journal)
    journal.commit()
    copy.refresh()
    return copy


def _remove(
    context: Context, approximation: Approximation, number: int, keep: np.ndarray[Any, Any]
) -> tuple[int, Evidence]:
    evidence = Evidence("types" if context.verify == "structure" else "none")
    if context.verify in ("match", "model"):
        evidence = _compared(context.model, approximation, number, keep)
    graph = context.model.main
    journal = Journal(graph)
    try:
        remove(places_of(mixtures(graph)[number]), keep, journal)
    except BaseException:
        journal.rollback()
        raise
    journal.commit()
    return len(keep), evidence


def _compared(model: Model, approximation: Approximation, number: int, keep: np.ndarray[Any, Any]) -> Evidence:
    """Removed experts against masked ones, on the tuning data. Raises Rejected."""
    masked, removed = (_trial(model, number, keep, edit) for edit in (mask, remove))
    worst = 0.0
    try:
        for feed in approximation.feeds:
            for a, b in zip(model_runner(masked)(feed), model_runner(removed)(feed), strict=True):
                error = relative_error(a.astype(np.float64), b.astype(np.float64))
                worst = max(worst, error / (UNITS * EPS.get(a.dtype.name, EPS["float32"])))
    except CannotRun as failure:
        raise Rejected(f"it cannot be run to be compared: {failure}", Evidence("none")) from failure
    evidence = Evidence("executed", len(approximation.feeds), worst)
    if not worst <= 1.0:
        raise Rejected(f"removed and masked experts differ by {worst:.2g} times what rounding may do", evidence)
    return evidence
