"""A session as a callable for torch tensors: what a torch model becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from graphopt.backends.ort_compiled import Compiled, RunError
from graphopt.backends.signature import Signature, require_constant, result_of, tensor_of
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
        signature: Signature,
        *,
        bound: bool,
        scalars: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(session, bound=bound, scalars=scalars, notes=notes)
        self.signature = signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: other arguments than the model was exported with, or wrong dtypes, ranks or sizes.
            RunError: onnxruntime failed.
        """
        tensors: list[torch.Tensor] = []
        types = iter(self.input_types)
        for argument, value in zip(self.signature.inputs, self.signature.leaves(args, kwargs), strict=True):
            if isinstance(argument, ConstantArgument):
                require_constant(argument, value)
            else:
                tensors.append(tensor_of(argument, value, next(types)))
        results = self._run_bound(tensors) if self._bound else self._run_copied(tensors)
        remaining = iter(results)
        leaves = [result_of(argument, remaining) for argument in self.signature.outputs]
        return pytree.tree_unflatten(leaves, self.signature.result)

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
