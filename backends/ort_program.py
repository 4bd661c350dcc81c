"""A sampling program on onnxruntime: called like the program, run as one Loop or as sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.backends.ort_compiled import RunError
from graphopt.backends.ort_loop import loop_model
from graphopt.backends.ort_repair import without_idle_squeezes
from graphopt.backends.ort_session import open_session
from graphopt.backends.ort_sessions import ProgramSessions
from graphopt.backends.ort_settings import Settings
from graphopt.backends.ort_tables import constant_tables
from graphopt.backends.ort_values import is_native, run_arrays
from graphopt.backends.program_inputs import read_call
from graphopt.backends.program_rows import called_bodies
from graphopt.errors import PipelineError
from graphopt.ir.onnx.save import Carried, save_model
from graphopt.ir.weights import Array
from graphopt.program.guidance import Scale
from graphopt.program.program import Program
from graphopt.program.runner import CALLED_BACK, check_callback, check_sample, concatenate, like, to_numpy

FORMS = ("auto", "loop", "sessions")
Callback = Callable[[int, Any], Any]


class CompiledProgram:
    """A program on onnxruntime, with the signature of `Program.__call__`: arrays or tensors in, the same kind out.

    Holds nothing of a request, so a result can never be stale.
    """

    def __init__(self, program: Program, form: str, settings: Settings, *, low_memory: bool = False) -> None:
        """
        Args:
            program: a program whose graphs are ONNX.
            form: "loop" (one session.run for all rows), "sessions" (one for each row), or "auto", which is the loop:
                the same results to the bit, without the Python and bindings of each row, which count in small models
                (figures: docs/decisions.md, "The loop is the default form").
            settings: of every session.
            low_memory: whether onnxruntime has the weights of one body at a time. Takes sessions, which "auto" then
                is; they are opened anew whenever rows go over to another body, so twice a request for two experts.
                For one request at a time.

        Raises:
            PipelineError: an unknown form, or a loop in low memory.
            UnsupportedError, ModelError: onnxruntime does not run the program.
        """
        if form not in FORMS:
            raise PipelineError(f"form={form!r}: expected one of {', '.join(FORMS)}")
        if low_memory and form == "loop":
            raise PipelineError(
                "form='loop' with low_memory=True: a loop is one session, which has the weights of all bodies; leave "
                "out the form, or say form='sessions'"
            )
        self.program = program
        self.form = ("sessions" if low_memory else "loop") if form == "auto" else form
        """How it runs without a callback; with one it always runs as sessions."""
        self._settings = settings
        self._low_memory = low_memory
        self._models = {
            (body_name, name): runnable(unit.model)
            for body_name, body in called_bodies(program).items()
            for name, unit in body.units()
        }
        self._tables = constant_tables(program, self._models, settings)
        _ = self._loop if self.form == "loop" else self._sessions

    @cached_property
    def model(self) -> ir.Model:
        """The program as one ONNX model; see `graphopt.backends.ort_loop.loop_model`."""
        return loop_model(self.program, self._models, self._tables)

    @cached_property
    def _loop(self) -> Any:
        return open_session(self.model, self._settings)

    @cached_property
    def _sessions(self) -> ProgramSessions:
        return ProgramSessions(self.program, self._models, self._tables, self._settings, low_memory=self._low_memory)

    def save(self, path: str | Path) -> None:
        """Write the program as one ONNX file, with its weights beside it if they exceed 2 GB."""
        save_model(self.model, Path(path), Carried())

    def __call__(
        self,
        noise: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> Any:
        """Sample; see `Program.__call__`. The generator may also be a seed, as torch's CPU generator takes it.

        Raises:
            ModelError: a condition is missing, unknown or of another type.
            RunError: onnxruntime failed.
        """
        return self._sample(noise, None, generator, guidance_scale, callback, conditions)

    def run(
        self,
        sample: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> Any:
        """As calling it, from a `sample` that has the scale of the first row already (image to image)."""
        return self._sample(sample, 1.0, generator, guidance_scale, callback, conditions)

    def _sample(
        self,
        start: Any,
        initial_scale: float | None,
        generator: Any,
        guidance_scale: Scale | None,
        callback: Callback | None,
        conditions: Mapping[str, Any],
    ) -> Any:
        program = self.program
        check_callback(callback)
        inputs = read_call(program, start, initial_scale, generator, guidance_scale, conditions)
        if callback is None and self.form == "loop":
            return like(start, self._run_loop(inputs.by_name()))
        report = None if callback is None else self._reporter(callback, start)
        branches = program.interface.branches(inputs.conditions, concatenate, guided=program.guidance is not None)
        first = inputs.noise * inputs.initial_scale
        return like(start, self._sessions.run(first, branches, inputs.step_noise, inputs.guidance_scale, report))

    def _run_loop(self, feeds: Mapping[str, Array]) -> Array:
        native = all(is_native(array.dtype) for array in feeds.values())
        bound = self._settings.io_binding is True
        try:
            result: Array = run_arrays(self._loop, feeds, ["sample"], bound=bound, native=native)[0]
        except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
            raise RunError(f"onnxruntime failed while it ran the program: {error}") from error
        return result

    def _reporter(self, callback: Callback, start: Any) -> Callable[[int, Array], Array | None]:
        def report(row: int, sample: Array) -> Array | None:
            changed = callback(row, like(start, sample))
            if changed is None:
                return None
            check_sample(self.program.interface.sample, changed, CALLED_BACK)
            array: Array = to_numpy(changed)
            return array

        return report


def runnable(model: Any) -> ir.Model:
    """An OnnxModel's graph as onnxruntime takes it."""
    return without_idle_squeezes(model)[0]
