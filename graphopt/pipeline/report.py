"""What a run did: per pass and rule what was tried, kept and undone, on what evidence, and what it brought.

The data is plain: `to_dict` and `from_dict` are exact inverses, and the JSON of two runs on the same input is
the same text unless times are asked for, or proofs, whose seeds are drawn. `report_table.py` shows it to people.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graphopt.rewrite.contract import Application, Evidence, Proof
from graphopt.rewrite.ledger import RuleStats

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Application", "Evidence", "PassRecord", "Report", "RuleStats", "Size", "Spending"]


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    nodes: int
    """Nodes of all regions."""
    parameters: int
    """Elements of all stored weights."""
    bytes: int
    """Bytes of all stored weights."""
    flops: int | None = None
    """Floating-point operations of one run, two per multiply-add; None where shapes or ops leave it open."""


@dataclass(frozen=True)
class Spending:
    """What an approximate pass has spent of the budget, measured on held-out data."""

    metric: str
    limit: float
    """What the metric may not exceed; infinity if it was only measured."""
    before: float
    """The metric when the pass began, against the model that the run started from."""
    after: float
    """The metric of what the pass left, against the same model."""
    changes: int
    """How many approximate changes it kept. Without any, what it spent is rounding, which no limit concerns."""


@dataclass
class PassRecord:
    """One pass of the pipeline."""

    text: str
    """The pass as it is written in a pipeline, options included."""
    before: Size
    after: Size
    rules: dict[str, RuleStats] = field(default_factory=dict)
    applications: list[Application] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    where: str = ""
    """Which graph of a sampling program the pass ran on ("denoiser/step"); empty if there is but one."""
    spending: Spending | None = None
    """What it has spent of the budget, if it is an approximate pass."""

    @property
    def name(self) -> str:
        return self.text.split("{", 1)[0]

    @property
    def title(self) -> str:
        """Name and place, for people."""
        return f"{self.name} on {self.where}" if self.where else self.name

    def of_rule(self, rule: str) -> list[Application]:
        """The applications of one rule, in order."""
        return [a for a in self.applications if a.rule == rule]

    def why_not(self, most: int | None = None) -> list[str]:
        """A line a rule of `most` reasons: "5 conv-batch-norm refused: conv has other users (3), ..."."""
        return [_why_not(name, stats, most) for name, stats in sorted(self.rules.items()) if stats.refused]


@dataclass
class Report:
    """One run of a pipeline on one model."""

    model: str
    """Name of the model: a file name, a class name."""
    pipeline: str
    """The pipeline as text; parsed again it gives the same passes."""
    verify: str
    """Verification level: "off", "structure", "match" or "model"."""
    passes: list[PassRecord] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def applications(self) -> list[Application]:
        """Every application of every pass, in order."""
        return [a for record in self.passes for a in record.applications]

    @property
    def kept(self) -> list[Application]:
        return [a for a in self.applications if a.status == "kept"]

    @property
    def undone(self) -> list[Application]:
        return [a for a in self.applications if a.status == "undone"]

    @property
    def approximated(self) -> bool:
        """Whether an approximate change was kept."""
        return any(p.spending is not None and p.spending.changes > 0 for p in self.passes)

    def coverage(self) -> float:
        """Share of the kept applications that carry evidence, in [0, 1]; 1 if nothing was kept."""
        kept = self.kept
        return sum(a.evidence.counts for a in kept) / len(kept) if kept else 1.0

    def proved(self) -> Counter[str]:
        """How many kept applications have each level of proof; "construction" for those that need none, and "not asked"
        where no proof was tried."""
        found: Counter[str] = Counter()
        for application in self.kept:
            evidence = application.evidence
            other = evidence.kind if evidence.kind == "construction" else "not asked"
            found[other if evidence.proof is None else evidence.proof.level] += 1
        return found

    def worst(self) -> float:
        """Largest error of a kept application as a multiple of what is allowed; 0 if nothing was kept."""
        return worst_of(self.kept)

    def why_not(self) -> list[str]:
        """The refusals of every pass, a line a rule."""
        return [line for record in self.passes for line in record.why_not()]

    def to_dict(self, *, times: bool = True) -> dict[str, Any]:
        """The report as JSON-able data; without `times` it depends on the input, the pipeline and the seeds of proofs
        alone."""
        data: dict[str, Any] = {
            "model": self.model,
            "pipeline": self.pipeline,
            "verify": self.verify,
            "coverage": self.coverage(),
            "passes": [_pass_dict(p) for p in self.passes],
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
        return data if times else _without_times(data)

    def to_json(self, *, times: bool = False) -> str:
        """`to_dict` as JSON with sorted keys."""
        return json.dumps(self.to_dict(times=times), indent=2, sort_keys=True, allow_nan=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The inverse of `to_dict`; times that are absent are 0."""
        return cls(
            model=data["model"],
            pipeline=data["pipeline"],
            verify=data["verify"],
            passes=[_pass_from(p) for p in data["passes"]],
            seconds=data.get("seconds", 0.0),
            notes=list(data["notes"]),
        )

    def __rich__(self) -> RenderableType:
        from graphopt.pipeline.report_table import report_table

        return report_table(self)

    def __str__(self) -> str:
        from graphopt.pipeline.report_table import report_text

        return report_text(self)


def worst_of(applications: Iterable[Application]) -> float:
    """Largest error among `applications`, as a multiple of what is allowed. A NaN is the worst of all."""
    worst = 0.0
    for application in applications:
        error = application.evidence.worst
        if math.isnan(error):
            return error
        worst = max(worst, error)
    return worst


def _why_not(rule: str, stats: RuleStats, most: int | None) -> str:
    reasons = sorted(stats.refused.items(), key=lambda item: (-item[1], item[0]))
    counted = [f"{reason} ({count})" for reason, count in reasons[:most]]
    if len(reasons) > len(counted):
        others = sum(count for _, count in reasons[len(counted) :])
        counted.append(f"{len(reasons) - len(counted)} other reasons ({others})")
    return f"{stats.refused.total()} {rule} refused: {', '.join(counted)}"


# ---- data ------------------------------------------------------------------------------------------------


def _pass_dict(record: PassRecord) -> dict[str, Any]:
    return {
        "pass": record.text,
        "before": vars(record.before).copy(),
        "after": vars(record.after).copy(),
        "rules": {name: _stats_dict(stats) for name, stats in record.rules.items()},
        "applications": [_application_dict(a) for a in record.applications],
        "seconds": record.seconds,
        "notes": list(record.notes),
        "where": record.where,
        "spending": None if record.spending is None else _spending_dict(record.spending),
    }


def _pass_from(data: dict[str, Any]) -> PassRecord:
    return PassRecord(
        text=data["pass"],
        before=Size(**data["before"]),
        after=Size(**data["after"]),
        rules={name: _stats_from(stats) for name, stats in data["rules"].items()},
        applications=[_application_from(a) for a in data["applications"]],
        seconds=data.get("seconds", 0.0),
        notes=list(data["notes"]),
        where=data["where"],
        spending=None if data["spending"] is None else _spending_from(data["spending"]),
    )


def _spending_dict(spending: Spending) -> dict[str, Any]:
    numbers = {"limit": spending.limit, "before": spending.before, "after": spending.after}
    texts = {name: _number(value) for name, value in numbers.items()}
    return {"metric": spending.metric, "changes": spending.changes} | texts


def _spending_from(data: dict[str, Any]) -> Spending:
    limit, before, after = (float(data[name]) for name in ("limit", "before", "after"))
    return Spending(data["metric"], limit, before, after, data["changes"])


def _stats_dict(stats: RuleStats) -> dict[str, Any]:
    return vars(stats) | {"refused": dict(sorted(stats.refused.items()))}


def _stats_from(data: dict[str, Any]) -> RuleStats:
    return RuleStats(**(data | {"refused": Counter(data["refused"])}))


def _application_dict(application: Application) -> dict[str, Any]:
    evidence = application.evidence
    twin = None if evidence.twin is None else _number(evidence.twin)
    proof = None if evidence.proof is None else vars(evidence.proof)
    other = {"worst": _number(evidence.worst), "twin": twin, "notes": list(evidence.notes), "proof": proof}
    return application._asdict() | {"nodes": list(application.nodes), "evidence": vars(evidence) | other}


def _application_from(data: dict[str, Any]) -> Application:
    evidence = data["evidence"]
    twin = evidence["twin"]
    numbers = {"worst": float(evidence["worst"]), "twin": None if twin is None else float(twin)}
    proof = evidence.get("proof")
    rest = {"notes": tuple(evidence["notes"]), "proof": None if proof is None else Proof.from_dict(proof)}
    known = Evidence(**(evidence | numbers | rest))
    return Application(**(data | {"nodes": tuple(data["nodes"]), "evidence": known}))


def _number(value: float) -> float | str:
    """JSON has no infinity and no NaN: they are texts that `float` reads."""
    return value if math.isfinite(value) else str(value)


def _without_times(data: Any) -> Any:
    match data:
        case dict():
            return {k: _without_times(v) for k, v in data.items() if k not in ("seconds", "milliseconds")}
        case list():
            return [_without_times(v) for v in data]
    return data


def rows(record: PassRecord) -> Iterator[tuple[str, RuleStats, float | None]]:
    """Rule, statistics and worst kept error of every rule that was tried; no error where nothing was run."""
    for name, stats in sorted(record.rules.items()):
        executed = [a for a in record.of_rule(name) if a.status == "kept" and a.evidence.inputs > 0]
        yield name, stats, worst_of(executed) if executed else None
