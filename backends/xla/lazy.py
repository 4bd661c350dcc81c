"""A torch model on XLA by torch_xla, where JAX is not installed.

Its program is recorded op by op on lazy tensors at each call; XLA compiles the recorded graph when it sees it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch_xla
from torch.export.exported_program import ExportedProgram
from torch_xla import runtime
from torch_xla.backends import get_mat_mul_precision, set_mat_mul_precision
from torch_xla.debug import metrics

from graphopt.backends.calling import Calling
from graphopt.backends.constants import constants_of
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.lazy_check import check_ops
from graphopt.backends.xla.lazy_graph import LazyInterpreter, fetched
from graphopt.backends.xla.lazy_ops import decomposed
from graphopt.backends.xla.results import computed
from graphopt.backends.xla.runtimes import torch_xla_runtime
from graphopt.backends.xla.settings import Settings
from graphopt.backends.xla.weights import arguments, weights_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import DTYPE_NAMES, to_numpy, to_torch
from graphopt.verify.whole import whole_feeds

PLATFORMS = {"CPU": "cpu", "TPU": "tpu", "CUDA": "gpu", "GPU": "gpu"}
"""torch_xla's names of device types."""


def lower_lazily(model: Any, settings: Settings) -> CompiledLazy:
    """`model`, an FxModel, on torch_xla. Unless check=False, every op has been compared with torch, then the whole.

    Raises:
        UnsupportedError: torch_xla runs on another platform or in another precision; ops that it cannot run, or runs
            differently.
    """
    _require_platform(settings.platform)
    _require_precision(settings.precision)
    if settings.buckets is not None:
        raise UnsupportedError("backend 'xla': torch_xla compiles for each size and takes no buckets")
    inputs = [to_torch(array) for array in whole_feeds(model, model.examples())]
    program = decomposed(model.program(), inputs)
    compiled = CompiledLazy(program, settings)
    if settings.check:
        checked, expected = check_ops(program, inputs)
        _require_equal(compiled.run(inputs), computed(program.graph, expected))
        compiled.notes = (f"{checked} ops of distinct sizes and the whole agree with torch",)
    return compiled


class CompiledLazy:
    """A torch model on XLA: called like the module, tensors on the CPU in and out, without gradients.

    It is compiled when it is checked, or at the first call, and again for inputs of other sizes where the model allows
    them.
    """

    def __init__(self, program: ExportedProgram, settings: Settings) -> None:
        """`program`: one whose ops torch_xla keeps on the device (`lazy_ops.decomposed`)."""
        self.settings = settings
        self.runtime = torch_xla_runtime()
        """What runs it."""
        self.notes: tuple[str, ...] = ()
        """What was done or found on the way, for a reader."""
        self.compilations = 0
        """How often XLA has compiled for it; a graph that another model had already is not compiled again."""
        self._calling = Calling(program)
        self._specs = program.graph_signature.input_specs
        self._device = torch_xla.device()
        self._weights = [tensor.detach().to(self._device) for tensor in weights_of(program)]
        constants = constants_of(program.graph_module)
        self._graph = LazyInterpreter(program.graph_module, {n: x.to(self._device) for n, x in constants.items()})
        torch_xla.sync(wait=True)  # so that weights are data on the device, and no part of the graphs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: other arguments than the model was exported with, or wrong dtypes, ranks or sizes.
            UnsupportedError: an op that torch_xla does not keep on the device, or computes in other types than torch,
                for inputs of these sizes.
        """
        return self._calling.result(self.run(self._calling.tensors(args, kwargs)))

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors and sizes that the graph returns, for those that it takes."""
        on_device = [
            x.to(self._device) if is_tensor else int(x)
            for x, is_tensor in zip(inputs, self._calling.are_tensors, strict=True)
        ]
        before = _compiled()
        results = self._graph.run(*arguments(self._specs, self._weights, on_device), enable_io_processing=False)
        results = computed(self._graph.module.graph, results)
        found = fetched([r if isinstance(r, torch.Tensor) else torch.tensor(r) for r in results if r is not None])
        self.compilations += _compiled() - before
        return found

    def save(self, *_: Any, **__: Any) -> NoReturn:
        """Raises UnsupportedError: files are jax.export's."""
        self._refuse("files for jax.export")

    def compile_for(self, *_: Any) -> NoReturn:
        """Raises UnsupportedError: libtpu is reached through JAX."""
        self._refuse("compiling for a TPU that is not there")

    def function(self) -> NoReturn:
        """Raises UnsupportedError: there is no function of JAX arrays."""
        self._refuse("functions of JAX arrays")

    def arguments(self) -> NoReturn:
        """Raises UnsupportedError: there is no function of JAX arrays."""
        self._refuse("functions of JAX arrays")

    def hlo(self) -> NoReturn:
        """Raises UnsupportedError: torch_xla does not give the optimised HLO."""
        self._refuse("texts of optimised HLO")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(
            f"backend 'xla': this model runs by {self.runtime}, and {what} need JAX and torchax: "
            "pip install 'graphopt[xla]'"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} by {self.runtime} on {self.settings.platform}>"


def _compiled() -> int:
    return int(metrics.counter_value("UncachedCompile") or 0)


def _require_platform(platform: str) -> None:
    found = PLATFORMS.get(runtime.device_type() or "", str(runtime.device_type()))
    if found != platform:
        raise UnsupportedError(
            f"backend 'xla': torch_xla runs on platform {found!r} in this process, not on {platform!r}; PJRT_DEVICE "
            "in the environment chooses it"
        )


def _require_precision(precision: str) -> None:
    """torch_xla has one precision in a process, which graphs that it has compiled already keep."""
    if _compiled() == 0 and get_mat_mul_precision() != precision:
        set_mat_mul_precision(precision)
    if get_mat_mul_precision() != precision:
        raise UnsupportedError(
            f"backend 'xla': torch_xla has compiled with precision {get_mat_mul_precision()!r} in this process "
            f"already, so that {precision!r} would not hold; use one precision, or another process"
        )


def _require_equal(results: Sequence[torch.Tensor], expected: Sequence[Any]) -> None:
    tensors = [x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in expected if x is not None]
    for number, (own, reference) in enumerate(zip(results, tensors, strict=True)):
        reason = difference(to_numpy(reference.detach()), to_numpy(own))
        if own.dtype != reference.dtype:
            reason = f"{DTYPE_NAMES[own.dtype]}, expected {DTYPE_NAMES[reference.dtype]}"
        if reason is not None:
            raise UnsupportedError(
                f"backend 'xla': every op agrees with torch, and output {number} of the whole differs: {reason}; run "
                "the model on another backend"
            )
