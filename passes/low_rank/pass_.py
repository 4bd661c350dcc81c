"""low-rank: the pass and its options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from graphopt.errors import PipelineError
from graphopt.passes.low_rank.activations import statistics
from graphopt.passes.low_rank.candidates import Choices, choices
from graphopt.passes.low_rank.choice import exact_plan, plan_of, search, steps
from graphopt.passes.low_rank.latency import timed
from graphopt.passes.low_rank.layers import find_layers
from graphopt.passes.low_rank.refit import Known, Refitted, refit
from graphopt.passes.low_rank.splitting import Splitter
from graphopt.pipeline.pass_ import GraphPass

if TYPE_CHECKING:
    from graphopt.passes.low_rank.choice import Plan
    from graphopt.pipeline.context import Context


@dataclass(frozen=True)
class LowRank(GraphPass):
    """Splits linear layers and convolutions into chains of thinner ones, as far as the budget allows.

    Mathematics: a weight W [in, out] becomes F S of rank r, at r (in + out) instead of in * out multiply-adds, so that
    nothing is gained from the break-even r* = in * out / (in + out) on. F S = W Q Q^T with the first r right singular
    vectors Q of L^T W, where L L^T = X^T X of the inputs X that the layer has on the tuning data: no other F S of that
    rank leaves a smaller |X W - X F S|, which is the square root of the sum of the squares of the singular values
    that are dropped. Convolutions likewise by channels; or separated into a vertical and a horizontal one, or as a
    core between two maps of channels (Tucker), with the last factor fitted to the data.

    Which layer gets which rank: the convex hull of error against cost of each layer, walked along the cheapest error
    first; how far is decided by bisection with the budget's metric on held-out data. With rank, energy or ratio, each
    layer has but that one choice. A weight that is of low rank already is split under rounding, for finite inputs,
    without any budget.

    Then the chains are refitted, one after the other, to the inputs that they have in the split model: by reduced-rank
    regression to what the original gives, of kernels by least squares for the last factor. That is kept where the
    budget's metric on the tuning data does not get worse and the budget holds on held-out data; what it saves of the
    budget buys more steps.

    Refused, with the reason: grouped convolutions, weights that others read, layers whose chain does not cost less
    (by min-gain), layers in control-flow bodies, names in skip.

    Contract: approximate. The product F S is declared; that the chain computes what the layer with the declared
    weight does, is verified for each layer as rounding. Source: Wang et al., "SVD-LLM", arXiv 2403.07378; each rule
    names its own.
    """

    name: ClassVar[str] = "low-rank"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget, on held-out data"

    rank: int | None = None
    "The rank of every layer for which it pays."
    energy: float | None = None
    "Share of |X W|^2 that every layer has to keep: its lowest rank that does, in (0, 1]."
    ratio: float | None = None
    "Share of its parameters that a layer may keep: its highest rank that does, in (0, 1)."
    multiple: int = 8
    "Ranks are multiples of this."
    min_gain: float = 0.1
    "A chain has to save at least this share of the layer's cost, in [0, 1)."
    whiten: bool = True
    "Choose factors for the inputs that the layer has on the tuning data; else for the weight alone."
    refit: bool = True
    "Refit factors to the inputs that a layer has once those before it are split; not with whiten=false."
    conv: Literal["best", "channels", "spatial", "tucker", "none"] = "best"
    "How convolutions are split: by channels, vertically and horizontally, by a core between two maps, or what is best."
    embedding: bool = False
    "Split tables of embeddings too. That saves parameters, not FLOPs: needs cost=parameters, or rank, energy or ratio."
    cost: Literal["flops", "measured", "parameters"] = "flops"
    "What is saved: FLOPs, time of the layer on the target (its storage's runtime if there is none), or parameters."
    skip: tuple[str, ...] = ()
    "Names of nodes or weights that are left alone; * stands for anything."

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "ratio") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other: give one of them")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank={self.rank}: expected a number from 1 on")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ValueError(f"energy={self.energy}: expected a share in (0, 1]")
        if self.ratio is not None and not 0.0 < self.ratio < 1.0:
            raise ValueError(f"ratio={self.ratio}: expected a share in (0, 1)")
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple}: expected a number from 1 on")
        if not 0.0 <= self.min_gain < 1.0:
            raise ValueError(f"min_gain={self.min_gain}: expected a share in [0, 1)")

    @property
    def selection(self) -> str:
        """The one of rank, energy and ratio that is given, as text; empty if there is none."""
        named = ((n, getattr(self, n)) for n in ("rank", "energy", "ratio"))
        return next((f"{name} {value:g}" for name, value in named if value is not None), "")

    @property
    def selects(self) -> bool:
        """Whether rank, energy or ratio decide about ranks."""
        return bool(self.selection)

    def run(self, context: Context) -> None:
        approximation = context.approximation(self)
        if math.isinf(approximation.limit) and not self.selects:
            raise PipelineError(
                f"{self.name}: an unlimited budget leaves open which ranks are wanted; give rank, energy or ratio, as "
                f"in {self.name}{{energy=0.99}}, or a limit"
            )
        model = context.model
        layers, left = find_layers(model, context.ledger, conv=self.conv, embedding=self.embedding, skip=self.skip)
        known = statistics(model, layers, approximation.feeds, approximation.weights)
        found = [choices(layer, what, self) for layer, what in known]
        if self.cost == "measured":
            found = [timed(c, model, approximation.feeds, context.target, self.min_gain) for c in found]
        splitter = Splitter(context, approximation, found)
        plan, measured = self._plan(found, splitter)
        measured |= splitter.errors({name: c for name, c in plan.items() if not c.refitted})
        splitter.apply(plan)
        context.notes += [*_split_lines(found, plan, measured, splitter), *_alone_lines(left, found, plan)]
        approximation.settle(approximation.measure(model))

    def _plan(self, found: list[Choices], splitter: Splitter) -> tuple[Plan, dict[str, float]]:
        """What becomes of the layers: the exact chains, and as many steps as the budget allows, refitted ones if they
        allow as many or more. And the measured errors of the layers that were refitted."""
        base, path = exact_plan(found), steps(found)
        total = sum(c.cost for c in found)
        notes, approximation = splitter.context.notes, splitter.approximation

        def first(count: int) -> Plan:
            return plan_of(base, path[:count], found)

        taken = search(path, total, lambda count: splitter.measure(first(count)) <= approximation.limit)
        best, refusal, known = Refitted(first(taken), {}), "", Known()

        def refitted(more: int) -> bool:
            nonlocal best, refusal
            plan = first(taken + more)
            trial = refit(splitter, found, plan, known)
            refusal = _refusal(splitter, plan, trial) if trial.measured else ""
            if trial.measured and not refusal:
                best = trial
            return best is trial

        if self.refit and self.whiten and not search(path[taken:], total, refitted, near=True):
            refitted(0)
        if refusal and not best.measured:
            notes.append(f"factors are not refitted: {refusal}")
        if path and all(c.exact for c in best.plan.values()):
            notes.append(
                f"nothing approximate keeps {approximation.metric} within {approximation.limit:g} on held-out data; "
                "the weights stay what they are"
            )
        return best.plan, best.measured


def _refusal(splitter: Splitter, plan: Plan, trial: Refitted) -> str:
    """Why `plan` is not to be refitted; empty if it is."""
    if not splitter.measure_tuning(trial.plan) <= splitter.measure_tuning(plan):
        return f"{splitter.approximation.metric} on the tuning data is no better with refitted ones"
    if not splitter.measure(trial.plan) <= splitter.approximation.limit:
        return f"{splitter.approximation.metric} of refitted ones is beyond the budget on held-out data"
    return ""


def _split_lines(found: list[Choices], plan: Plan, measured: dict[str, float], splitter: Splitter) -> list[str]:
    """What became of every layer of the plan."""
    lines = []
    for choice in found:
        name, shape = choice.layer.name, "x".join(map(str, choice.layer.shape))
        candidate = plan.get(name)
        if candidate is None:
            continue
        status = "" if name in splitter.kept else ", not kept"
        if candidate.exact:
            lines.append(f"{name} ({shape}) is of low rank: {candidate} under rounding, spends no budget{status}")
            continue
        error = "error of the weight" if not choice.known else "error"
        refitted = ", refitted to the split model" if candidate.refitted else ""
        lines.append(
            f"{name} ({shape}): {candidate}{refitted}, cost {candidate.cost / choice.cost:.2f}, predicted {error} "
            f"{math.sqrt(candidate.error):.4g}, measured {measured[name]:.4g}{status}"
        )
    return lines


def _alone_lines(left: list[tuple[str, str]], found: list[Choices], plan: Plan) -> list[str]:
    """Why the other layers are left alone: a line a reason."""
    open_ = [(c.layer.name, c.reason or "no chain fits the budget") for c in found if c.layer.name not in plan]
    names: dict[str, list[str]] = {}
    for name, reason in (*left, *open_):
        names.setdefault(reason, []).append(name)
    return [f"left alone, {reason}: {', '.join(some)}" for reason, some in names.items()]
