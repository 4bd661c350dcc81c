"""Weights: shape and dtype at once, data on demand, arithmetic deferred until somebody needs the numbers.

A rewrite that folds a batch norm into a convolution writes `w * scale / (var + eps).sqrt()` on `TensorRef`s. Nothing
is computed then: the expression is evaluated, tensor by tensor, when the rewrite is verified or the model is saved.
Expressions are made of vocabulary ops, so they can be evaluated over any number domain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = npt.NDArray[Any]

_EXTENDED = frozenset(
    {
        "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
        "int4", "uint4", "int2", "uint2", "float4_e2m1fn",
    }
)  # fmt: skip
FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
"""The dtypes that arithmetic on weights and numerical verification treat as real numbers."""


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype for one of our dtype names, ml_dtypes' included."""
    if dtype in _EXTENDED:
        import ml_dtypes

        made: np.dtype[Any] = np.dtype(getattr(ml_dtypes, dtype))
        return made
    return np.dtype(dtype)


class TensorRef(ABC):
    """A constant tensor. `dtype` and `shape` are known at once; `numpy()` may read a file or compute."""

    dtype: str
    shape: tuple[int, ...]

    @abstractmethod
    def numpy(self) -> Array:
        """The data, read-only by convention, of numpy dtype `numpy_dtype(self.dtype)` and of shape `self.shape`."""

    def rows(self, start: int, stop: int) -> Array:
        """`numpy()[start:stop]`: what is mapped from a file is read no further."""
        part: Array = self.numpy()[start:stop]
        return part

    @property
    def identity(self) -> object:
        """Equal for two refs that are the same stored tensor (used to recognise shared weights)."""
        return id(self)

    @property
    def trainable(self) -> bool:
        """Whether training may change it: then two users of one tensor are not the users of two equal ones."""
        return False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * numpy_dtype(self.dtype).itemsize

    def item(self) -> Any:
        """The value of a one-element tensor as a Python number."""
        return self.numpy().reshape(()).item()

    def evaluate(self, leaf: Callable[[TensorRef], Any], domain: Any) -> Any:
        """The tensor over a number domain, with those that are stored given by `leaf`."""
        return leaf(self)

    def call(self, op: str, *others: TensorRef | float, **fields: Any) -> TensorRef:
        """The deferred result of vocabulary op `op` on this tensor and `others`."""
        given = (o if isinstance(o, TensorRef) else Number(o, self.dtype) for o in others)
        return Deferred(op, (self, *given), fields)

    def __add__(self, other: TensorRef | float) -> TensorRef:
        return self.call("add", other)

    def __sub__(self, other: TensorRef | float) -> TensorRef:
        return self.call("sub", other)

    def __mul__(self, other: TensorRef | float) -> TensorRef:
        return self.call("mul", other)

    def __truediv__(self, other: TensorRef | float) -> TensorRef:
        return self.call("div", other)

    def __radd__(self, other: float) -> TensorRef:
        return self.call("add", other)

    def __rsub__(self, other: float) -> TensorRef:
        return Deferred("sub", (Number(other, self.dtype), self), {})

    def __rmul__(self, other: float) -> TensorRef:
        return self.call("mul", other)

    def __rtruediv__(self, other: float) -> TensorRef:
        return Deferred("div", (Number(other, self.dtype), self), {})

    def __neg__(self) -> TensorRef:
        return self.call("neg")

    def __matmul__(self, other: TensorRef) -> TensorRef:
        return self.call("matmul", other)

    def sqrt(self) -> TensorRef:
        return self.call("sqrt")

    def reshape(self, *shape: int | tuple[int, ...]) -> TensorRef:
        """As numpy's: the sizes one by one, or as a tuple."""
        return self.call("reshape", shape=_one_by_one(shape))

    def transpose(self, *perm: int | tuple[int, ...]) -> TensorRef:
        """As numpy's: the axes one by one, or as a tuple."""
        return self.call("transpose", perm=_one_by_one(perm))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype}{list(self.shape)})"


def _one_by_one(numbers: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    given = numbers[0] if len(numbers) == 1 and isinstance(numbers[0], tuple | list) else numbers
    return tuple(given)  # type: ignore[arg-type]


class SlicedRef(TensorRef):
    """Some indices of every axis of another tensor, copied when somebody needs the numbers."""

    def __init__(self, data: TensorRef, kept: Sequence[npt.NDArray[np.int64] | None]) -> None:
        """`kept` has the indices that stay for each axis, in order; None where all do."""
        self.operands = (data,)
        self._kept = tuple(kept)
        self.dtype = data.dtype
        self.shape = tuple(n if k is None else len(k) for n, k in zip(data.shape, kept, strict=True))

    def numpy(self) -> Array:
        found = self.operands[0].numpy()
        for axis, kept in enumerate(self._kept):
            if kept is not None:
                found = np.take(found, kept, axis=axis)
        return read_only(found)

    def evaluate(self, leaf: Callable[[TensorRef], Any], domain: Any) -> Any:
        found = self.operands[0].evaluate(leaf, domain)
        for axis, kept in enumerate(self._kept):
            found = found if kept is None else np.take(found, kept, axis=axis)
        return found


class ArrayRef(TensorRef):
    """A tensor that is already in memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.dtype = array.dtype.name
        self.shape = array.shape

    def numpy(self) -> Array:
        return read_only(self._array)

    @property
    def identity(self) -> object:
        return id(self._array)


class Number(TensorRef):
    """A Python number within an expression, which is not rounded before the whole expression is."""

    def __init__(self, value: float, dtype: str) -> None:
        self.value = value
        self.dtype = dtype
        self.shape = ()

    def numpy(self) -> Array:
        return np.asarray(self.value, numpy_dtype(self.dtype))

    def evaluate(self, leaf: Callable[[TensorRef], Any], domain: Any) -> Any:
        return domain.number(self.value) if self.dtype in FLOATS else leaf(self)


class LazyRef(TensorRef):
    """A tensor that `load` brings when asked; nothing is kept, so memory is the caller's to manage."""

    def __init__(self, dtype: str, shape: tuple[int, ...], load: Callable[[], Array], identity: object) -> None:
        self.dtype = dtype
        self.shape = shape
        self._load = load
        self._identity = identity

    def numpy(self) -> Array:
        return read_only(self._load())

    @property
    def identity(self) -> object:
        return self._identity


class Deferred(TensorRef):
    """The result of a vocabulary op on other refs, computed each time it is asked for.

    Floating-point expressions are evaluated in float64 as a whole and rounded once, so that a folded weight is the
    correctly rounded one whatever its dtype.
    """

    def __init__(self, op: str, operands: tuple[TensorRef, ...], fields: Mapping[str, Any]) -> None:
        self.op = op
        self.operands = operands
        self.fields = dict(fields)
        self.dtype = operands[0].dtype
        self.shape = infer_shape(op, [o.shape for o in operands], self.fields)

    def numpy(self) -> Array:
        from graphopt.ir.rowwise import evaluated

        return evaluated(self, numpy_dtype(self.dtype))

    def evaluate(self, leaf: Callable[[TensorRef], Any], domain: Any) -> Any:
        from graphopt.ir.ops import OPS

        values = [o.evaluate(leaf, domain) for o in self.operands]
        return OPS[self.op].meaning(domain, *values, **self.fields)


def _float64_domain() -> Any:
    from graphopt.ir.ops.domain import Float64

    return Float64()


def read_only(array: Array) -> Array:
    """A view that cannot be written through: weights may be shared, so nobody may edit one in place."""
    view = array.view()
    view.flags.writeable = False
    return view


def as_ref(value: TensorRef | Array | float, dtype: str | None = None) -> TensorRef:
    """`value` as a TensorRef; a Python number or array is cast to `dtype` if one is given."""
    if isinstance(value, TensorRef):
        return value
    return ArrayRef(np.asarray(value, numpy_dtype(dtype) if dtype else None))


def infer_shape(op: str, shapes: Sequence[tuple[int, ...]], fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a weight expression. Elementwise and layout ops are computed from the shapes alone; others run their
    meaning on zeros."""
    match op:
        case "add" | "sub" | "mul" | "div" | "maximum" | "minimum" | "pow":
            return tuple(np.broadcast_shapes(*shapes))
        case "neg" | "sqrt" | "rsqrt" | "exp" | "abs" | "reciprocal" | "cast":
            return tuple(shapes[0])
        case "transpose":
            return tuple(shapes[0][p] for p in fields["perm"])
        case "reshape":
            return _reshaped(shapes[0], fields["shape"])
        case "matmul":
            (*lead, rows, _), (*other, _, columns) = shapes
            return (*np.broadcast_shapes(tuple(lead), tuple(other)), rows, columns)
    from graphopt.ir.ops import OPS

    zeros = [np.zeros(s) for s in shapes]
    return tuple(np.shape(OPS[op].meaning(_float64_domain(), *zeros, **fields)))


def _reshaped(shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    known = int(np.prod([t for t in target if t != -1], dtype=np.int64))
    size = int(np.prod(shape, dtype=np.int64))
    return tuple(size // max(known, 1) if t == -1 else t for t in target)
