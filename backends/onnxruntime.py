"""The backend "onnxruntime": ONNX models directly, torch models through torch's ONNX exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.backends.options import read_options
from graphopt.errors import ModelError, UnsupportedError, VerificationError
from graphopt.ir.model import Model
from graphopt.pipeline.backend import Backend

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.backends.ort_compiled import Compiled
    from graphopt.backends.ort_program import CompiledProgram
    from graphopt.backends.ort_settings import Settings
    from graphopt.program.program import Program

_CONTRIB = (
    "Attention",
    "BiasGelu",
    "DynamicQuantizeMatMul",
    "FastGelu",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Gelu",
    "GroupQueryAttention",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MoE",
    "MultiHeadAttention",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)


class OnnxRuntimeBackend(Backend):
    """Runs models with onnxruntime. `graphopt.backends.ort_settings.Settings` documents the options."""

    name: ClassVar[str] = "onnxruntime"
    features: ClassVar[frozenset[str]] = frozenset(f"com.microsoft::{op}" for op in _CONTRIB)

    def lower(self, model: Model, **options: Any) -> Callable[..., Any]:
        """A `Compiled` for an ONNX model, a `CompiledModule` for a torch model.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: onnxruntime has no kernel for an op, or torch cannot export it, or exports something else.
            ModelError: onnxruntime rejects the model.
        """
        from graphopt.backends.ort_settings import Settings

        settings = read_options(Settings, self.name, options)
        if model.storage == "onnx":
            return _lower_onnx(model, settings)
        if model.storage == "fx":
            return _lower_torch(model, settings)
        raise UnsupportedError(f"backend {self.name!r} takes ONNX and torch models, not {model.storage!r}")

    def lower_program(
        self, program: Program, *, form: str = "auto", low_memory: bool = False, **options: Any
    ) -> CompiledProgram:
        """A `CompiledProgram`; its constructor documents `form` and `low_memory`.

        Raises:
            PipelineError: unknown option or bad value.
            UnsupportedError: onnxruntime has no kernel for an op, or torch cannot export it.
            ModelError: onnxruntime rejects the program.
        """
        from graphopt.backends.ort_program import CompiledProgram
        from graphopt.backends.ort_settings import Settings

        settings = read_options(Settings, self.name, options, ["form", "low_memory"])
        return CompiledProgram(program.convert(self.name), form, settings, low_memory=low_memory)

    def convert(self, model: Model) -> Model:
        """A torch model through torch's exporter; an ONNX model as it is.

        Raises:
            UnsupportedError: torch cannot export it.
        """
        if model.storage == "onnx":
            return model
        if model.storage != "fx":
            raise UnsupportedError(f"backend {self.name!r} takes ONNX and torch models, not {model.storage!r}")
        return _converted(model)


def _lower_onnx(model: Any, settings: Settings) -> Compiled:
    from graphopt.backends.ort_compiled import Compiled
    from graphopt.backends.ort_repair import without_idle_squeezes
    from graphopt.backends.ort_session import open_session

    runnable, repaired = without_idle_squeezes(model)
    notes = [f"{name}: Squeeze of a dimension that is not 1 was made an Identity" for name in repaired]
    session = open_session(runnable, settings)
    return Compiled(session, bound=settings.io_binding is True, scalars=_scalars(runnable), notes=notes)


def _lower_torch(model: Any, settings: Settings) -> Compiled:
    from graphopt.backends.calling import Calling
    from graphopt.backends.ort_module import CompiledModule
    from graphopt.backends.ort_session import open_session

    program = model.program()
    calling = Calling(program)
    exported, notes = _exported(model, program)
    if settings.compare:
        notes += _compared(model, exported)
    session = open_session(exported, settings)
    return CompiledModule(
        session, calling, bound=settings.io_binding is not False, scalars=_scalars(exported), notes=notes
    )


def _compared(model: Model, exported: ir.Model) -> list[str]:
    """Why what was exported could not be run beside `model`, if it could not.

    Raises:
        UnsupportedError: the two compute different things.
    """
    from graphopt.ir.onnx.model import OnnxModel
    from graphopt.verify.whole import compare_conversion

    try:
        verdict = compare_conversion(model, OnnxModel(exported))
    except (ModelError, VerificationError) as error:
        return [f"not compared with torch: {error}"]
    if verdict.reason:
        return [f"not compared with torch: {verdict}"]
    if not verdict.ok:
        raise UnsupportedError(
            f"what torch.onnx.export makes of this model does not compute the same: {verdict}; lower it to the backend "
            "'torch', or with compare=False if the difference is none to you"
        )
    return []


def _exported(model: Any, program: Any) -> tuple[ir.Model, list[str]]:
    """A torch model as ONNX, its experts lowered there, and what is to be said of that."""
    from graphopt.backends.ort_experts import lowered_experts, may_have_experts
    from graphopt.backends.ort_export import export_onnx

    exported = export_onnx(program)
    if not any(may_have_experts(graph) for graph in model.regions()):
        return exported, []
    return lowered_experts(exported, OnnxRuntimeBackend.name)


def _converted(model: Any) -> Model:
    from graphopt.ir.onnx.model import OnnxModel

    exported = OnnxModel(_exported(model, model.program())[0])
    before, after = len(model.main.inputs()), len(exported.main.inputs())
    if before != after:
        raise UnsupportedError(f"torch.onnx.export made a model of {after} inputs from one of {before}")
    return exported


def _scalars(model: ir.Model) -> list[str]:
    return [v.name or "" for v in model.graph.inputs if v.shape is not None and len(v.shape) == 0]
