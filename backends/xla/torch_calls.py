"""Torch ops that torchax has no kernel for and that are read in the vocabulary: they run as its calls do."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils import _pytree as pytree

from graphopt.backends.constants import is_random
from graphopt.backends.xla.calls import run_call
from graphopt.backends.xla.kernels import kernel_of
from graphopt.ir.fx.model import FxModel
from graphopt.ir.fx.tensors import DTYPE_NAMES
from graphopt.ir.graph import Call, Graph, Literal
from graphopt.ir.weights import numpy_dtype


class VocabularyCall:
    """Takes the place of the target of a node: in torch it is that target, in JAX a call of the vocabulary."""

    def __init__(self, node: torch.fx.Node, call: Call) -> None:
        """`call`: what `node` is read as."""
        self.target: Any = node.target
        self.__name__ = str(node.target)  # torch asks for it to say where a run failed
        self._call = call
        places = {leaf: i for i, leaf in enumerate(pytree.tree_leaves((node.args, node.kwargs))) if _is_node(leaf)}
        self._operands = [places[o] if _is_node(o) else o for o in call.operands]
        declared = node.meta["val"]
        self._single = isinstance(declared, torch.Tensor)
        self._dtypes = [DTYPE_NAMES[d.dtype] for d in ([declared] if self._single else declared)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)

    def in_jax(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel, for the arguments of the torch op with JAX arrays in the place of tensors."""
        leaves = pytree.tree_leaves((args, kwargs))
        operands = [
            leaves[o] if isinstance(o, int) else np.asarray(o.value, numpy_dtype(o.dtype)) if o is not None else None
            for o in self._operands
        ]
        results = run_call(self._call.op, operands, self._call.fields, self._dtypes)
        return results[0] if self._single else results

    def __str__(self) -> str:
        return str(self.target)


def _is_node(value: Any) -> bool:
    return isinstance(value, torch.fx.Node)


def readable_calls(program: ExportedProgram) -> dict[torch.fx.Node, VocabularyCall]:
    """For each node without a kernel that the vocabulary can say, branches included, what may take the place of its
    target. Sizes have to be static: fields hold them."""
    found = {}
    for graph in FxModel(program, "program").regions():
        for node in graph.nodes():
            if isinstance(node.target, torch._ops.OpOverload) and kernel_of(node.target) is None:
                call = graph.call(node)
                if isinstance(call, Call) and _can_stand_for(graph, node, call):
                    found[node] = VocabularyCall(node, call)
    return found


def _can_stand_for(graph: Graph, node: torch.fx.Node, call: Call) -> bool:
    if is_random(node.target):
        return False
    declared = node.meta["val"]
    results = [declared] if isinstance(declared, torch.Tensor) else list(declared)
    if len(results) != len(call.outputs) or not all(isinstance(r, torch.Tensor) for r in results):
        return False
    if not all(isinstance(d, int) for r in results for d in r.shape):
        return False
    own = set(node.all_input_nodes)
    for operand in call.operands:
        type_ = None if operand is None else graph.type(operand)
        is_own = operand is None or isinstance(operand, Literal) or operand in own
        if not is_own or (type_ is not None and not type_.is_static):
            return False
    return True
