"""Observers of a pipeline: five methods, as in TVM's pass instruments. Timing, dumps, diffs, progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from graphopt.errors import PipelineError
from graphopt.ir.diff import text_diff
from graphopt.ir.model import Model
from graphopt.ir.text import model_text
from graphopt.pipeline.pass_ import Pass
from graphopt.pipeline.report import PassRecord

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class PipelineContext(Protocol):
    """What a pipeline tells an observer about itself."""

    @property
    def model(self) -> Model: ...

    @property
    def passes(self) -> Sequence[Pass]: ...


class Instrument:
    """Base of observers: every method may be overridden, none must be. Observers never edit the model."""

    def enter_pipeline(self, context: PipelineContext) -> None:
        """Called before the first pass."""

    def exit_pipeline(self, context: PipelineContext) -> None:
        """Called after the last pass, also when one of them raised."""

    def should_run(self, pass_: Pass, model: Model) -> bool:
        """Whether `pass_` runs; it does if every instrument says so."""
        return True

    def before_pass(self, pass_: Pass, model: Model) -> None:
        """Called before `pass_` runs."""

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        """Called after `pass_` has run, with what it did."""


class Timing(Instrument):
    """Wall time of every pass."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []
        """Pass text and seconds, in the order in which they ran."""
        self._started = 0.0

    def before_pass(self, pass_: Pass, model: Model) -> None:
        self._started = time.perf_counter()

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        self.seconds.append((str(pass_), time.perf_counter() - self._started))

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.seconds)


class PrintAfter(Instrument):
    """Writes the model's text after each pass, or after those named."""

    def __init__(self, names: Collection[str] | None = None, stream: TextIO | None = None) -> None:
        """
        Args:
            names: names of passes; None for every pass.
            stream: where to write; None for standard error.
        """
        self.names = names
        self.stream = stream

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        if self.names is None or pass_.name in self.names:
            _write(self.stream, f"# after {pass_}\n{model_text(model)}")


class PrintAfterChange(Instrument):
    """Writes a unified diff of the model's text after each pass that changed it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._fingerprint: tuple[str, ...] = ()
        self._text = ""

    def before_pass(self, pass_: Pass, model: Model) -> None:
        fingerprint = model_fingerprint(model)
        if fingerprint != self._fingerprint:
            self._fingerprint, self._text = fingerprint, model_text(model)

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        fingerprint = model_fingerprint(model)
        if fingerprint == self._fingerprint:
            return
        before, self._text, self._fingerprint = self._text, model_text(model), fingerprint
        _write(self.stream, text_diff(before, self._text, "before", f"after {pass_}"))


class DumpDir(Instrument):
    """Writes `000_input.txt`, then `001_<pass>.txt`, `002_<pass>.txt` ... into a folder, made if need be."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._count = 0

    def before_pass(self, pass_: Pass, model: Model) -> None:
        if self._count == 0:
            self._dump("input", model)

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        self._dump(pass_.name, model)

    def _dump(self, name: str, model: Model) -> None:
        file = self.path / f"{self._count:03d}_{name}.txt"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file.write_text(model_text(model), encoding="utf-8")
        except OSError as error:
            raise PipelineError(
                f"{file}: the model's text cannot be written there ({error.strerror or error}); expected a folder for "
                "dumps, or a new one's path"
            ) from error
        self._count += 1


class Progress(Instrument):
    """A progress bar on standard error while the pipeline runs; gone when it is done."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def enter_pipeline(self, context: PipelineContext) -> None:
        from rich.console import Console
        from rich.progress import Progress as Bar

        self._bar = Bar(console=Console(file=self.stream or sys.stderr), transient=True)
        self._task = self._bar.add_task("passes", total=len(context.passes))
        self._bar.start()

    def exit_pipeline(self, context: PipelineContext) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def before_pass(self, pass_: Pass, model: Model) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=pass_.name)

    def after_pass(self, pass_: Pass, model: Model, record: PassRecord) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)


def model_fingerprint(model: Model) -> tuple[str, ...]:
    """The fingerprints of every region, in order."""
    return tuple(region.fingerprint() for region in model.regions())


def _write(stream: Any, text: str) -> None:
    (stream or sys.stderr).write(text)
