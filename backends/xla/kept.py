"""What an op makes of operands that are padded at the end of some axes, and how it is corrected where that matters.

A rule may take for granted that the kept parts of the operands are those of the program that is asked for, and has to
see to it that the same holds of the results. It returns None if the op does so as it is, a `Correction` if it does so
once the rest is hidden from it, and raises `Coupled` otherwise. What hides the rest is a selection, not a product: it
may be NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from graphopt.backends.xla.correction import (
    Correction,
    Coupled,
    Pair,
    bound,
    hidden,
    padded_dims,
    pairs_of,
    shape_of,
    told,
)
from graphopt.backends.xla.regrouped import regrouping

Rule: TypeAlias = Callable[[Any, Any], Correction | None]
"""Of the two equations."""

ELEMENTWISE = frozenset({
    "iota", "device_put", "add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "exp", "exp2", "log",
    "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "rsqrt", "sqrt", "cbrt", "square", "neg", "sign",
    "abs", "floor", "ceil", "round", "nextafter", "is_finite", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "atan2", "select_n", "clamp", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "xor", "not", "shift_left", "shift_right_logical", "shift_right_arithmetic", "convert_element_type",
    "bitcast_convert_type", "reduce_precision", "stop_gradient", "copy", "copy_p", "add_any",
})  # fmt: skip
"""Each element of a result is made of the elements at its place (and of its place, for iota)."""
SIZES: dict[str, frozenset[str]] = {
    "broadcast_in_dim": frozenset({"shape"}), "reshape": frozenset({"new_sizes"}), "iota": frozenset({"shape"}),
    "slice": frozenset({"start_indices", "limit_indices"}), "split": frozenset({"sizes"}),
    "gather": frozenset({"slice_sizes"}), "dynamic_slice": frozenset({"slice_sizes"}),
}  # fmt: skip
"""Parameters that may differ: their rules look at them. All others have to be equal."""


def correction_of(asked: Any, padded: Any) -> Correction | None:
    """What has to be done at an equation without programs inside, of parameters that differ in `SIZES` only.

    Raises:
        Coupled: nothing that is known would do.
    """
    name = padded.primitive.name
    pairs = [*zip(asked.invars, padded.invars, strict=True), *zip(asked.outvars, padded.outvars, strict=True)]
    rule = _elementwise if name in ELEMENTWISE else RULES.get(name)
    is_padded = any(padded_dims(a, b) for a, b in pairs)
    if rule is None and is_padded:
        raise Coupled("says nothing about axes")
    return None if rule is None else rule(asked, padded)


# ---- hiding ----------------------------------------------------------------------------------------------


def lowest(dtype: Any) -> Any:
    if dtype == np.bool_:
        return False
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


def highest(dtype: Any) -> Any:
    if dtype == np.bool_:
        return True
    return np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).max


NEUTRAL: dict[str, Callable[[Any], Any]] = {
    "sum": lambda _: 0, "prod": lambda _: 1, "max": lowest, "min": highest, "and": lambda _: True,
    "or": lambda _: False,
}  # fmt: skip
"""What leaves a reduction as it is, by dtype."""


def _hiding(
    asked: Any, padded: Any, dims: Mapping[int, Sequence[int]], fill: Callable[[Any], Any]
) -> Correction | None:
    """The op, after `dims` of its operands are filled up from where they are kept on."""
    places = [(i, d) for i, chosen in dims.items() for d in sorted(chosen)]
    if not places:
        return None
    numbers = {(i, d): told(pairs_of(asked.invars[i], padded.invars[i])[d]) for i, d in places}

    def apply(operands: Sequence[Any], ends: Sequence[Any]) -> Any:
        given = list(operands)
        for i in dims:
            own = {d: end for (j, d), end in zip(places, ends, strict=True) if j == i}
            given[i] = hidden(given[i], own, fill(given[i].dtype))
        return bound(padded, given)

    return Correction(numbers, apply)


def _operand_dims(asked: Any, padded: Any, index: int = 0) -> set[int]:
    return padded_dims(asked.invars[index], padded.invars[index])


# ---- rules -------------------------------------------------------------------------------------------------


def _unchanged(_: Any, __: Any) -> None:
    """Each index of an axis stays by itself, at its place."""


def _require_repeated(sizes: Sequence[Pair], results: Sequence[Pair]) -> None:
    if any(own not in (result, (1, 1)) for own, result in zip(sizes, results, strict=True)):
        raise Coupled("repeats a single index at one size only")


def _elementwise(asked: Any, padded: Any) -> None:
    """Axes of size 1 are repeated."""
    results = pairs_of(asked.outvars[0], padded.outvars[0])
    for a, b in zip(asked.invars, padded.invars, strict=True):
        if sizes := pairs_of(a, b):
            if len(sizes) != len(results):
                raise Coupled("has another rank")
            _require_repeated(sizes, results)


def _broadcast(asked: Any, padded: Any) -> None:
    results = pairs_of(asked.outvars[0], padded.outvars[0])
    places = padded.params["broadcast_dimensions"]
    _require_repeated(pairs_of(asked.invars[0], padded.invars[0]), [results[place] for place in places])


def _reduction(kind: str) -> Rule:
    def rule(asked: Any, padded: Any) -> Correction | None:
        dims = _operand_dims(asked, padded) & set(padded.params["axes"])
        return _hiding(asked, padded, {0: sorted(dims)}, NEUTRAL[kind])

    return rule


def _cumulative(kind: str) -> Rule:
    """Only from the end is what is padded met before what is kept."""

    def rule(asked: Any, padded: Any) -> Correction | None:
        dims = _operand_dims(asked, padded) & {padded.params["axis"]} if padded.params["reverse"] else set()
        return _hiding(asked, padded, {0: sorted(dims)}, NEUTRAL[kind])

    return rule


def _product(asked: Any, padded: Any) -> Correction | None:
    contracted, _ = padded.params["dimension_numbers"]
    dims = {i: sorted(_operand_dims(asked, padded, i) & set(contracted[i])) for i in (0, 1)}
    return _hiding(asked, padded, dims, NEUTRAL["sum"])


def _convolution(asked: Any, padded: Any) -> Correction | None:
    """Beyond the end of an axis there are zeros."""
    numbers = padded.params["dimension_numbers"]
    dims = _operand_dims(asked, padded) - {numbers.lhs_spec[0]}
    if _operand_dims(asked, padded, 1) or numbers.lhs_spec[1] in dims or padded.params["batch_group_count"] != 1:
        raise Coupled("couples its indices")
    return _hiding(asked, padded, {0: sorted(dims)}, NEUTRAL["sum"])


def _window(kind: str) -> Rule:
    """As for a convolution."""

    def rule(asked: Any, padded: Any) -> Correction | None:
        windows, around = padded.params["window_dimensions"], padded.params["padding"]
        dims = [d for d in sorted(_operand_dims(asked, padded)) if windows[d] > 1 or any(around[d])]
        return _hiding(asked, padded, {0: dims}, NEUTRAL[kind])

    return rule


def _pad(asked: Any, padded: Any) -> Correction | None:
    """Where something is put between or behind, that has to be there from the kept end on."""
    config = padded.params["padding_config"]
    dims = [d for d in sorted(_operand_dims(asked, padded)) if config[d][1] > 0 or config[d][2]]
    sizes = pairs_of(asked.invars[0], padded.invars[0])
    numbers = {d: told(sizes[d]) for d in dims}

    def apply(operands: Sequence[Any], ends: Sequence[Any]) -> Any:
        x, value = operands
        return bound(padded, [hidden(x, dict(zip(dims, ends, strict=True)), value), value])

    return Correction(numbers, apply) if dims else None


def _slice(asked: Any, padded: Any) -> Correction | None:
    """Elements are where they were, or from a place on that depends on the size."""
    begins, other = asked.params["start_indices"], padded.params["start_indices"]
    if tuple(begins) == tuple(other):
        return None
    if any(s != 1 for s in padded.params["strides"] or ()) or any(m > n for m, n in zip(begins, other, strict=True)):
        raise Coupled("begins at another place at another size")
    numbers = {d: told(pair) for d, pair in enumerate(zip(begins, other, strict=True))}
    sizes = shape_of(padded.outvars[0])
    return Correction(numbers, lambda operands, starts: jax.lax.dynamic_slice(operands[0], starts, sizes))


def _dynamic_slice(asked: Any, padded: Any) -> None:
    """Where it may begin depends on the size, unless it takes all."""
    if any(padded.params["slice_sizes"][d] != shape_of(padded.invars[0])[d] for d in _operand_dims(asked, padded)):
        raise Coupled("begins at another place at another size")


def _split(asked: Any, padded: Any) -> None:
    if tuple(asked.params["sizes"][:-1]) != tuple(padded.params["sizes"][:-1]):
        raise Coupled("parts at another place at another size")


def _reverse(asked: Any, padded: Any) -> Correction | None:
    """What is kept comes last, and is brought to the front."""
    dims = sorted(_operand_dims(asked, padded) & set(padded.params["dimensions"]))
    sizes = pairs_of(asked.invars[0], padded.invars[0])
    numbers = {d: told((sizes[d][1] - sizes[d][0], 0)) for d in dims}

    def apply(operands: Sequence[Any], shifts: Sequence[Any]) -> Any:
        return jnp.roll(bound(padded, operands), [-shift for shift in shifts], dims)

    return Correction(numbers, apply) if dims else None


def _concatenation(asked: Any, padded: Any) -> Correction | None:
    """Each operand begins where the kept part of the one before it ends, and overwrites the rest of it."""
    dim = padded.params["dimension"]
    own = [shape_of(v)[dim] for v in asked.invars]
    other = [shape_of(v)[dim] for v in padded.invars]
    if own[:-1] == other[:-1]:
        return None
    numbers = {i: told((sum(own[:i]), sum(other[:i]))) for i in range(1, len(own))}

    def apply(operands: Sequence[Any], begins: Sequence[Any]) -> Any:
        y = bound(padded, operands)
        for operand, begin in zip(operands[1:], begins, strict=True):
            y = jax.lax.dynamic_update_slice_in_dim(y, operand, begin, dim)
        return y

    return Correction(numbers, apply)


def _gather(asked: Any, padded: Any) -> None:
    """Of a padded axis there is read one element for an index, which is the same (of one beyond the axis nothing is
    promised), or all."""
    sizes = list(zip(asked.params["slice_sizes"], padded.params["slice_sizes"], strict=True))
    whole = pairs_of(asked.invars[0], padded.invars[0])
    if any(sizes[d] not in ((1, 1), whole[d]) for d in _operand_dims(asked, padded)):
        raise Coupled("reads another part at another size")


def _top(asked: Any, padded: Any) -> Correction | None:
    rank = len(shape_of(padded.invars[0]))
    dims = _operand_dims(asked, padded) & {padded.params.get("axis", rank - 1) % rank}
    return _hiding(asked, padded, {0: sorted(dims)}, lowest)


def _sort(asked: Any, padded: Any) -> None:
    if padded.params["dimension"] in _operand_dims(asked, padded):
        raise Coupled("couples its indices")


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast, "reshape": regrouping, "transpose": _unchanged, "squeeze": _unchanged,
    "dot_general": _product, "conv_general_dilated": _convolution, "pad": _pad, "slice": _slice,
    "dynamic_slice": _dynamic_slice, "split": _split, "rev": _reverse, "concatenate": _concatenation,
    "gather": _gather, "sort": _sort, "top_k": _top, "stack": _unchanged,
    **{f"reduce_{kind}": _reduction(kind) for kind in NEUTRAL},
    "argmax": _reduction("max"), "argmin": _reduction("min"),
    "cumsum": _cumulative("sum"), "cumprod": _cumulative("prod"), "cummax": _cumulative("max"),
    "cummin": _cumulative("min"), "cumlogsumexp": _cumulative("max"),
    **{f"reduce_window_{kind}": _window(kind) for kind in ("sum", "max", "min")},
}  # fmt: skip
