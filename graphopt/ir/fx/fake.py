"""What a planned operator gives, as fake tensors: types without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.ir.fx.schema import raw_name_of
from graphopt.ir.fx.tensors import DTYPE_NAMES
from graphopt.ir.fx.write import Plan
from graphopt.ir.graph import CannotEmit
from graphopt.ir.weights import FLOATS


def compute(planned: Plan, fake_mode: Any) -> Any:
    """What `planned` computes, as fake tensors of `fake_mode`. Raises CannotEmit if torch rejects it."""
    if planned.same_type and _is_plain(first := planned.args[0].meta["val"]):
        return first
    args, kwargs = fx.map_arg((planned.args, planned.kwargs), lambda n: n.meta["val"])
    environment = fake_mode.shape_env
    try:
        with torch.no_grad(), fake_mode:
            if environment is None:
                return planned.target(*args, **kwargs)
            with environment.suppress_guards():
                return planned.target(*args, **kwargs)
    except Exception as error:
        raise CannotEmit(f"torch rejects {raw_name_of(planned.target)}: {error}") from error


def _is_plain(value: Any) -> bool:
    """Whether every elementwise op of one operand takes a tensor like `value` and gives one like it."""
    if not isinstance(value, torch.Tensor) or DTYPE_NAMES.get(value.dtype) not in FLOATS:
        return False
    # Asking for the layout of a dynamic shape would add guards to it.
    static = value.layout is torch.strided and all(type(size) is int for size in value.shape)
    return static and value.is_contiguous()
