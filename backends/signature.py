"""How a torch program is called: its arguments, and what a call of it returns, on whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument

from graphopt.backends.inputs import InputError, InputType, check_input
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.arguments import Arguments, leaves_of
from graphopt.ir.fx.tensors import DTYPE_NAMES, TORCH_DTYPES


class Signature:
    """How a program is called: argument names, structure of inputs and outputs, and which leaves are
    tensors."""

    def __init__(self, program: ExportedProgram) -> None:
        self.arguments = Arguments(program)
        self.result: Any = program.call_spec.out_spec
        self.inputs = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        self.outputs = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]

    def leaves(self, given: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call, of which arguments are `given` by name, in the order of `inputs`.

        An argument that is left out takes the value with which the program was exported, if that is no
        tensor.

        Raises:
            InputError: a missing argument, or another structure than exported.
        """
        leaves: list[Any] = []
        for name, child in zip(self.arguments.names, self.arguments.structures, strict=True):
            own = self.inputs[len(leaves) : len(leaves) + child.num_leaves]
            leaves += leaves_of(name, child, given[name]) if name in given else self._default(name, own)
        return leaves

    def _default(self, name: str, own: Sequence[Any]) -> list[Any]:
        if all(isinstance(arg, ConstantArgument) for arg in own):
            return [arg.value for arg in own]
        raise InputError(f"missing argument {name!r}; the model takes {self.arguments.listed()}")


def require_stateless(program: ExportedProgram, backend: str) -> None:
    """
    Raises:
        UnsupportedError: the program writes a buffer or an input, which `backend` would not.
    """
    written = [s.target for s in program.graph_signature.output_specs if s.kind is not OutputKind.USER_OUTPUT]
    if written:
        raise UnsupportedError(
            f"backend {backend!r} runs programs without state, and this one writes {', '.join(map(str, written))}; "
            "return the new value as an output instead, or call .eval() if a layer is in training mode"
        )


def require_constant(argument: Any, value: Any) -> None:
    if type(value) is not type(argument.value) or value != argument.value:
        raise InputError(
            f"argument {argument.name!r} was {argument.value!r} when the model was exported and is part of "
            f"it, got "
            f"{value!r}; export again to change it"
        )


def result_of(argument: Any, remaining: Iterator[Any]) -> Any:
    """One leaf of what is returned; tensors come from `remaining`."""
    if isinstance(argument, ConstantArgument):
        return argument.value
    tensor = next(remaining)
    return int(tensor) if isinstance(argument, SymIntArgument) else tensor


def tensor_of(argument: Any, value: Any, expected: InputType) -> torch.Tensor:
    """`value` as a contiguous CPU tensor of the type that is expected.

    Raises:
        InputError: it is none, lies elsewhere, or has another dtype, rank or size.
    """
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
