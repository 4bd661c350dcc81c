"""What a planned operator gives, as fake tensors: types without data."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils import _pytree as pytree

from graphopt.ir.fx.schema import raw_name_of
from graphopt.ir.fx.write import Plan
from graphopt.ir.graph import CannotEmit


def compute(planned: Plan, fake_mode: Any) -> Any:
    """What `planned` computes, as fake tensors of `fake_mode`. Raises CannotEmit if torch rejects it."""
    if planned.same_type:
        first = planned.args[0].meta["val"]
        # Every elementwise op of one operand gives a tensor like this one.
        if first.layout is torch.strided and first.is_contiguous():
            return first
    return _run(planned.target, planned.args, planned.kwargs, fake_mode)


def recompute(node: fx.Node, fake_mode: Any) -> Any:
    """What `node` computes from what its operands are known to be, as fake tensors of `fake_mode`. Raises CannotEmit if
    torch rejects it."""
    return _run(node.target, node.args, node.kwargs, fake_mode)


def _run(target: Any, args: Any, kwargs: Any, fake_mode: Any) -> Any:
    args, kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    environment = fake_mode.shape_env
    try:
        with torch.no_grad(), fake_mode:
            if environment is None:
                return target(*args, **kwargs)
            # Open sizes need rules of torch that are written in Python, which take longer than those for fixed ones.
            dispatcher = enable_python_dispatcher() if _has_open_size((args, kwargs)) else nullcontext()
            with environment.suppress_guards(), dispatcher:
                return target(*args, **kwargs)
    except Exception as error:
        raise CannotEmit(f"torch rejects {raw_name_of(target)}: {error}") from error


def _has_open_size(arguments: Any) -> bool:
    leaves = pytree.tree_leaves(arguments)
    sizes = [size for leaf in leaves for size in (leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,))]
    return any(isinstance(size, torch.SymInt) for size in sizes)
