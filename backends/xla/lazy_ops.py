"""Which ops of a torch program torch_xla keeps on the device, and taking apart those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_xla
from torch.export.exported_program import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from graphopt.backends.signature import require_stateless
from graphopt.backends.xla.lazy_graph import LazyInterpreter, on_device
from graphopt.backends.xla.torch_ops import described, draws, rules
from graphopt.backends.xla.weights import arguments, weights_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.decompose import run_decompositions


def decomposed(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> ExportedProgram:
    """`program` with ops that leave the device for `inputs` taken apart by torch, as far as it can.

    Raises:
        UnsupportedError: ops that draw random numbers, branches, sizes that depend on the data, and ops that torch_xla
            has no kernel for, naming all of them; a buffer that the program writes.
    """
    require_stateless(program, "xla")
    missing: set[Any] = set()
    while True:
        before, missing = missing, _unfit(program) or departing(program, inputs)
        table = rules(missing)
        if not table or missing == before:
            break
        program = run_decompositions(program, table)
    if missing:
        named = ", ".join(sorted(described(target) for target in missing))
        raise UnsupportedError(f"backend 'xla': torch_xla has no kernel for {named}")
    return program


def _unfit(program: ExportedProgram) -> set[Any]:
    """Ops that are no part of one graph on the device: branches, random numbers, sizes that depend on the data."""
    found = set()
    for node in program.graph.nodes:
        if node.op == "call_function":
            is_open = any(free_unbacked_symbols(v) for v in pytree.tree_leaves(node.meta.get("val")) if _is_sized(v))
            if is_open or draws(node) or isinstance(node.target, torch._ops.HigherOrderOperator):
                found.add(node.target)
    return found


def _is_sized(value: Any) -> bool:
    return isinstance(value, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


def departing(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> set[Any]:
    """Ops that torch_xla runs on the CPU, or not at all, for `inputs`."""
    scout = _Scout(program.graph_module, {})
    device = torch_xla.device()
    args = arguments(program.graph_signature.input_specs, weights_of(program), inputs)
    args = pytree.tree_map_only(torch.Tensor, lambda x: x.detach().to(device), args)
    torch.fx.Interpreter.run(scout, *args, enable_io_processing=False)
    return scout.departing


class _Scout(LazyInterpreter):
    """Goes on where an op leaves the device."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.departing: set[Any] = set()

    def run_node(self, node: torch.fx.Node) -> Any:
        return torch.fx.Interpreter.run_node(self, node)  # types are held against torch's when the model is run

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return torch.fx.Interpreter.call_function(self, target, args, kwargs)
        try:
            return on_device(target, args, kwargs)
        except Exception:  # torch_xla raises whatever it does
            self.departing.add(target)
        with torch.no_grad():
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, (args, kwargs))
            return pytree.tree_map_only(torch.Tensor, lambda x: x.to(torch_xla.device()), target(*args, **kwargs))
