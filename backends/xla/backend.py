"""The class of the backend "xla"."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.backends.options import read_options
from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model
from graphopt.pipeline.backend import Backend

if TYPE_CHECKING:
    from graphopt.backends.xla.compiled import CompiledXla
    from graphopt.backends.xla.onnx_compiled import CompiledOnnx
    from graphopt.backends.xla.program import CompiledXlaProgram
    from graphopt.program.program import Program

MISSING = (
    "backend 'xla' needs JAX and torchax ({error}); install them with pip install 'graphopt[xla]', which pins the "
    "versions that were tested"
)


class XlaBackend(Backend):
    """Runs torch models with XLA through torchax and JAX, ONNX models through the vocabulary.
    `graphopt.backends.xla.settings.Settings` documents the options."""

    name: ClassVar[str] = "xla"
    features: ClassVar[frozenset[str]] = frozenset({"aten::_grouped_mm"})

    def lower(self, model: Model, **options: Any) -> Callable[..., Any]:
        """A `CompiledXla` for a torch model, a `CompiledOnnx` for an ONNX model. Unless check=False, every op of the
        model has been compared with torch's or onnxruntime's; if an ONNX model leaves sizes open, in the first call.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: JAX is not installed or has no device of the platform; an op has no kernel, is not in the
                vocabulary, or differs from torch or onnxruntime.
        """
        from graphopt.backends.xla.settings import Settings

        settings = read_options(Settings, self.name, options)
        if model.storage not in ("fx", "onnx"):
            raise UnsupportedError(f"backend {self.name!r} takes torch and ONNX models, not {model.storage!r}")
        _require_jax()
        return _lowered(model, settings) if model.storage == "fx" else _lowered_onnx(model, settings)

    def lower_program(
        self, program: Program, *, devices: int = 1, tensor: int = 1, **options: Any
    ) -> CompiledXlaProgram:
        """A `CompiledXlaProgram`: the whole loop compiled as one function. Every op of its graphs has been compared
        with torch's or onnxruntime's, unless check=False. Its constructor documents `devices` and `tensor`.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: JAX is not installed or has too few devices of the platform; an op has no kernel,
                is not in the vocabulary, or differs from torch or onnxruntime.
        """
        from graphopt.backends.xla.settings import Settings

        settings = read_options(Settings, self.name, options)
        program = program.convert(self.name)
        if settings.buckets is not None:
            raise UnsupportedError(f"backend {self.name!r}: the sizes of a program are fixed, so it takes no buckets")
        _require_jax()
        from graphopt.backends.xla.program import CompiledXlaProgram

        return CompiledXlaProgram(program, settings, devices, tensor)


def _require_jax() -> None:
    try:
        import jax  # noqa: F401

        version("torchax")
    except (ImportError, PackageNotFoundError) as error:
        raise UnsupportedError(MISSING.format(error=error)) from error


def _lowered(model: Any, settings: Any) -> CompiledXla:
    from graphopt.backends.xla.compiled import CompiledXla
    from graphopt.backends.xla.conformance import check_ops
    from graphopt.backends.xla.function import decomposed
    from graphopt.ir.fx.tensors import to_torch
    from graphopt.verify.whole import whole_feeds

    program = decomposed(model.program())
    notes = []
    if settings.check:
        checked = check_ops(program, [to_torch(array) for array in whole_feeds(model, model.examples())])
        notes.append(f"{checked} ops of distinct sizes agree with torch")
    return CompiledXla(program, settings, notes)


def _lowered_onnx(model: Any, settings: Any) -> CompiledOnnx:
    from graphopt.backends.xla.onnx_compiled import CompiledOnnx

    return CompiledOnnx(model, settings)
