"""The class of the backend "xla"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.backends.options import read_options
from graphopt.backends.xla.runtimes import (
    jax_is_there,
    require_jax,
    require_jax_for,
    require_torch_xla,
    torch_xla_is_there,
)
from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model
from graphopt.pipeline.backend import Backend

if TYPE_CHECKING:
    from graphopt.backends.xla.compiled import CompiledXla
    from graphopt.backends.xla.lazy import CompiledLazy
    from graphopt.backends.xla.onnx_compiled import CompiledOnnx
    from graphopt.backends.xla.program import CompiledXlaProgram
    from graphopt.program.program import Program


class XlaBackend(Backend):
    """Runs torch models with XLA through torchax and JAX, or through torch_xla where only that is installed; ONNX
    models through the vocabulary and JAX.
    `graphopt.backends.xla.settings.Settings` documents the options."""

    name: ClassVar[str] = "xla"
    features: ClassVar[frozenset[str]] = frozenset({"aten::_grouped_mm"})

    def lower(self, model: Model, **options: Any) -> Callable[..., Any]:
        """A `CompiledXla` for a torch model (by torch_xla a `CompiledLazy`), a `CompiledOnnx` for an ONNX model. Unless
        check=False, every op of the model has been compared with torch's or onnxruntime's; if an ONNX model leaves
        sizes open, in the first call.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: JAX is not installed or has no device of the platform; an op has no kernel, is not in the
                vocabulary, or differs from torch or onnxruntime.
        """
        from graphopt.backends.xla.settings import Settings

        settings = read_options(Settings, self.name, options)
        if model.storage not in ("fx", "onnx"):
            raise UnsupportedError(f"backend {self.name!r} takes torch and ONNX models, not {model.storage!r}")
        if model.storage == "onnx":
            require_jax_for("ONNX models")
            return _lowered_onnx(model, settings)
        return _lowered(model, settings)

    def lower_program(
        self, program: Program, *, devices: int = 1, tensor: int = 1, branches: int = 1, **options: Any
    ) -> CompiledXlaProgram:
        """A `CompiledXlaProgram`: the whole loop compiled as one function. Every op of its graphs has been compared
        with torch's or onnxruntime's, unless check=False. Its constructor documents `devices`, `tensor` and
        `branches`.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: JAX is not installed or has too few devices of the platform; an op has no kernel,
                is not in the vocabulary, or differs from torch or onnxruntime.
        """
        from graphopt.backends.xla.settings import Settings

        settings = read_options(Settings, self.name, options, ["devices", "tensor", "branches"])
        program = program.convert(self.name)
        if settings.buckets is not None:
            raise UnsupportedError(f"backend {self.name!r}: the sizes of a program are fixed, so it takes no buckets")
        require_jax_for("sampling programs")
        from graphopt.backends.xla.program import CompiledXlaProgram

        return CompiledXlaProgram(program, settings, devices, tensor, branches)


def _lowered(model: Any, settings: Any) -> CompiledXla | CompiledLazy:
    if not jax_is_there() and torch_xla_is_there():
        require_torch_xla()
        from graphopt.backends.xla.lazy import lower_lazily

        return lower_lazily(model, settings)
    require_jax()
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
