"""How a torch program is called: its arguments, and what a call of it returns, on whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, SymIntArgument

from graphopt.backends.inputs import InputError, InputType, check_input
from graphopt.errors import UnsupportedError, did_you_mean
from graphopt.ir.fx.positions import by_position
from graphopt.ir.fx.tensors import DTYPE_NAMES, TORCH_DTYPES


class Signature:
    """How a program is called: argument names, structure of inputs and outputs, and which leaves are
    tensors."""

    def __init__(self, program: ExportedProgram) -> None:
        spec = program.call_spec
        self.structure: Any = spec.in_spec
        self.result: Any = spec.out_spec
        positional, keyword = _children_of(self.structure)
        self.positional: int = positional.num_children
        self.keywords: list[str] = list(keyword.context)
        first = [f"arg_{i}" for i in range(self.positional)]
        signature = program.module_call_graph[0].signature
        names = signature.forward_arg_names if signature is not None else None
        self.names: list[str] = [*(names or first)[: self.positional], *self.keywords]
        self._by_position = by_position(program, self.names[: self.positional])
        self.inputs = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        self.outputs = [s.arg for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The leaves of a call in the order of `inputs`.

        An argument that is left out takes the value with which the program was exported, if that is no
        tensor.

        Raises:
            InputError: too many, unknown, missing or twice given arguments, or another structure than
            exported.
        """
        if len(args) > len(self._by_position):
            raise InputError(
                f"the model takes {len(self.names)} arguments ({self._listed()}), got {len(args)} by position, where "
                f"it takes {len(self._by_position)}"
            )
        given = dict(zip(self._by_position, args, strict=False))
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
        return [child for part in _children_of(self.structure) for child in _children_of(part)]

    def _leaves_of(self, name: str, child: Any, value: Any) -> list[Any]:
        try:
            return list(child.flatten_up_to(value))
        except ValueError as error:
            raise InputError(f"argument {name!r} has another structure than when exported: {error}") from error

    def _default(self, name: str, own: Sequence[Any]) -> list[Any]:
        if all(isinstance(arg, ConstantArgument) for arg in own):
            return [arg.value for arg in own]
        raise InputError(f"missing argument {name!r}; the model takes {self._listed()}")

    def _listed(self) -> str:
        return ", ".join(self.names) or "no arguments"


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


def _children_of(spec: Any) -> list[Any]:
    """The parts of a TreeSpec; torch 2.9 has them as an attribute that later ones warn about."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)


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
