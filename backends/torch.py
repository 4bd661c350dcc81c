"""The backend "torch": torch models as an nn.Module again, for reference and for training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from graphopt.backends.options import read_options
from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model
from graphopt.pipeline.backend import Backend


@dataclass(frozen=True)
class _NoOptions:
    """This backend has no options."""


class TorchBackend(Backend):
    """Gives the optimised program as a `torch.nn.Module` that is called as the original was."""

    name: ClassVar[str] = "torch"
    features: ClassVar[frozenset[str]] = frozenset({"aten::_grouped_mm"})

    def lower(self, model: Model, **options: Any) -> Callable[..., Any]:
        """The module of an FX model. It shares its weights with the model that was given.

        Raises:
            PipelineError: any option.
            UnsupportedError: `model` is not a torch model.
        """
        read_options(_NoOptions, self.name, options)
        if model.storage != "fx":
            raise UnsupportedError(
                f"backend 'torch' runs torch models and this one is {model.storage!r}; there is no "
                f"conversion from ONNX "
                "to torch: lower it to the backend 'onnxruntime'"
            )
        taken: Any = model
        module: Callable[..., Any] = taken.runnable()
        return module
