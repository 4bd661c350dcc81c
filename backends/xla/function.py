"""A torch program as a function of JAX arrays, op by op, each result held against the type that torch gave it.

JAX narrows silently: int64 to int32 and float64 to float32 unless told otherwise, and some kernels give positions as
int32 in any case. So 64-bit types are switched on while a program is traced and run, and every result is compared with
the dtype and sizes of torch: what was counted in fewer bits than torch's is refused by name, except positions in an
axis, which no dtype cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.export.exported_program import ExportedProgram

from graphopt.backends.constants import constants_of
from graphopt.backends.signature import require_stateless
from graphopt.backends.xla import layout
from graphopt.backends.xla.arrays import to_jax
from graphopt.backends.xla.kernels import kernel_of
from graphopt.backends.xla.results import computed
from graphopt.backends.xla.torch_calls import readable_calls
from graphopt.backends.xla.torch_ops import POSITIONS, described, rules
from graphopt.backends.xla.weights import arguments
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.decompose import run_decompositions
from graphopt.ir.fx.tensors import DTYPE_NAMES


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """`program` with ops that no kernel is known for said in the vocabulary or taken apart by torch. It may be changed.

    Raises:
        UnsupportedError: an op that is known neither way, naming all of them; a buffer that the program writes.
    """
    require_stateless(program, "xla")
    program, missing = taken_apart(program)
    if missing:
        named = ", ".join(sorted(described(target) for target in missing))
        raise UnsupportedError(f"backend 'xla' has no kernel for {named}")
    return program


def taken_apart(program: ExportedProgram) -> tuple[ExportedProgram, set[Any]]:
    """`program` with ops that no kernel is known for said in the vocabulary, or taken apart by torch, as far as these
    can; and the ops that are left of them."""
    missing: set[Any] = set()
    while True:
        calls = readable_calls(program)
        before, missing = missing, _missing(program, calls)
        table = rules(missing)
        if not table or missing == before:  # torch has a rule for some op, which does not say it with these operands
            break
        program = run_decompositions(program, table)
    for node, call in calls.items():
        node.target = call
    return program, missing


def _missing(program: ExportedProgram, calls: Mapping[torch.fx.Node, Any]) -> set[Any]:
    """Ops without a kernel that are not among `calls` either, in branches too."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes if node.op == "call_function" and node not in calls]
    ops = {n.target for n in nodes if isinstance(n.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)}
    return {t for t in ops if t is not torch.ops.higher_order.cond and kernel_of(t) is None}


class Interpreter(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a graph on JAX arrays."""

    def __init__(self, module: torch.fx.GraphModule, constants: Mapping[torch.fx.Node, torch.Tensor] | None = None):
        """`constants`: results that are known already."""
        super().__init__(module)
        self._constants = constants or {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.higher_order.cond:
            return _cond(*layout.plain(args))
        kernel = kernel_of(target)
        if kernel is None:
            return super().call_function(target, layout.plain(args), layout.plain(kwargs))
        try:
            return layout.run(target, kernel, args, kwargs)
        except UnsupportedError:
            raise
        except Exception as error:  # kernels raise whatever JAX does
            raise UnsupportedError(f"backend 'xla': {target} fails in JAX: {error}") from error

    def run_node(self, node: torch.fx.Node) -> Any:
        if (known := self._constants.get(node)) is not None:
            return to_jax(known)
        with jax.named_scope(node.name):
            result = super().run_node(node)
        declared = node.meta.get("val")
        if node.op != "call_function" or declared is None:
            return result
        return _as_declared(node, declared, result)


def _cond(chosen: Any, then: Any, otherwise: Any, operands: Sequence[Any]) -> Any:
    """torch.cond: only the branch that is chosen is run."""
    branches = [
        lambda *values, module=module: tuple(layout.plain(Interpreter(module).run(*values)))
        for module in (then, otherwise)
    ]
    return jax.lax.cond(jnp.reshape(chosen, ()), *branches, *operands)


def _as_declared(node: torch.fx.Node, declared: Any, result: Any) -> Any:
    if isinstance(declared, list | tuple):
        if not isinstance(result, list | tuple) or len(result) != len(declared):
            raise UnsupportedError(f"backend 'xla': {node.name} ({node.target}) has {len(declared)} results in torch")
        return [_as_declared(node, d, r) for d, r in zip(declared, result, strict=True)]
    if not isinstance(declared, torch.Tensor) or result is None:
        return result
    expected = jnp.dtype(DTYPE_NAMES[declared.dtype])
    result = result if isinstance(result, layout.ChannelsLast) else jnp.asarray(result)
    sizes = [(int(d), r) for d, r in zip(declared.shape, result.shape, strict=False) if isinstance(d, int)]
    if result.ndim != declared.ndim or any(d != r for d, r in sizes):
        raise UnsupportedError(
            f"backend 'xla': {node.name} ({node.target}) has the sizes {tuple(result.shape)} in JAX and "
            f"{tuple(declared.shape)} in torch"
        )
    if result.dtype != expected and not _holds(node, result.dtype, expected):
        raise UnsupportedError(
            f"backend 'xla': {node.name} ({node.target}) is computed in {result.dtype} and {expected} in torch"
        )
    return result.astype(expected)


def _holds(node: torch.fx.Node, own: Any, expected: Any) -> bool:
    """Whether a result of dtype `own` may be cast to what torch has: it was computed with as many bits, or is a
    position."""
    if own.kind != expected.kind:
        return False
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    return own.itemsize >= expected.itemsize or (name in POSITIONS and own.kind == "i")


def function_of(program: ExportedProgram) -> Callable[[Sequence[Any], Sequence[Any]], list[Any]]:
    """f(weights, inputs): the tensors that `program` returns, of JAX arrays in the order of its signature.

    Raises, when it is traced:
        UnsupportedError: an op gives another dtype or other sizes in JAX than in torch.
    """
    specs, constants = program.graph_signature.input_specs, constants_of(program.graph_module)

    def function(weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        args = arguments(specs, weights, inputs)
        results = Interpreter(program.graph_module, constants).run(*args, enable_io_processing=False)
        return computed(program.graph, layout.plain(results))

    return function
