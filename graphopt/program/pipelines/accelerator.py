"""What stands behind an accelerated pipeline: its denoiser and scheduler report here, and it decides how to answer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graphopt.errors import UnsupportedError
from graphopt.program.pipelines.cache import Cache
from graphopt.program.pipelines.calls import DenoiserCall, Deviation, OnlyFirst
from graphopt.program.pipelines.compiled import CompiledDenoiser, Settings
from graphopt.program.pipelines.made_up import holds_made_up, looked_at, tensors_in
from graphopt.program.pipelines.report import AccelerationReport, RequestRecord
from graphopt.program.pipelines.routing import Call, routed, unrouted
from graphopt.program.pipelines.schedules import Schedules, placeholder
from graphopt.program.pipelines.state import ModuleState, Randomness, Values, generators_in
from graphopt.program.pipelines.stepper import StepwiseRequest
from graphopt.program.pipelines.whole import WholeRequest

DENOISERS = ("unet", "transformer")
CALLBACKS = ("callback_on_step_end", "callback")


class Accelerator:
    """Runs the requests of one accelerated pipeline; not for several threads at once."""

    def __init__(self, denoiser_names: Sequence[str], settings: Settings, cache_size: int) -> None:
        """`denoiser_names`: the components that are denoisers; of several each step calls one."""
        self.denoiser_names = denoiser_names
        self.report = AccelerationReport()
        self._settings = settings
        self._schedules = Schedules(4 * cache_size)
        self._compiled: Cache[CompiledDenoiser] = Cache(cache_size)
        self._denoisers: dict[str, Any] = {}
        self._states: dict[str, ModuleState] = {}
        self._scheduler: Any = None
        self._setup: Mapping[str, Any] = {}
        self._whole: WholeRequest | None = None
        self._stepwise: dict[CompiledDenoiser, StepwiseRequest] | None = None

    def run(self, pipe: Any, call: Callable[[], Any], given: Mapping[str, Any]) -> Any:
        """One call of the pipeline.

        Args:
            pipe: the accelerated pipeline.
            call: calls it as it would be called without acceleration.
            given: its arguments by name.
        """
        if self._whole is not None or self._stepwise is not None:
            raise UnsupportedError("an accelerated pipeline was called while it was running; make one for each thread")
        for name in self.denoiser_names:
            _require_no_hooks(name, self._denoisers[name])
        started, compiled = time.perf_counter(), len(self.report.compiled)
        reason = next((f"{name} is given" for name in CALLBACKS if given.get(name) is not None), "")
        if not reason:
            before = (Randomness(generators_in(given)), Values(tensors_in(given)))
            try:
                result, idle = self._as_program(pipe, call)
            except Deviation as deviation:
                reason = str(deviation)
                for state in before:
                    state.restore()
        if reason:
            result, idle = self._step_by_step(call), ""
        reason = reason or idle
        now = RequestRecord(
            mode="steps" if reason else "program",
            reason=reason,
            compiled=len(self.report.compiled) - compiled,
            seconds=time.perf_counter() - started,
        )
        self.report.add(now)
        return result

    def _as_program(self, pipe: Any, call: Callable[[], Any]) -> tuple[Any, str]:
        """The result, and why it did not run as a program after all: there was nothing to run."""

        def hints() -> tuple[Any, Any]:
            return getattr(pipe, "guidance_scale", None), getattr(pipe, "guidance_rescale", None)

        self._whole = whole = WholeRequest(self._schedules, self._denoiser_for, hints)
        try:
            result = call()
        finally:
            self._whole = None
        if whole.started and not whole.finished:
            raise Deviation("its loop ends before the scheduler's last step")
        if holds_made_up(result):
            raise Deviation("it returns samples or predictions of its loop")
        return result, "" if whole.started else "it calls no denoiser of this pipeline (that of a copy, for example)"

    def _step_by_step(self, call: Callable[[], Any]) -> Any:
        self._stepwise = {}
        try:
            return call()
        finally:
            self._stepwise = None

    def _check_denoiser(self, name: str) -> None:
        """Forget what was compiled if a denoiser is not what it was.

        Raises:
            UnsupportedError: it changed since the loop that is watched called it.
        """
        denoiser = self._denoisers[name]
        if name in self._states and self._states[name].still(denoiser):
            return
        if self._whole is not None and self._whole.called(name):
            # The change has happened by now: from the start again the first steps would have it too.
            raise UnsupportedError(
                f"the pipeline changes its {name} within its loop (weights, adapters, attention processors); give a "
                "callback_on_step_end, which makes it run step by step from the start"
            )
        self._compiled.forget(lambda key: key[0] == name)
        self._states[name] = ModuleState(denoiser)

    def _denoiser_for(self, name: str, call: DenoiserCall) -> CompiledDenoiser:
        def build() -> CompiledDenoiser:
            schedule = placeholder(self._timesteps())
            made = CompiledDenoiser(unrouted(self._denoisers[name]), call, schedule, self._settings)
            self.report.compiled.append(made.report)
            self._states[name] = ModuleState(self._denoisers[name])  # tracing may set attributes
            return made

        return self._compiled.get((name, call.signature), build)

    def _timesteps(self) -> torch.Tensor:
        found = getattr(self._scheduler, "timesteps", None)
        if not isinstance(found, torch.Tensor):
            raise UnsupportedError(
                f"{type(self._scheduler).__name__} has no tensor of timesteps when the pipeline calls its denoiser: "
                "sampling programs are read from schedulers of diffusers, which have one"
            )
        return found

    def adopt(self, name: str, component: Any) -> Any:
        """What the accelerated pipeline holds for a component that it is given."""
        if name == "scheduler" and component is not None:
            return self._adopt_scheduler(component)
        if name in self.denoiser_names:
            return self._adopt_denoiser(name, component)
        return component

    def _adopt_denoiser(self, name: str, given: Any) -> Any:
        """A module of the same class and weights, whose calls come here."""
        module = unrouted(getattr(given, "_orig_mod", given))
        if not isinstance(module, torch.nn.Module):
            raise UnsupportedError(f"{name} is a {type(module).__name__} and no torch module")
        _require_no_hooks(name, module)
        self._denoisers[name] = routed(copy.copy(module), self, ("forward",))
        self._states.pop(name, None)
        return self._denoisers[name]

    def _adopt_scheduler(self, given: Any) -> Any:
        """A scheduler of the same class and state, whose steps come here."""
        self._scheduler = routed(copy.deepcopy(unrouted(given)), self, ("set_timesteps", "scale_model_input", "step"))
        return self._scheduler

    def forward(self, call: Call) -> Any:
        """The pipeline calls its denoiser."""
        name = next((name for name, module in self._denoisers.items() if module is call.component), None)
        if name is None or (self._whole is None and self._stepwise is None):
            return call.pass_on()
        self._check_denoiser(name)
        named = "return_dict" in call.signature.parameters
        given = DenoiserCall.of(looked_at(call.arguments()), named, self._timesteps().dtype)
        return self._whole.denoise(name, given) if self._whole is not None else self._predict(name, given)

    def _predict(self, name: str, call: DenoiserCall) -> Any:
        assert self._stepwise is not None
        denoiser = self._denoiser_for(name, call)
        if denoiser not in self._stepwise:
            self._stepwise[denoiser] = denoiser.stepper.request()
        return denoiser.answer(call, self._stepwise[denoiser](call))

    def set_timesteps(self, call: Call) -> Any:
        """The pipeline sets its scheduler up."""
        if call.component is self._scheduler:
            self._setup = {name: value for name, value in call.arguments().items() if value is not None}
            if self._whole is not None and self._whole.started:
                raise Deviation("it sets its timesteps again within the loop")
        return call.pass_on()

    def scale_model_input(self, call: Call) -> Any:
        """The pipeline scales its denoiser's input."""
        if self._whole is None or call.component is not self._scheduler or not self._whole.stepped:
            return call.pass_on()
        return self._whole.scaled(call.arguments()["sample"])

    def step(self, call: Call) -> Any:
        """The pipeline takes a step of its scheduler."""
        if self._whole is None or call.component is not self._scheduler:
            return call.pass_on()
        arguments = looked_at(call.arguments())
        sample = self._whole.step(self._scheduler, self._setup, arguments)
        as_tuple = not arguments.get("return_dict", True)
        return OnlyFirst((sample,), Deviation(_MORE)) if as_tuple else OnlySampleOutput(sample)

    def __deepcopy__(self, memo: Any) -> Accelerator:
        """A copy of a component is one more component of the same pipeline."""
        return self


def _require_no_hooks(name: str, module: torch.nn.Module) -> None:
    if "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks:
        raise UnsupportedError(f"{name} has hooks around its forward (offloading or caching); remove them first")


_MORE = "it reads more of its scheduler's step than the sample"


class OnlySampleOutput:
    """What a scheduler's step returns as an object, of which only the sample exists."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.prev_sample = sample

    def __getitem__(self, index: Any) -> Any:
        if index not in (0, "prev_sample"):
            raise Deviation(_MORE)
        return self.prev_sample

    def __getattr__(self, name: str) -> Any:
        raise Deviation(f"it reads {name!r} of its scheduler's step")
