"""What a backend is: it turns a model into something that runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.errors import UnsupportedError
from graphopt.ir.model import Model

if TYPE_CHECKING:
    from graphopt.program.program import Program


class Backend(ABC):
    """A target. Registered under the entry-point group "graphopt.backends"."""

    name: ClassVar[str]
    """Command-line name; also the name of the entry point."""
    features: ClassVar[frozenset[str]] = frozenset()
    """Raw ops that this target runs beyond the storage's standard ("com.microsoft::FusedConv"). Passes may emit them
    only when the user names the target."""

    @abstractmethod
    def lower(self, model: Model, **options: Any) -> Callable[..., Any]:
        """`model` as a callable that takes and returns what the original took and returned.

        Raises:
            UnsupportedError: the target cannot run it; the message names the op.
            PipelineError: an option that the backend does not have.
        """

    def lower_program(self, program: Program, **options: Any) -> Callable[..., Any]:
        """A sampling program as a callable with the signature of `Program.__call__`.

        Raises:
            UnsupportedError: the target cannot run it, or runs no programs.
            PipelineError: an option that the backend does not have.
        """
        raise UnsupportedError(f"backend {self.name!r} runs no sampling programs")

    def convert(self, model: Model) -> Model:
        """`model` in the storage that this target runs; itself if it is already.

        Raises:
            UnsupportedError: it cannot be said in that storage.
        """
        return model
