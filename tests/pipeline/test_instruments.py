"""The shipped instruments, driven as a pipeline drives them."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from graphopt.ir.text import model_text
from graphopt.pipeline.instrument import (
    DumpDir,
    Instrument,
    PrintAfter,
    PrintAfterChange,
    Progress,
    Timing,
)
from graphopt.pipeline.pass_ import GraphPass
from graphopt.pipeline.report import PassRecord, Size


class Nothing(GraphPass):
    name: ClassVar[str] = "nothing"

    def run(self, context: Any) -> None: ...


class AppendTanh(GraphPass):
    name: ClassVar[str] = "append-tanh"

    def run(self, context: Any) -> None:
        graph = context.model.main
        (old,) = graph._outputs
        graph._outputs = [graph.append("tanh", old, types=[graph.type(old)])]


SIZE = Size(1, 0, 0)


def drive(instrument: Instrument, model: Any, *passes: GraphPass) -> None:
    context = SimpleNamespace(model=model, passes=passes)
    instrument.enter_pipeline(context)
    for pass_ in passes:
        instrument.before_pass(pass_, model)
        pass_.run(context)
        instrument.after_pass(pass_, model, PassRecord(str(pass_), SIZE, SIZE))
    instrument.exit_pipeline(context)


def test_an_instrument_lets_everything_run_unless_it_says_otherwise(model):
    assert Instrument().should_run(Nothing(), model) is True
    drive(Instrument(), model, Nothing())


def test_timing_has_a_row_per_pass(model):
    timing = Timing()
    drive(timing, model, Nothing(), AppendTanh())
    assert [name for name, _ in timing.seconds] == ["nothing", "append-tanh"]
    assert all(seconds >= 0 for _, seconds in timing.seconds)
    assert timing.total == pytest.approx(sum(s for _, s in timing.seconds))


def test_print_after_writes_the_text_after_every_pass(model):
    out = io.StringIO()
    before = model_text(model)
    drive(PrintAfter(stream=out), model, Nothing(), AppendTanh())
    assert out.getvalue() == f"# after nothing\n{before}# after append-tanh\n{model_text(model)}"


def test_print_after_named_passes_only(model):
    out = io.StringIO()
    drive(PrintAfter(["append-tanh"], out), model, Nothing(), AppendTanh(), Nothing())
    assert out.getvalue().count("# after") == 1
    assert out.getvalue().startswith("# after append-tanh\n")


def test_print_after_change_writes_a_diff_of_what_changed_and_nothing_else(model):
    out = io.StringIO()
    drive(PrintAfterChange(out), model, Nothing(), AppendTanh(), Nothing())
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["--- before", "+++ after append-tanh"]
    changed = [line for line in lines[2:] if line.startswith(("+", "-"))]
    assert sum("tanh(" in line for line in changed if line.startswith("+")) == 1
    assert any(line.startswith("-  output") for line in changed)
    assert not any("neg(" in line for line in changed)


def test_print_after_change_sees_what_happened_between_passes_as_no_change_of_the_pass(model):
    out = io.StringIO()
    instrument = PrintAfterChange(out)
    drive(instrument, model, Nothing())
    AppendTanh().run(SimpleNamespace(model=model))
    drive(instrument, model, Nothing())
    assert out.getvalue() == ""


def test_dump_dir_writes_numbered_files(model, tmp_path):
    folder = tmp_path / "new" / "dumps"
    before = model_text(model)
    drive(DumpDir(folder), model, Nothing(), AppendTanh())
    assert sorted(p.name for p in folder.iterdir()) == [
        "000_input.txt",
        "001_nothing.txt",
        "002_append-tanh.txt",
    ]
    assert (folder / "000_input.txt").read_text() == before == (folder / "001_nothing.txt").read_text()
    assert (folder / "002_append-tanh.txt").read_text() == model_text(model) != before


def test_progress_goes_to_its_stream_and_stops_when_a_pass_raises(model):
    out = io.StringIO()
    progress = Progress(out)
    drive(progress, model, Nothing(), AppendTanh())
    context = SimpleNamespace(model=model, passes=(Nothing(),))
    progress.enter_pipeline(context)
    progress.before_pass(Nothing(), model)
    progress.exit_pipeline(context)
    assert progress._bar is None
    progress.after_pass(Nothing(), model, PassRecord("nothing", SIZE, SIZE))
