"""A function of JAX arrays and its settings: what a compiled model and a compiled program have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from graphopt.backends.xla.ahead import CompiledAhead, compile_ahead
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.files import write_arrays
from graphopt.backends.xla.runtimes import jax_runtime
from graphopt.backends.xla.settings import Settings

if TYPE_CHECKING:
    from graphopt.backends.xla.buckets import Buckets


class Jitted(ABC):
    """Something that XLA compiles at its first call."""

    def __init__(
        self,
        function: Callable[[Any, Any], Any],
        settings: Settings,
        divided: Callable[[Any, Any], Any] | None = None,
        devices: int = 1,
        **options: Any,
    ) -> None:
        """
        Args:
            function: of weights and inputs, pytrees of arrays.
            settings: how it is compiled.
            divided: the same function as it is compiled here, if it says itself what each device does.
            devices: on how many it runs.
            options: of `jax.jit`.
        """
        self.settings = settings
        self.runtime = jax_runtime()
        """What runs it."""
        self._function = function
        self._run = jax.jit(divided or function, compiler_options=settings.compiler_options(devices), **options)
        self._buckets: Buckets | None = None

    @property
    def compilations(self) -> int:
        """How often it has been compiled."""
        of_buckets = 0 if self._buckets is None else self._buckets.compilations
        return int(self._run._cache_size()) + of_buckets

    def function(self) -> Callable[[Any, Any], Any]:
        """The function of weights and inputs that is compiled: pure, of JAX arrays, for any transformation of JAX.

        It is traced with 64-bit types, as `graphopt.backends.xla.arrays.exact_types` switches them on, or what torch
        computes with 64 bits is refused.
        """
        return self._function

    def __repr__(self) -> str:
        return f"<{type(self).__name__} by {self.runtime} on {self.settings.platform}>"

    @abstractmethod
    def arguments(self) -> tuple[Any, Any]:
        """What `function()` takes, as pytrees of `jax.ShapeDtypeStruct`.

        Raises:
            UnsupportedError: sizes of the inputs are open.
        """

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """The arrays that `function()` takes first, by name, in its order.

        Raises:
            UnsupportedError: sizes of the inputs are open.
        """

    def save_weights(self, path: str | Path) -> None:
        """Write `weights()` as an .npz file, in their order and without pickle: what an executable of `compile_for`
        takes before the inputs. See `graphopt.backends.xla.files.write_arrays` for how bfloat16 is read.

        Raises:
            UnsupportedError: sizes of the inputs are open.
            ModelError: there is no such folder, or no file can take this place.
            OSError: the file cannot be written.
        """
        write_arrays(Path(path), self.weights())

    def hlo(self) -> str:
        """What XLA makes of it on this platform: the optimised HLO as text. Compiles it once more."""
        with exact_types(self.settings.precision):
            return str(self._run.lower(*self.arguments()).compile().as_text())

    def compile_for(self, topology: str) -> CompiledAhead:
        """Compiled for one chip of a TPU topology such as "v5e:2x2", by libtpu; no TPU is needed, and nothing is run on
        one. The executable takes the leaves of `arguments()` in order.

        Raises:
            PipelineError: libtpu knows no such topology.
            MissingExtraError: libtpu is not installed; the message says how.
            UnsupportedError: sizes of the inputs are open, or libtpu does not compile it.
        """
        return compile_ahead(self._function, self.arguments(), topology, self.settings.precision)
