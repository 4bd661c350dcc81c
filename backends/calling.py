"""A call of a torch program: its arguments as the tensors that are handed to a runtime, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, TensorArgument
from torch.utils import _pytree as pytree

from graphopt.backends.guards import Guards
from graphopt.backends.inputs import InputError, InputType
from graphopt.backends.signature import Signature, require_constant, result_of, tensor_of
from graphopt.ir.fx.layouts import strided_inputs
from graphopt.ir.fx.tensors import DTYPE_NAMES


class Calling:
    """How a program is called, and what tensors it takes."""

    def __init__(self, program: ExportedProgram) -> None:
        self.signature = Signature(program)
        self.types = _input_types(program)
        """Of the inputs that are tensors or sizes, in order."""
        self._ranges = _ranges(program)
        self._guards = Guards(program, self.signature.arguments.names)
        self._flat = strided_inputs(program)
        """Names of inputs that have to be contiguous: other runtimes do not see how a tensor lies in memory."""
        given = [a for a in self.signature.inputs if not isinstance(a, ConstantArgument)]
        self.are_tensors = [isinstance(a, TensorArgument) for a in given]
        """Which of them are tensors."""

    @property
    def notes(self) -> list[str]:
        """What is not checked of a call."""
        return [f"not checked of the inputs L of a call: {text}" for text in self._guards.unread]

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call, in the order of `types`.

        Raises:
            InputError: other arguments than the model was exported with, wrong dtypes, ranks or sizes, or sizes outside
                of the ranges that it was exported for; an input whose strides the model reads that is not contiguous.
        """
        given = self.signature.arguments.named(args, kwargs)
        found: list[torch.Tensor] = []
        sizes: dict[str, int] = {}
        types = iter(self.types)
        for argument, value in zip(self.signature.inputs, self.signature.leaves(given), strict=True):
            if isinstance(argument, ConstantArgument):
                require_constant(argument, value)
            else:
                if argument.name in self._flat:
                    _require_contiguous(argument.name, value)
                found.append(_checked(argument, value, next(types), sizes))
        for symbol, size in sizes.items():
            least, most = self._ranges.get(symbol, (0, size))
            if not least <= size <= most:
                raise InputError(
                    f"a size of {size} is given for {self._place(symbol)}, and the model was exported for {least:g} to "
                    f"{most:g}; export it again for a larger range"
                )
        self._guards.require(given)
        return found

    def _place(self, symbol: str) -> str:
        """The first input and axis of this size."""
        return next(f"{t.name}:{t.shape.index(symbol)}" for t in self.types if symbol in (t.shape or ()) and t.shape)

    def result(self, tensors: Iterable[torch.Tensor]) -> Any:
        """What the call returns, of the tensors that the graph returned."""
        remaining = iter(tensors)
        leaves = [result_of(argument, remaining) for argument in self.signature.outputs]
        return pytree.tree_unflatten(leaves, self.signature.result)


def _input_types(program: ExportedProgram) -> list[InputType]:
    names = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in names and isinstance(value, torch.Tensor):
            dtype = DTYPE_NAMES[value.dtype]
            shape = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
            found.append(InputType(node.name, dtype, dtype, shape))
        elif node.name in names and isinstance(value, torch.SymInt):
            found.append(InputType(node.name, "int64", "int64", ()))
    return found


def _ranges(program: ExportedProgram) -> dict[str, tuple[float, float]]:
    """The least and the largest size of each symbol: another branch may have been taken for others. A least size of 2
    is how torch writes that 0 and 1 were not looked at, and binds no call of it either."""
    found = {}
    for symbol, interval in program.range_constraints.items():
        least, most = float(interval.lower), float(interval.upper)
        found[str(symbol)] = (least if least > 2 else 0, most)
    return found


def _require_contiguous(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor) and not value.is_contiguous():
        raise InputError(
            f"the model reads {name!r} by its strides (as_strided), of which the runtime knows nothing; expected a "
            f"contiguous tensor, got strides {tuple(value.stride())}; give .contiguous() of it, if that is what "
            "as_strided is meant to see, or lower to the backend 'torch'"
        )


def _checked(argument: Any, value: Any, expected: InputType, sizes: dict[str, int]) -> torch.Tensor:
    """`value` as a tensor of the type that the program expects; `sizes` are those of the symbols seen so far."""
    tensor = tensor_of(argument, value, expected)
    for symbol, size in zip(expected.shape or (), tensor.shape, strict=True):
        if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
            raise InputError(
                f"input {expected.name!r} is {expected}, and {symbol} is {sizes[symbol]} elsewhere, {size} here"
            )
    return tensor
