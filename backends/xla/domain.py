"""The meanings of the vocabulary on JAX arrays: what they ask of numpy and of their number domain, JAX computes.

A meaning is written in numpy's functions and a domain's (`graphopt.ir.ops.domain`). An array that takes numpy's calls
for itself therefore runs it as it stands, so that there is no second text of any op that could say something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from graphopt.errors import UnsupportedError
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, numpy_dtype


class Traced(NDArrayOperatorsMixin):
    """A JAX array that numpy's functions take: each runs JAX's of the same name."""

    def __init__(self, value: Any) -> None:
        self.value = value
        """The `jax.Array`, or what stands for one while a function is traced."""

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Traced:
        return Traced(self.value[plain(index)])

    def __iter__(self) -> Iterator[Traced]:
        return (self[i] for i in range(len(self)))

    def astype(self, dtype: Any) -> Traced:
        return Traced(self.value.astype(dtype))

    def __array_ufunc__(self, ufunc: Any, method: str, *operands: Any, **named: Any) -> Any:
        if method != "__call__" or named:
            return NotImplemented
        return Traced(getattr(jnp, ufunc.__name__)(*_of_one_precision(operands)))

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, named: Any) -> Any:
        return wrapped(getattr(jnp, function.__name__)(*plain(args), **plain(named)))

    def _unknown(self) -> NoReturn:
        raise UnsupportedError("sizes or bounds are computed from the data, and XLA needs to know them beforehand")

    __int__ = __index__ = __float__ = __bool__ = _unknown


def plain(value: Any) -> Any:
    """`value`, which may be nested, with JAX's own arrays in it."""
    if isinstance(value, Traced):
        return value.value
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def wrapped(value: Any) -> Any:
    """The reverse of `plain`."""
    if isinstance(value, jax.Array):
        return Traced(value)
    return tuple(wrapped(v) for v in value) if isinstance(value, list | tuple) else value


def _of_one_precision(operands: Any) -> list[Any]:
    """`operands` with the real numbers that a meaning brings along (weights of a resize, say) in the dtype of the
    others: as float64 they would make everything float64."""
    values = [plain(v) for v in operands]
    own = [v.dtype for v in values if isinstance(v, jax.Array) and v.dtype.name in FLOATS]
    if not own:
        return values
    return [v.astype(own[0]) if isinstance(v, np.ndarray | np.generic) and v.dtype.kind == "f" else v for v in values]


class Xla(Float64):
    """Real numbers as XLA has them: float32, or float64 where the model says so.

    Whatever is not overridden is a function of numpy, which `Traced` takes for itself; arrays of numpy, which are
    known before the model runs, are computed by numpy.

    Args:
        real: the dtype of what the op's meaning calls real.
    """

    def __init__(self, real: str) -> None:
        super().__init__()
        self.real = real

    def full(self, shape: tuple[int, ...], value: float, dtype: str) -> Any:
        return Traced(jnp.full(shape, value, self.real if dtype in FLOATS else numpy_dtype(dtype)))

    def cast(self, x: Any, dtype: str) -> Any:
        if not isinstance(x, Traced):
            return super().cast(x, dtype)
        if dtype in FLOATS:
            return x.astype(self.real)
        if dtype == "bool":
            return self.not_equal(x, 0)
        if self.is_real(x) and dtype != "uint64":
            x = x.astype("int64")
        return x.astype(numpy_dtype(dtype))

    def is_real(self, x: Any) -> bool:
        return x.dtype.name in FLOATS if isinstance(x, Traced) else super().is_real(x)

    def lowest(self, x: Any) -> Any:
        return super().lowest(_stand_in(x))

    def erf(self, x: Any) -> Any:
        return Traced(jax.lax.erf(x.value)) if isinstance(x, Traced) else super().erf(x)

    def pow(self, x: Any, y: Any) -> Any:
        if self.is_real(x) or self.is_real(y):
            return np.power(x, y)
        # Integers to a negative power, which only -1 and 1 survive; whether there is any is not known beforehand.
        power = np.power(x, np.abs(y))
        inverse = self.where(np.equal(np.abs(x), 1), power, 0)
        return self.where(np.less(y, 0), inverse, power).astype(x.dtype)

    def reduce_max(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        return np.max(x, axis=axes, keepdims=keepdims, initial=self.lowest(x))

    def reduce_min(self, x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        if not isinstance(x, Traced):
            return super().reduce_min(x, axes, keepdims)
        highest = super().reduce_min(np.zeros(0, x.dtype), (0,), False)
        return Traced(jnp.min(x.value, axis=axes, keepdims=keepdims, initial=highest))

    def argsort(self, x: Any, axis: int) -> Any:
        if not isinstance(x, Traced):
            return super().argsort(x, axis)
        return Traced(jnp.argsort(x.value, axis, stable=True)).astype("int64")

    def scatter(self, x: Any, index: tuple[Any, ...], updates: Any, reduction: str | None) -> Any:
        place = jnp.asarray(plain(x)).at[plain(index)]
        combine = {None: place.set, "add": place.add, "mul": place.mul, "max": place.max, "min": place.min}
        return Traced(combine[reduction](plain(updates)))


def _stand_in(x: Any) -> Any:
    """A number with the dtype of `x`, for what depends on nothing else."""
    return np.zeros((), x.dtype) if isinstance(x, Traced) else x
