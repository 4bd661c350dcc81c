"""One denoiser call as graphs: the step, and what was taken out of it because it is known earlier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from graphopt.ir.graph import TensorType
from graphopt.ir.model import Model

FeedKind: TypeAlias = Literal["sample", "timestep", "condition", "prologue", "table"]


@dataclass(frozen=True)
class Feed:
    """Where an input of a unit comes from."""

    kind: FeedKind
    name: str = ""
    """The condition's name, if the kind is "condition"."""
    index: int = 0
    """Which result of the prologue or of the table, if it comes from there."""

    def __str__(self) -> str:
        if self.kind == "condition":
            return self.name
        return f"{self.kind}[{self.index}]" if self.kind in ("prologue", "table") else self.kind


@dataclass(frozen=True)
class Unit:
    """A graph and where its inputs come from."""

    model: Model
    feeds: tuple[Feed, ...]
    """One for each input of `model.main`, in order."""


@dataclass(frozen=True)
class Known:
    """What is known when a unit runs, in whatever kind of arrays its runtime takes."""

    conditions: Mapping[str, Any]
    prologue: Sequence[Any] = ()
    table: Sequence[Any] = ()
    timestep: Any = None
    sample: Any = None

    def feeds(self, unit: Unit) -> list[Any]:
        """The inputs of `unit`, in order."""
        return [self._value(feed) for feed in unit.feeds]

    def _value(self, feed: Feed) -> Any:
        match feed.kind:
            case "condition":
                return self.conditions[feed.name]
            case "prologue":
                return self.prologue[feed.index]
            case "table":
                return self.table[feed.index]
            case "timestep":
                return self.timestep
        return self.sample


@dataclass(frozen=True)
class Body:
    """What one row of a program calls.

    The first output of `step` is the model's prediction. Its inputs may come from the other two units: the prologue
    runs once a request and reads conditions only; the table gives its results for each row of the schedule, before the
    loop, and reads timestep, conditions and the prologue's results.
    """

    step: Unit
    prologue: Unit | None = None
    table: Unit | None = None
    batched: bool = False
    """Whether the table takes all rows that call the body at once: then its timestep and all its results have a new
    first axis, one entry for each of these rows. Otherwise it runs once for each of them."""

    def units(self) -> Iterator[tuple[str, Unit]]:
        """The units that exist, by name, in the order in which they run."""
        for name in ("prologue", "table", "step"):
            unit: Unit | None = getattr(self, name)
            if unit is not None:
                yield name, unit

    def table_of_row(self, run: Callable[[list[Any]], Sequence[Any]], known: Known) -> Sequence[Any]:
        """The table's results for one row, whose timestep is known; `run` runs its graph. A table that takes all rows
        is given this one alone."""
        if self.table is None:
            return ()
        if not self.batched:
            return run(known.feeds(self.table))
        alone = replace(known, timestep=known.timestep[None])
        return [result[0, ...] for result in run(alone.feeds(self.table))]

    def result_types(self, name: str) -> list[TensorType | None]:
        """The types of a unit's results as one row sees them, as far as they are known."""
        unit: Unit = getattr(self, name)
        main = unit.model.main
        types = [main.type(value) for value in main.outputs()]
        return [_of_row(t) for t in types] if name == "table" and self.batched else types


def _of_row(type_: TensorType | None) -> TensorType | None:
    return type_ if type_ is None or type_.shape is None else TensorType(type_.dtype, type_.shape[1:])
