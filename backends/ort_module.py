"""A session as a callable for torch tensors: what a torch model becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphopt.backends.calling import Calling
from graphopt.backends.ort_compiled import Compiled, RunError
from graphopt.ir.fx.tensors import DTYPE_NAMES, to_numpy, to_torch
from graphopt.ir.onnx.dtypes import DATA_TYPES


class CompiledModule(Compiled):
    """A torch model on onnxruntime: called like the module, tensors on the CPU in and out, without gradients.

    Inputs are read where they lie and outputs are handed over without a copy; with `bound` false they go
    through numpy arrays.
    """

    def __init__(
        self,
        session: Any,
        calling: Calling,
        *,
        bound: bool,
        scalars: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(session, bound=bound, scalars=scalars, notes=(*notes, *calling.notes))
        self._calling = calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: other arguments than the model was exported with, wrong dtypes, ranks or sizes, or sizes that it
                was not exported for.
            RunError: onnxruntime failed.
        """
        tensors = self._calling.tensors(args, kwargs)
        return self._calling.result(self._run_bound(tensors) if self._bound else self._run_copied(tensors))

    def _run_copied(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        feeds = {t.name: to_numpy(x) for t, x in zip(self.input_types, tensors, strict=True)}
        return [to_torch(array) for array in self.run(feeds)]

    def _run_bound(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        binding = self.session.io_binding()
        for type_, tensor in zip(self.input_types, tensors, strict=True):
            element = int(DATA_TYPES[DTYPE_NAMES[tensor.dtype]])
            binding.bind_input(type_.name, "cpu", 0, element, tuple(tensor.shape), tensor.data_ptr())
        for name in self.output_names:
            binding.bind_output(name, "cpu")
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
            raise RunError(f"onnxruntime failed while it ran the model: {error}") from error
        return [torch.from_dlpack(value) for value in binding.get_outputs()]
