"""`Sampler`: a program from a denoiser, a scheduler and a number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.errors import ModelError, UnsupportedError, did_you_mean
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import FLOATS, numpy_dtype
from graphopt.program.body import Body, Unit
from graphopt.program.denoiser import Denoiser, trace
from graphopt.program.experts import Experts, common_interface
from graphopt.program.guidance import Guidance, is_number, row_scales
from graphopt.program.interface import NEGATIVE, Interface
from graphopt.program.program import Program
from graphopt.program.schedule import Schedule

ROLES = ("sample", "timestep", "condition", "shared")
_KNOWN = {
    "sample": "sample", "hidden_states": "sample", "x": "sample",
    "timestep": "timestep", "timesteps": "timestep", "t": "timestep",
    "img_ids": "shared", "txt_ids": "shared",
}  # fmt: skip
BODY = "denoiser"
"""The name of the body of a program with one denoiser."""


def Sampler(  # reads as the constructor that it is to users
    denoiser: Any,
    scheduler: Any,
    steps: int | None = None,
    *,
    example_inputs: Any = None,
    roles: Mapping[str, str] | None = None,
    guidance: Guidance | float | Mapping[str, float] | None = None,
    timestep_scale: float | None = None,
    **schedule_options: Any,
) -> Program:
    """A sampling program: the whole denoising loop as data.

    Args:
        denoiser: a torch module (diffusers' UNet2DModel, UNet2DConditionModel, DiT, PixArt, SD3 and Flux transformers,
            or any other), an ExportedProgram, or an ONNX model as `graphopt.optimize` takes it; or `Experts`, of which
            each row calls the one for its timestep. Never modified.
        scheduler: a diffusers scheduler, or a `Schedule`; then `steps` is left out.
        steps: number of inference steps.
        example_inputs: inputs of one denoiser call without guidance: a dict by argument name, a tuple, or a pair of
            both. They fix sizes and dtypes. May be left out for the diffusers classes named above: then the sizes
            come from the model's config, with batch 1.
        roles: what each input is: "sample", "timestep", "condition" (fixed for a request, first axis is the batch)
            or "shared" (fixed for a request, the same for both branches of the guidance). Inputs whose names are
            usual (sample, hidden_states, timestep, ...) need none; others are conditions.
        guidance: classifier-free guidance, or its scale; of experts also a scale for each by its name.
        timestep_scale: what timesteps are multiplied by before the denoiser sees them (Flux: 0.001, the default for
            it).
        schedule_options: for `Schedule.from_diffusers` (mu, sigmas, eta, ...).

    Raises:
        ModelError: the denoiser cannot be traced, or roles are missing or contradict each other; experts are called
            differently, or in no row.
        UnsupportedError: the scheduler is not affine, timesteps are per token, or the denoiser's graph mutates state.
    """
    schedule = _schedule(scheduler, steps, schedule_options)
    if timestep_scale is not None and not is_number(timestep_scale):
        raise ModelError(f"timestep_scale={timestep_scale!r}: expected a finite number, such as 0.001, or None")
    experts = denoiser if isinstance(denoiser, Experts) else None
    calls = (BODY,) * len(schedule) if experts is None else experts.calls(schedule)
    guidance = _guidance(guidance, calls)
    doubled = guidance is not None and guidance.mode == "batch"
    found: dict[str, Denoiser] = {}
    for name, module in ({BODY: denoiser} if experts is None else experts.by_name).items():
        with _named("" if experts is None else name):
            found[name] = trace(module, example_inputs, schedule.timestep_dtype, _role_of(roles), doubled)
            _require_roles(found[name], roles)
    interface = common_interface({name: _interface(one, timestep_scale, doubled) for name, one in found.items()})
    title = " and ".join(dict.fromkeys(one.title for one in found.values()))
    _require_names(interface, guidance)
    _require_timesteps(title, interface, schedule)
    return Program(
        name=title,
        bodies={name: Body(Unit(one.model, one.feeds())) for name, one in found.items()},
        calls=calls,
        schedule=schedule,
        interface=interface,
        guidance=guidance,
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is wrong with one of several denoisers is said with its name."""
    try:
        yield
    except (ModelError, UnsupportedError) as error:
        if not name:
            raise
        raise type(error)(f"denoiser {name!r}: {error}") from error


def _schedule(scheduler: Any, steps: int | None, options: dict[str, Any]) -> Schedule:
    if isinstance(scheduler, Schedule):
        if steps is not None or options:
            raise ModelError("a Schedule has its steps already: leave out `steps` and the options for the scheduler")
        return scheduler
    if steps is None:
        raise ModelError("how many steps? Sampler(denoiser, scheduler, steps)")
    return Schedule.from_diffusers(scheduler, steps, **options)


def _guidance(given: Any, calls: Sequence[str]) -> Guidance | None:
    """Of several denoisers each has its own scale, if only to be given another in a call."""
    if given is None:
        return None
    several = len(set(calls)) > 1
    if not isinstance(given, Guidance):
        if not is_number(given) and not (several and isinstance(given, Mapping)):
            kinds = "a scale, a scale for each denoiser by name," if several else "a scale,"
            raise ModelError(f"guidance={given!r}: expected {kinds} a graphopt.Guidance or None")
        given = Guidance(given)
    if several and not given.varies:
        given = replace(given, scale=dict.fromkeys(calls, given.scale))
    row_scales(given.scale, calls)
    guidance: Guidance = given
    return guidance


def _require_names(interface: Interface, guidance: Guidance | None) -> None:
    """Conditions must not have the names of other arguments of a program's call."""
    names = {c.name for c in interface.conditions}
    taken = {"noise", "generator", "guidance_scale", "callback"}
    if guidance is not None:
        taken |= {NEGATIVE + c.name for c in interface.conditions if c.branched}
    if clash := sorted(names & taken):
        raise ModelError(
            f"an input of the denoiser is named {clash[0]!r}, as is an argument of a program; wrap the denoiser in a "
            "module that calls it something else"
        )


def _role_of(roles: Mapping[str, str] | None) -> Any:
    if roles is not None and not isinstance(roles, Mapping):
        raise ModelError(f"roles is a {type(roles).__name__}: expected a dict from input names to roles")
    given = dict(roles or {})
    for name, role in given.items():
        if role not in ROLES:
            raise ModelError(
                f"role {role!r} of input {name!r}{did_you_mean(str(role), ROLES)}: expected one of {', '.join(ROLES)}"
            )

    def role_of(name: str) -> str:
        """By the name itself, else by that of the argument that holds it."""
        top = name.split(".", 1)[0]
        return given.get(name) or given.get(top) or _KNOWN.get(name) or "condition"

    return role_of


def _require_roles(found: Denoiser, roles: Mapping[str, str] | None) -> None:
    tops = {n.split(".", 1)[0] for n in found.names} | set(found.names)
    for name in roles or {}:
        if name not in tops:
            listed = ", ".join(found.names)
            raise ModelError(f"roles name an input {name!r} that {found.title} does not have; its inputs are {listed}")
    for role in ("sample", "timestep"):
        have = [n for n in found.names if found.roles[n] == role]
        if len(have) != 1:
            raise ModelError(
                f"{found.title} must have exactly one input with the role {role!r}, it has {have or 'none'}; its "
                f"inputs are {', '.join(found.names)}; name them: roles={{'<input>': {role!r}}}"
            )


def _require_timesteps(title: str, interface: Interface, schedule: Schedule) -> None:
    type_, sample = interface.timestep, interface.seen("sample")
    if type_.shape not in ((), (1,), sample.shape[:1] if sample.shape else ()):
        raise UnsupportedError(
            f"the timestep of {title} is {type_}, one value per token; a sampling program has one timestep per "
            "row, as a scalar or one per batch element"
        )
    values = schedule.timesteps * interface.timestep_scale
    if type_.dtype not in FLOATS and not np.array_equal(values.astype(numpy_dtype(type_.dtype)), values):
        raise ModelError(
            f"the schedule ({schedule.source}) gives timesteps from {values.min():g} to {values.max():g}, fractional "
            f"timesteps among them or such that {type_.dtype} does not hold, and {title} was traced with that dtype; "
            "pass an example timestep of dtype float32"
        )


def _interface(found: Denoiser, timestep_scale: float | None, doubled: bool) -> Interface:
    sample = found.types[found.role("sample")]
    output = found.model.main.type(found.model.main.outputs()[0])
    interface = Interface(
        sample=sample,
        timestep=found.types[found.role("timestep")],
        timestep_scale=found.timestep_scale if timestep_scale is None else timestep_scale,
        conditions=found.conditions(),
        doubled=doubled,
    )
    return replace(interface, prediction_channels=_prediction_channels(found, interface.seen("sample"), output))


def _prediction_channels(found: Denoiser, seen: TensorType, output: TensorType | None) -> int | None:
    """How many channels of the output are the prediction for the sample as the denoiser sees it; None for all."""
    if output is None or output.shape is None or seen.shape is None or len(output.shape) < 2:
        raise ModelError(f"the output of {found.title} is {output}: expected a prediction shaped like its sample")
    if output == seen:
        return None
    batch, channels, *others = seen.shape
    if output.dtype == seen.dtype and isinstance(channels, int) and output.shape == (batch, 2 * channels, *others):
        return channels
    raise ModelError(
        f"the output of {found.title} is {output} for a sample {seen}: expected the same type, or twice the "
        "channels (a learned variance, which samplers ignore)"
    )
