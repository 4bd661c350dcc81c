"""The tensors that stand before the inputs of a torch program, and what its graph is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec


def arguments(specs: Sequence[InputSpec], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """What stands for each of `specs`: weights, inputs, and the values of constants that are no tensors."""
    stored, given = iter(weights), iter(inputs)
    found: list[Any] = []
    for spec in specs:
        if spec.kind is not InputKind.USER_INPUT:
            found.append(next(stored))
        else:
            found.append(spec.arg.value if isinstance(spec.arg, ConstantArgument) else next(given))
    return found


def weights_of(program: ExportedProgram) -> list[torch.Tensor]:
    """The tensors that stand before the inputs of `program`, in the order of its signature."""
    tables = {**program.constants, **program.state_dict}
    return [tables[name] for name in weight_names(program)]


def weight_names(program: ExportedProgram) -> list[str]:
    """Their names."""
    return [str(s.target) for s in program.graph_signature.input_specs if s.kind is not InputKind.USER_INPUT]
