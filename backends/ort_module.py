"""A session as a callable for torch tensors: what a torch model becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument
from torch.utils import _pytree as pytree

from graphopt.backends.ort_compiled import Compiled, RunError
from graphopt.backends.ort_inputs import InputError, InputType, check_input
from graphopt.errors import did_you_mean
from graphopt.ir.fx.tensors import DTYPE_NAMES, TORCH_DTYPES, to_numpy, to_torch
from graphopt.ir.onnx.dtypes import DATA_TYPES


class Signature:
    """How a program is called: argument names, structure of inputs and outputs, and which leaves are
    tensors."""

    def __init__(self, program: ExportedProgram) -> None:
        spec = program.call_spec
        self.structure: Any = spec.in_spec
        self.result: Any = spec.out_spec
        self.positional: int = self.structure.child(0).num_children
        self.keywords: list[str] = list(self.structure.child(1).context)
        first = [f"arg_{i}" for i in range(self.positional)]
        signature = program.module_call_graph[0].signature
        names = signature.forward_arg_names if signature is not None else None
        self.names: list[str] = [*(names or first)[: self.positional], *self.keywords]
        self.inputs = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        self.outputs = [
            s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT
        ]

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call in the order of `inputs`.

        An argument that is left out takes the value with which the program was exported, if that is no
        tensor.

        Raises:
            InputError: too many, unknown, missing or twice given arguments, or another structure than
            exported.
        """
        if len(args) > len(self.names):
            raise InputError(
                f"the model takes {len(self.names)} arguments ({self._listed()}), got {len(args)}"
            )
        given = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument {name!r} is given both by position and by name")
            if name not in self.names:
                raise InputError(
                    f"the model was exported without an argument {name!r}{did_you_mean(name, self.names)}; "
                    f"it takes {self._listed()}"
                )
            given[name] = value
        leaves: list[Any] = []
        for name, child in zip(self.names, self._children(), strict=True):
            own = self.inputs[len(leaves) : len(leaves) + child.num_leaves]
            leaves += self._leaves_of(name, child, given[name]) if name in given else self._default(name, own)
        return leaves

    def _children(self) -> list[Any]:
        positional, keyword = self.structure.child(0), self.structure.child(1)
        return [*positional.children(), *keyword.children()]

    def _leaves_of(self, name: str, child: Any, value: Any) -> list[Any]:
        try:
            return list(child.flatten_up_to(value))
        except ValueError as error:
            raise InputError(
                f"argument {name!r} has another structure than when exported: {error}"
            ) from error

    def _default(self, name: str, own: Sequence[Any]) -> list[Any]:
        if all(isinstance(arg, ConstantArgument) for arg in own):
            return [arg.value for arg in own]
        raise InputError(f"missing argument {name!r}; the model takes {self._listed()}")

    def _listed(self) -> str:
        return ", ".join(self.names) or "no arguments"


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
                _require_constant(argument, value)
            else:
                tensors.append(_tensor(argument, value, next(types)))
        results = self._run_bound(tensors) if self._bound else self._run_copied(tensors)
        remaining = iter(results)
        leaves = [_result(argument, remaining) for argument in self.signature.outputs]
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


def _require_constant(argument: Any, value: Any) -> None:
    if type(value) is not type(argument.value) or value != argument.value:
        raise InputError(
            f"argument {argument.name!r} was {argument.value!r} when the model was exported and is part of "
            f"it, got "
            f"{value!r}; export again to change it"
        )


def _tensor(argument: Any, value: Any, expected: InputType) -> torch.Tensor:
    """`value` as a contiguous CPU tensor of the type that the session expects."""
    if isinstance(argument, SymIntArgument) and isinstance(value, int):
        value = torch.tensor(value, dtype=TORCH_DTYPES[expected.dtype or "int64"])
    if not isinstance(value, torch.Tensor):
        raise InputError(
            f"input {expected.name!r} is {expected}, got {type(value).__name__}; give a torch.Tensor"
        )
    if value.device.type != "cpu":
        raise InputError(f"input {expected.name!r} is on {value.device}; move it to the CPU with .cpu()")
    if value.dtype not in DTYPE_NAMES:
        raise InputError(f"input {expected.name!r} is {expected}, got {value.dtype}")
    check_input(expected, DTYPE_NAMES[value.dtype], value.shape)
    return value.detach().resolve_neg().contiguous()


def _result(argument: Any, remaining: Any) -> Any:
    if isinstance(argument, ConstantArgument):
        return argument.value
    tensor = next(remaining)
    return int(tensor) if isinstance(argument, SymIntArgument) else tensor
