"""`optimize` on a sampling program: graph passes on every graph, program passes on the whole."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_denoisers import tiny

import graphopt
from graphopt.errors import ModelError, PipelineError, RuleError, VerificationError
from graphopt.ir.text import model_text
from graphopt.program.guidance import Guidance


@pytest.fixture(scope="module")
def program():
    unet, inputs = tiny("unet")
    return graphopt.Sampler(unet, DDIMScheduler(clip_sample=False), 3, example_inputs=inputs)


def sample(program):
    generator = torch.Generator().manual_seed(1)
    noise, text = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 6, 24, generator=generator)
    return program(noise, encoder_hidden_states=text)


def text_of(program):
    return model_text(program.bodies["denoiser"].step.model)


def test_graph_passes_run_on_the_graphs_of_a_program_and_leave_it_as_it_was(program):
    before, expected = text_of(program), sample(program)
    result = graphopt.optimize(program, ["clean-up"], verify="model")
    assert result.report.kept and result.report.coverage() == 1.0
    assert [r.where for r in result.report.passes] == ["denoiser/step"]
    assert text_of(program) == before and text_of(result.program) != before
    got = sample(result)
    assert float((got - expected).abs().max() / expected.abs().max()) <= 1e-5
    assert any(note.startswith("end to end") for note in result.report.notes)


def test_limit_and_skip_count_applications_of_a_program(program):
    first = graphopt.optimize(program, ["clean-up"], limit=1).report
    assert len(first.kept) == 1
    skipped = graphopt.optimize(program, ["clean-up"], skip=[first.kept[0].id]).report
    assert first.kept[0].id not in {a.id for a in skipped.kept}


@dataclass(frozen=True)
class Reverse(graphopt.ProgramPass):
    """Runs the schedule backwards: nonsense, to be caught."""

    name: ClassVar[str] = "reverse"

    def run(self, program, context):
        schedule = program.schedule
        context.notes.append("reversed")
        return replace(program, schedule=replace(schedule, timesteps=schedule.timesteps[::-1].copy()))


def test_a_program_pass_gets_the_program_and_its_notes_are_reported(program):
    result = graphopt.optimize(program, [Reverse()])
    assert list(result.program.schedule.timesteps) == list(program.schedule.timesteps)[::-1]
    said = "reverse made another program and no application: nothing has verified that change"
    assert result.report.passes[0].notes == ["reversed", said]


def test_a_program_that_samples_something_else_is_caught_end_to_end(program):
    with pytest.raises(VerificationError, match="end to end: .* no single one to blame. Run again with fewer passes"):
        graphopt.optimize(program, [Reverse()], verify="model")


@dataclass(frozen=True)
class Returns(graphopt.ProgramPass):
    """Returns what a function makes of the program."""

    name: ClassVar[str] = "returns"

    def run(self, program, context):
        return made(program)


def made(program):
    return None


def test_a_program_pass_returns_a_program_of_which_every_row_calls_a_body(program, monkeypatch):
    with pytest.raises(RuleError, match="pass returns returned None; run returns the program"):
        graphopt.optimize(program, [Returns()])
    for change in ({"calls": program.calls[:1]}, {"calls": ("other",) * len(program.schedule)}):
        monkeypatch.setitem(globals(), "made", lambda given, change=change: replace(given, **change))
        with pytest.raises(ModelError, match="one call of a body for each row .* changes `calls` with them"):
            graphopt.optimize(program, [Returns()])


def test_sizes_of_a_program_cannot_be_opened(program):
    for take in (graphopt.optimize, graphopt.lower):
        with pytest.raises(ModelError, match="the sizes of a sampling program are fixed"):
            take(program, dynamic_shapes={"sample": {0: "n"}})


def test_a_program_is_neither_loaded_nor_saved_as_a_model(program, tmp_path):
    for take in (graphopt.load, lambda given: graphopt.save(given, tmp_path / "m.onnx")):
        with pytest.raises(ModelError, match=r"program.lower\('onnxruntime'\).save\(path\) writes the whole loop"):
            take(program)


def test_a_program_pass_on_a_graph_is_refused():
    with pytest.raises(PipelineError, match="graphopt.Sampler"):
        graphopt.optimize(torch.nn.Linear(2, 2), [Reverse()], example_inputs=torch.ones(1, 2))


def test_the_dump_names_inputs_rows_units_and_guidance(program):
    text = replace(program, guidance=Guidance(4.0, "calls")).dump()
    for expected in ("3 rows", "input noise : float32[2,4,16,16]", "encoder_hidden_states and its negative",
                     "scale 4, two calls", "denoiser/step, in every row", "denoiser in rows 0 to 2"):  # fmt: skip
        assert expected in text
    assert "conv(" in program.dump(graphs=True) and "conv(" not in text
