"""Program: a sampler as data. Denoiser bodies, one row per denoiser call, stages, guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from graphopt.errors import ModelError
from graphopt.ir.model import Model
from graphopt.program.body import Body, Unit
from graphopt.program.guidance import Guidance, Scale
from graphopt.program.interface import Interface
from graphopt.program.schedule import Schedule


@dataclass(frozen=True)
class Program:
    """A whole sampling loop.

    Immutable: passes return another program. Its graphs are models of one storage; `convert` says them in another.
    Built by `graphopt.Sampler`.
    """

    name: str
    bodies: Mapping[str, Body]
    calls: tuple[str, ...]
    """Which body each row of the schedule calls."""
    schedule: Schedule
    interface: Interface
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        """Raises ModelError if not every row of the schedule calls one of the bodies."""
        if len(self.calls) != len(self.schedule) or not set(self.calls) <= set(self.bodies):
            raise ModelError(
                f"a program has one call of a body for each row of its schedule: got {len(self.calls)} calls of "
                f"{', '.join(dict.fromkeys(self.calls))} for {len(self.schedule)} rows and the bodies "
                f"{', '.join(self.bodies)}; a pass that changes the rows changes `calls` with them"
            )

    @property
    def storage(self) -> str:
        """The storage of all its graphs: "fx" or "onnx"."""
        return next(iter(self.bodies.values())).step.model.storage

    def __call__(
        self,
        noise: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
        callback: Callable[[int, Any], Any] | None = None,
        **conditions: Any,
    ) -> Any:
        """Sample, running every graph as it is on the runtime of its storage: the reference for all backends.

        Args:
            noise: unit normal noise of the shape and dtype of `interface.sample`, torch or numpy; the schedule's
                initial sigma is applied here.
            generator: source of the noise that stochastic rows draw, as diffusers takes it; or a seed, which draws
                what a torch.Generator on the CPU draws.
            guidance_scale: instead of the guidance's own; by body or by row only if that is.
            callback: called after every row with its number and the sample; may return another sample.
            conditions: by name; those of the unconditional branch as `negative_<name>`.

        Returns:
            The final sample, of the kind, shape and dtype of `noise`.

        Raises:
            ModelError: a condition is missing, unknown or of another type.
        """
        from graphopt.program.reference import reference_runner

        return reference_runner(self)(
            noise, generator, guidance_scale=guidance_scale, callback=callback, **conditions
        )

    def lower(self, backend: str = "onnxruntime", **options: Any) -> Callable[..., Any]:
        """The program compiled: the same callable on a backend; see `graphopt.lower`."""
        from graphopt.compiler import make_backend

        return make_backend(backend).lower_program(self, **options)

    def convert(self, target: str) -> Program:
        """The program with its graphs in the storage that the backend `target` runs.

        Raises:
            UnsupportedError: a graph cannot be said there, or does not compute the same there.
        """
        from graphopt.program.convert import convert_program

        return convert_program(self, target)

    def dump(self, *, graphs: bool = False) -> str:
        """Inputs, rows and units as text; with `graphs` every graph as well, one line a node."""
        from graphopt.program.dump import dump_program

        return dump_program(self, graphs=graphs)

    def map_models(self, change: Callable[[str, Model], Model]) -> Program:
        """The program with every model replaced by `change(name, model)`; names are like "denoiser/step"."""
        bodies: dict[str, Body] = {}
        for body_name, body in self.bodies.items():
            units: dict[str, Any] = {
                name: Unit(change(f"{body_name}/{name}", unit.model), unit.feeds) for name, unit in body.units()
            }
            bodies[body_name] = replace(body, **units)
        return replace(self, bodies=bodies)

    def __str__(self) -> str:
        return self.dump()
