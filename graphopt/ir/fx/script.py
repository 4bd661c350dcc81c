"""TorchScript modules, by torch's own converter."""

from __future__ import annotations

import copy
from typing import Any

import torch

from graphopt.errors import ModelError, UnsupportedError

_ADVICE = "give the nn.Module that it was made from, or a version of it in ONNX"


def is_scripted(module: torch.nn.Module) -> bool:
    return any(isinstance(m, torch.jit.ScriptModule) for m in module.modules())


def convert_script(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`module` as an ExportedProgram, checked against a run on the example inputs.

    Tracing through the TorchScript interpreter is no way: it may keep traced constants in its cache, which
    would spoil the module that was given.

    Raises:
        ModelError: no positional example inputs.
        UnsupportedError: `module` keeps state, or only a part of it is TorchScript, or the converter fails.
    """
    if not isinstance(module, torch.jit.ScriptModule):
        kind = type(module).__name__
        raise UnsupportedError(f"{kind} has TorchScript submodules, which cannot be traced; {_ADVICE}")
    if kwargs or not args:
        raise ModelError("a ScriptModule is converted with positional inputs only: pass example_inputs=(...)")
    assigned = _assigned_attributes(module)
    if assigned:
        raise UnsupportedError(
            f"this ScriptModule assigns its attributes {', '.join(assigned)} when it runs, and a graph keeps "
            f"no such state; {_ADVICE}, with the state as input and output"
        )
    try:
        from torch._export.converter import TS2EPConverter

        program = TS2EPConverter(copy.deepcopy(module), args).convert()
        expected = copy.deepcopy(module)(*copy.deepcopy(args))
        torch.testing.assert_close(program.module()(*copy.deepcopy(args)), expected)
    except Exception as error:
        raise UnsupportedError(f"torch cannot convert this ScriptModule ({error}); {_ADVICE}") from error
    return program


def _assigned_attributes(script: torch.jit.ScriptModule) -> list[str]:
    graph = script.inlined_graph
    return sorted({node.s("name") for node in graph.findAllNodes("prim::SetAttr", recurse=True)})
