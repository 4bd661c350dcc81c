"""What a loop's body computes of nothing but what is outside of the loop is computed there, once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun


def without_invariants(body: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """`body`, for arguments like `example`, whose equations that read only what it closes over are computed here. XLA
    leaves them in the loop, such as the transposition of the kernel of every convolution in each step of a U-Net.

    Only what is no larger than what it is computed of: a broadcast costs less than to read what it makes. What is
    inside of branches stays.
    """
    closed, shape = jax.make_jaxpr(body, return_shape=True)(*example)
    jaxpr = closed.jaxpr
    known, moved, left = set(jaxpr.constvars), [], []
    for equation in jaxpr.eqns:
        if _moves(equation, known):
            moved.append(equation)
            known.update(equation.outvars)
        else:
            left.append(equation)
    made = [result for equation in moved for result in equation.outvars]
    unnamed = jaxpr.debug_info.with_unknown_names()
    before = ClosedJaxpr(jaxpr.replace(invars=[], outvars=made, eqns=moved, debug_info=unnamed), closed.consts)
    rest = jaxpr.replace(constvars=[*jaxpr.constvars, *made], eqns=left)
    inside = jaxpr_as_fun(ClosedJaxpr(rest, [*closed.consts, *jaxpr_as_fun(before)()]))
    structure = jax.tree.structure(shape)

    def run(*args: Any) -> Any:
        return jax.tree.unflatten(structure, inside(*jax.tree.leaves(args)))

    return run


def _moves(equation: Any, known: Collection[Any]) -> bool:
    read = [x for x in equation.invars if not isinstance(x, Literal)]
    if not read or equation.effects or not all(x in known for x in read):
        return False
    return sum(map(_bytes, equation.outvars)) <= sum(map(_bytes, read))


def _bytes(variable: Any) -> int:
    return int(prod(variable.aval.shape)) * int(variable.aval.dtype.itemsize)
