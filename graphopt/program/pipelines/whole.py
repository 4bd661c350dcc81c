"""A request run as one program: the pipeline's loop is watched with made-up numbers, then sampled at its last step.

The pipeline's own code runs as ever, but its denoiser answers with random numbers and its scheduler with other random
numbers. From what the pipeline makes of them follows all that the program needs: conditions, timesteps, how the sample
is scaled and doubled, the guidance. Every step must be what the program will do; anything else is a `Deviation`, upon
which the request starts again step by step. At the last step the program runs from the first step's sample, and its
result is what the scheduler returns. No made-up number can become a result, nor decide what the pipeline does: a loop
that ends early is a deviation, and so is looking at one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from graphopt.program.guidance import Guidance
from graphopt.program.pipelines.calls import DenoiserCall, Deviation, same, version_of
from graphopt.program.pipelines.compiled import CompiledDenoiser
from graphopt.program.pipelines.guidance import agrees, guided, read_guidance
from graphopt.program.pipelines.made_up import made_up
from graphopt.program.pipelines.schedules import Schedules
from graphopt.program.pipelines.state import Randomness, generators_in


class WholeRequest:
    """One run of a pipeline's loop."""

    def __init__(
        self,
        schedules: Schedules,
        compile_: Callable[[str, DenoiserCall], CompiledDenoiser],
        hints: Callable[[], tuple[Any, Any]],
    ) -> None:
        """
        Args:
            schedules: reads schedulers.
            compile_: the denoiser of a name for a call's sizes.
            hints: scale and rescale as the pipeline's attributes say, or None.
        """
        self._schedules = schedules
        self._compile = compile_
        self._hints = hints
        self._random = torch.Generator().manual_seed(1)
        self._start: _Start | None = None
        self._calls: list[DenoiserCall] = []
        self._denoisers: dict[str, CompiledDenoiser] = {}
        self._names: list[str] = []
        """The denoiser that each row calls."""
        self._answers: list[torch.Tensor] = []
        """What the denoiser has answered in this step."""
        self._timesteps: list[float] = []
        self.finished = False

    @property
    def started(self) -> bool:
        """Whether the loop has begun."""
        return bool(self._calls)

    def called(self, name: str) -> bool:
        """Whether the denoiser of that name has been called."""
        return name in self._denoisers

    @property
    def stepped(self) -> bool:
        """Whether the first step is behind; until then the scheduler itself scales samples."""
        return self._start is not None

    def scaled(self, sample: torch.Tensor) -> torch.Tensor:
        """The denoiser's input from a sample of the row, after the first step."""
        assert self._start is not None
        return self._start.scaled(sample)

    def denoise(self, name: str, call: DenoiserCall) -> Any:
        """The answer of the denoiser of that name: random numbers, others in every step, or what a pipeline makes of
        the predictions of several steps would look as if it were of one."""
        if self.finished:
            raise Deviation("it calls its denoiser after the last step")
        number = len(self._answers)
        if number and name != self._names[-1]:
            raise Deviation("it calls several denoisers in a step")
        if self._start is None:
            self._note_first(name, call, number)
        else:
            self._check_later(call, number, self._start)
        timestep = call.one_timestep()
        if number == 0:
            self._timesteps.append(timestep)
            self._names.append(name)
        denoiser = self._denoiser_of(name, call)
        self._answers.append(denoiser.made_up(self._random))
        return denoiser.answer(call, made_up(self._answers[-1]))

    def _denoiser_of(self, name: str, call: DenoiserCall) -> CompiledDenoiser:
        if name not in self._denoisers:
            self._denoisers[name] = self._compile(name, call)
            if not self._denoisers[name].alike(self._denoisers[self._names[0]]):
                raise Deviation("its denoisers are not called alike")
        return self._denoisers[name]

    def _note_first(self, name: str, call: DenoiserCall, number: int) -> None:
        if number == 0:
            self._denoisers[name] = self._compile(name, call)
        elif number > 1 or not self._denoisers[name].same_but_for_branches(self._calls[0], call):
            raise Deviation(_SEVERAL)
        self._calls.append(call)

    def _check_later(self, call: DenoiserCall, number: int, start: _Start) -> None:
        if number >= len(self._calls):
            raise Deviation(_SEVERAL)
        if (changed := self._calls[number].change(call)) is not None:
            raise Deviation(f"{changed} of its denoiser changes from step to step")
        if call.timestep.dtype != self._calls[number].timestep.dtype:
            raise Deviation("the dtype of its timesteps changes from step to step")
        if number and call.one_timestep() != self._timesteps[-1]:
            raise Deviation("it gives its denoiser several timesteps in one step")
        start.check_input(call.sample)

    def step(self, scheduler: Any, setup: Mapping[str, Any], arguments: Mapping[str, Any]) -> torch.Tensor:
        """The sample that the scheduler's step returns."""
        answers, self._answers = self._answers, []
        if not answers or len(answers) != len(self._calls):
            raise Deviation("it steps without calling its denoiser, or calls it less often than in the first step")
        if missing := [name for name in ("model_output", "timestep", "sample") if name not in arguments]:
            raise Deviation(f"its scheduler's step is not given {missing[0]!r} but {', '.join(arguments)}")
        output, timestep, sample = (arguments[name] for name in ("model_output", "timestep", "sample"))
        options = {k: v for k, v in arguments.items() if k not in _OWN}
        generator = arguments.get("generator")
        if self._start is None:
            self._start = _Start(self._schedules, scheduler, setup, options, timestep, sample, generator)
            self._start.check_first_input(self._calls[0].sample)
        else:
            self._start.check_step(options, generator, timestep, sample)
        name = self._names[-1]
        self._start.check_guidance(name, answers, output, self._hints())
        if self._start.row + 1 < len(self._start.schedule):
            return self._start.next_sample(self._random)
        return self._sample(self._start)

    def _sample(self, start: _Start) -> torch.Tensor:
        start.check_untouched()
        denoiser, guidance = self._denoisers[self._names[0]], start.guidance()
        sampler = denoiser.sampler(start.key, start.schedule, self._timesteps, guidance, self._denoisers, self._names)
        self.finished = True
        result: torch.Tensor = denoiser.sample(sampler, start.sample, start.generator, guidance, self._calls)
        return result


_SEVERAL = "it calls its denoiser several times in a step"
_OWN = ("model_output", "timestep", "sample", "generator", "return_dict", "self")


class _Start:
    """What the first step has shown, and where in the loop the pipeline is."""

    def __init__(
        self, schedules: Schedules, scheduler: Any, setup: Mapping[str, Any], options: Mapping[str, Any], timestep: Any,
        sample: torch.Tensor, generator: Any,
    ) -> None:  # fmt: skip
        begin = _begin(scheduler, timestep)
        self.key, self.schedule = schedules.read(scheduler, setup, begin, options)
        self.sample = sample
        self.generator = generator
        self._guidances: dict[str, Guidance | None] = {}
        """Of each denoiser."""
        self.row = 0
        self._scheduler = scheduler
        self._times = scheduler.timesteps
        self._begin = begin
        self._options = options
        self._version = version_of(sample)
        self._randomness = Randomness(generators_in(generator))
        self._made_up = sample
        if len(self._times) - begin != len(self.schedule):
            raise Deviation("its scheduler has another number of steps than its configuration gives")

    def scaled(self, sample: torch.Tensor) -> torch.Tensor:
        scale = float(self.schedule.input_scale[self.row])
        return sample if scale == 1.0 else sample * scale

    def check_first_input(self, seen: torch.Tensor) -> None:
        """The scheduler itself has scaled it, so there may be rounding."""
        self._check_input(seen, agrees)

    def check_input(self, seen: torch.Tensor) -> None:
        self._check_input(seen, same)

    def _check_input(self, seen: torch.Tensor, alike: Callable[[torch.Tensor, torch.Tensor], bool]) -> None:
        expected = self.scaled(self._made_up)
        batch = len(expected)
        parts = [seen] if len(seen) == batch else list(seen.split(batch))
        if len(parts) > 2 or not all(alike(part, expected) for part in parts):
            raise Deviation(
                "its denoiser's input is not the scheduler's sample, once or twice (inpainting, for example)"
            )

    def check_guidance(
        self, name: str, probes: Sequence[torch.Tensor], output: torch.Tensor, hints: tuple[Any, Any]
    ) -> None:
        """That the guidance of a denoiser is in every step what it is in its first."""
        if output.shape != self.sample.shape:
            raise Deviation("it hands its scheduler a prediction of another size than the sample")
        if name not in self._guidances:
            self._guidances[name] = found = read_guidance(probes, output, hints)
            if _kind(found) != _kind(next(iter(self._guidances.values()))):
                raise Deviation("its guidance changes from step to step")
        elif not agrees(output, guided(probes, output, self._guidances[name])):
            raise Deviation("its guidance changes from step to step")

    def guidance(self) -> Guidance | None:
        """With the scale of each denoiser, if there are several."""
        found = {name: guidance for name, guidance in self._guidances.items() if guidance is not None}
        scales = {name: guidance.scale for name, guidance in found.items() if isinstance(guidance.scale, float)}
        first = next(iter(self._guidances.values()))
        return first if first is None or len(scales) == 1 else replace(first, scale=scales)

    def check_step(self, options: Mapping[str, Any], generator: Any, timestep: Any, sample: torch.Tensor) -> None:
        """That a later step continues as the first began."""
        if sample is not self._made_up and not same(sample, self._made_up):
            raise Deviation("it changes the sample between steps")
        if generator is not self.generator or not _equal(options, self._options):
            raise Deviation("what it gives the scheduler's step changes from step to step")
        expected = float(self._times[self._begin + self.row])
        if self._scheduler.timesteps is not self._times or _number(timestep) != expected:
            raise Deviation("its timesteps are not those of its scheduler in their order")

    def next_sample(self, random: torch.Generator) -> torch.Tensor:
        """A sample that no other step has seen."""
        self.row += 1
        like = self.sample
        self._made_up = torch.randn(like.shape, generator=random).to(like.dtype)
        return made_up(self._made_up)

    def check_untouched(self) -> None:
        if version_of(self.sample) != self._version:
            raise Deviation("it writes to the first sample")
        if self.schedule.total_draws and not self._randomness.still():
            raise Deviation("it draws random numbers between the scheduler's draws")


def _kind(guidance: Guidance | None) -> Any:
    """All of it but the scale."""
    return None if guidance is None else (guidance.mode, guidance.rescale)


def _begin(scheduler: Any, timestep: Any) -> int:
    """The entry of the scheduler's timesteps with which the loop begins."""
    given, times = getattr(scheduler, "begin_index", None), scheduler.timesteps.tolist()
    number = _number(timestep)
    places = [place for place, time in enumerate(times) if time == number]
    if given is None and len(places) > 1:
        given = _place_in_memory(scheduler.timesteps, timestep)
    begin = given if given is not None else next(iter(places), None)
    if begin not in places:
        raise Deviation("its first timestep is not one of its scheduler's")
    return int(begin)


def _number(timestep: Any) -> float:
    try:
        return float(timestep)
    except (TypeError, ValueError, RuntimeError):
        raise Deviation("it gives its scheduler's step something else than one timestep") from None


def _place_in_memory(times: torch.Tensor, timestep: Any) -> int | None:
    """Which element of `times` a timestep is, if it is a view of one."""
    if not isinstance(timestep, torch.Tensor) or timestep.dtype != times.dtype:
        return None
    place, rest = divmod(timestep.data_ptr() - times.data_ptr(), times.element_size())
    return place if rest == 0 and 0 <= place < len(times) and times.is_contiguous() else None


def _equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a.keys() != b.keys():
        return False
    return all(a[key] is b[key] or (not isinstance(a[key], torch.Tensor) and a[key] == b[key]) for key in a)
