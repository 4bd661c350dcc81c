"""A denoiser compiled for the sizes that a pipeline uses: as a whole program, and for single calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch.utils import _pytree as pytree

from graphopt.compiler import make_backend, optimize
from graphopt.errors import ModelError, UnsupportedError
from graphopt.pipeline.report import Report
from graphopt.program.body import Body, Unit
from graphopt.program.denoiser import trace
from graphopt.program.guidance import Guidance
from graphopt.program.interface import NEGATIVE, Interface, halved
from graphopt.program.pipelines.cache import Cache
from graphopt.program.pipelines.calls import DenoiserCall, Deviation, OnlyFirst, same
from graphopt.program.pipelines.state import undisturbed
from graphopt.program.pipelines.stepper import Stepper
from graphopt.program.program import Program
from graphopt.program.sampler import BODY
from graphopt.program.schedule import Schedule


@dataclass(frozen=True)
class Settings:
    """How denoisers are compiled; see `graphopt.diffusers.accelerate`."""

    passes: Any
    backend: str
    verify: str
    options: Mapping[str, Any]


class CompiledDenoiser:
    """A denoiser for one signature: sizes, dtypes and constants of its arguments."""

    def __init__(self, module: torch.nn.Module, call: DenoiserCall, schedule: Schedule, settings: Settings) -> None:
        """
        Args:
            module: traced as it is.
            call: one call of the pipeline.
            schedule: any with as many rows as are expected.

        Raises:
            ModelError, UnsupportedError, VerificationError: it cannot be compiled.
        """
        self._settings = settings
        with undisturbed():
            program = _program(module, call, schedule)
            traced: Any = program.bodies[BODY].step.model
            self._structure = traced.result_structure
            result = optimize(program, settings.passes, target=settings.backend, verify=settings.verify)
        if set(result.program.bodies) != {BODY}:
            raise UnsupportedError(
                f"passes {settings.passes!r} made bodies for certain timesteps, and a pipeline sets its timesteps anew "
                "in every request; leave out the pass that did it (route-timesteps)"
            )
        self._program = result.program
        self.report: Report = result.report
        """What the passes did."""
        self._samplers: Cache[Callable[..., Any]] = Cache(4)

    @cached_property
    def _output(self) -> torch.Tensor:
        """A tensor without values, of the type of what the denoiser returns."""
        model = self._program.bodies[BODY].step.model.main
        type_ = model.type(model.outputs()[0])
        if type_ is None or type_.shape is None or not type_.is_static:
            raise ModelError(f"the output of {self._program.name} is {type_}: a program has static sizes")
        return torch.empty(type_.shape, dtype=getattr(torch, type_.dtype), device="meta")

    def made_up(self, random: torch.Generator) -> torch.Tensor:
        """Random numbers of the type of the denoiser's output."""
        return torch.randn(self._output.shape, generator=random).to(self._output.dtype)

    def answer(self, call: DenoiserCall, prediction: torch.Tensor) -> Any:
        """What the denoiser returns for a call, in the containers in which it returns it."""
        if call.return_dict:
            return Transformer2DModelOutput(sample=prediction)
        if self._structure is None:
            return (prediction,)
        if self._structure.num_leaves != 1:
            return OnlyFirst((prediction,), UnsupportedError(f"{self._program.name} {_MORE}"))
        return pytree.tree_unflatten([prediction], self._structure)

    @cached_property
    def stepper(self) -> Stepper:
        """Runs single calls."""
        return Stepper(self._program, lambda model: self._lower(model))

    def _lower(self, model: Any) -> Callable[..., Any]:
        backend = make_backend(self._settings.backend)
        of_programs = _keywords(backend.lower_program)
        return backend.lower(model, **{k: v for k, v in self._settings.options.items() if k not in of_programs})

    def sampler(
        self,
        key: Any,
        schedule: Schedule,
        timesteps: Sequence[float],
        guidance: Guidance | None,
        denoisers: Mapping[str, CompiledDenoiser],
        calls: Sequence[str],
    ) -> Callable[..., Any]:
        """The whole loop, lowered.

        Args:
            key: equal for equal schedules.
            schedule: its initial sigma is not applied: samples have their scale.
            timesteps: what the denoiser is to see in each row.
            guidance: of the two halves of the batch, or of two calls; a scale for each denoiser if there are several.
            denoisers: this one, and others with the same interface.
            calls: which of them each row calls.
        """
        scale_free = None if guidance is None else (guidance.mode, guidance.rescale)
        which = (tuple(denoisers.items()), tuple(calls))

        def build() -> Callable[..., Any]:
            import numpy as np

            rows = replace(schedule, timesteps=np.asarray(timesteps), init_noise_sigma=1.0)
            program = replace(
                self._program,
                bodies={name: denoiser._program.bodies[BODY] for name, denoiser in denoisers.items()},
                schedule=rows,
                calls=tuple(calls),
                guidance=guidance,
                interface=_sampling_interface(self._program.interface, self._output, guidance),
            )
            with undisturbed():
                return program.lower(self._settings.backend, **self._settings.options)

        return self._samplers.get((key, tuple(timesteps), scale_free, which), build)

    def sample(
        self,
        sampler: Callable[..., Any],
        start: torch.Tensor,
        generator: Any,
        guidance: Guidance | None,
        calls: Sequence[DenoiserCall],
    ) -> Any:
        """The final sample from `start`, with the conditions of the calls in a step."""
        if guidance is None:
            return sampler(start, generator, **calls[0].conditions)
        given: dict[str, torch.Tensor] = {}
        for condition in self._program.interface.conditions:
            values = [call.conditions[condition.name] for call in calls]
            if condition.branched:
                first, second = values if len(values) == 2 else values[0].chunk(2)
                given |= {NEGATIVE + condition.name: first, condition.name: second}
            else:
                given[condition.name] = values[0]
        return sampler(start, generator, guidance_scale=guidance.scale, **given)

    def alike(self, other: CompiledDenoiser) -> bool:
        """Whether both are called alike and predict the same type."""
        mine, its = self._output, other._output
        same_output = mine.shape == its.shape and mine.dtype == its.dtype
        return same_output and self._program.interface == other._program.interface

    def same_but_for_branches(self, first: DenoiserCall, second: DenoiserCall) -> bool:
        """Whether two calls in a step can be the branches of guidance."""
        shared = [c.name for c in self._program.interface.conditions if not c.branched]
        names = [first.sample_name, first.timestep_name, *shared]
        return first.signature == second.signature and all(same(first.leaves[n], second.leaves[n]) for n in names)


_MORE = "returns more than its prediction, and the pipeline reads it: only the prediction is compiled"


def _keywords(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


def _program(module: torch.nn.Module, call: DenoiserCall, schedule: Schedule) -> Program:
    """A program of one call for each row, without guidance: the batch is the pipeline's."""
    roles = _roles(call)
    example = dict(call.arguments)
    found = trace(module, example, schedule.timestep_dtype, lambda name: roles.get(name, "shared"), False)
    types = found.types
    interface = Interface(
        sample=types[call.sample_name],
        timestep=types[call.timestep_name],
        timestep_scale=1.0,
        conditions=found.conditions(),
    )
    body = Body(Unit(found.model, found.feeds()))
    return Program(found.title, {BODY: body}, (BODY,) * len(schedule), schedule, interface)


def _roles(call: DenoiserCall) -> dict[str, str]:
    if call.sample.device.type != "cpu":
        raise UnsupportedError(f"the pipeline runs on {call.sample.device}; a compiled denoiser runs on the CPU")
    batch = call.sample.shape[0]
    roles = {
        name: "condition" if value.ndim and value.shape[0] == batch else "shared" for name, value in call.leaves.items()
    }
    return roles | {call.sample_name: "sample", call.timestep_name: "timestep"}


def _sampling_interface(interface: Interface, output: torch.Tensor, guidance: Guidance | None) -> Interface:
    """The interface of a program that samples, from that of a denoiser's call.

    Raises:
        Deviation: the denoiser's output is no prediction for its input.
    """
    sample = interface.sample
    assert sample.shape is not None
    same_sizes = len(sample.shape) == output.ndim and sample.shape[2:] == tuple(output.shape[2:])
    if not same_sizes or not isinstance(sample.shape[1], int) or output.shape[1] < sample.shape[1]:
        raise Deviation(f"its denoiser predicts {list(output.shape)} for an input of {list(sample.shape)}")
    channels = None if tuple(output.shape) == sample.shape else sample.shape[1]
    if guidance is None or guidance.mode == "calls":
        return replace(interface, prediction_channels=channels)
    return replace(
        interface,
        sample=halved(sample),
        conditions=tuple(replace(c, type=halved(c.type)) if c.branched else c for c in interface.conditions),
        prediction_channels=channels,
        doubled=True,
    )
