"""Real inputs: what approximate passes look at, and what their result is judged on. The two never meet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

import numpy as np

from graphopt.errors import GraphoptError, ModelError, PipelineError, did_you_mean
from graphopt.ir.graph import TensorType
from graphopt.ir.model import Model
from graphopt.ir.weights import Array

STEP_WEIGHTS = ("uniform", "coefficient")
Batch: TypeAlias = dict[str, Array]
"""Arrays by input name."""
T = TypeVar("T")


@dataclass(frozen=True)
class Input:
    """An input that calibration data is to be given for."""

    name: str
    type: TensorType | None
    optional: bool = False


class Calibration:
    """Data to calibrate on, split in a tuning part, which passes see, and a held-out part, which decides.

    Data is read once, when it is first needed, and kept in memory: give a `limit` where it is large or endless.
    """

    def __init__(
        self,
        data: Any = None,
        held_out: float = 0.5,
        take: Callable[[Any], Any] | None = None,
        limit: int | None = None,
        *,
        step_weights: str = "uniform",
    ) -> None:
        """
        Args:
            data: one batch, or an iterable of batches (list, generator, torch DataLoader), or a callable that returns
                such an iterable. A batch is an array (of a model with one input), a dict of arrays by input name, or
                a tuple or list of arrays in the order of the inputs; numpy or torch, of the inputs' dtypes and sizes.
                Where the inputs have a fixed first size, arrays of a multiple of it are cut into several batches.
                Of a sampling program a batch is a dict of its conditions (`negative_<name>` for the unconditional
                branch), with "noise" or without. None, for sampling programs only: noise and conditions are drawn
                from a seed, `limit` requests or as many as give 4 samples to each part.
            held_out: share of the batches, in (0, 1), that is held out: evenly spaced, and at least one. A single
                batch is split in the same way along its first axis.
            take: what to take from each item, as in `lambda batch: batch[0]` for (inputs, labels).
            limit: use at most this many batches.
            step_weights: for sampling programs, how much the feeds of each row count in tuning. "uniform": alike.
                "coefficient": as the absolute coefficient with which the row's prediction enters the final sample
                if the other predictions stay as they are, scaled to a mean of 1.

        Raises:
            PipelineError: an option that is not as described. What is wrong with the data is a ModelError, raised when
                it is read.
        """
        if not _is_a(Real, held_out) or not 0.0 < held_out < 1.0:
            raise PipelineError(f"held_out={held_out!r}: expected a share between 0 and 1, both excluded")
        if limit is not None and (not _is_a(Integral, limit) or limit < 1):
            raise PipelineError(f"limit={limit!r}: expected a number of batches from 1 on, or None")
        if take is not None and not callable(take):
            raise PipelineError(f"take={take!r}: expected a callable, as in lambda batch: batch[0]")
        if step_weights not in STEP_WEIGHTS:
            raise PipelineError(
                f"step_weights={step_weights!r}{did_you_mean(str(step_weights), STEP_WEIGHTS)}: expected one of "
                f"{', '.join(STEP_WEIGHTS)}"
            )
        self.data = data
        self.held_out = float(held_out)
        self.take = take
        self.limit = None if limit is None else int(limit)
        self.step_weights = step_weights
        self._read: list[Any] | None = None

    @classmethod
    def of(cls, value: Any) -> Calibration | None:
        """What `optimize` takes as calibration: one of these, its data, or None."""
        return value if value is None or isinstance(value, cls) else cls(value)

    def batches(self, inputs: Sequence[Input], read: Callable[[Any], Any] | None = None) -> list[Batch]:
        """The data as batches for `inputs`; `read` is applied to each item first.

        Raises:
            ModelError: there is none, or it does not fit the inputs; the message says which batch and why.
        """
        found: list[Batch] = []
        for number, item in enumerate(self._items(inputs)):
            found += _cut(_named(item if read is None else read(item), inputs, number), inputs, number)
        if not found:
            raise ModelError("calibration data is empty: expected one batch of inputs or more")
        return found[: self.limit]

    def split(self, inputs: Sequence[Input]) -> tuple[list[Batch], list[Batch]]:
        """The tuning part and the held-out part, neither of them empty.

        Raises:
            ModelError: as `batches`; or there is one batch and it cannot be split.
        """
        batches = self.batches(inputs)
        return self._split_one(batches[0], inputs) if len(batches) == 1 else self.divide(batches)

    def divide(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """`items`, two or more, in those to tune on and those that are held out."""
        chosen = self._chosen(len(items))
        tuning = [item for item, out in zip(items, chosen, strict=True) if not out]
        return tuning, [item for item, out in zip(items, chosen, strict=True) if out]

    def _chosen(self, count: int) -> list[bool]:
        """Which of `count` > 1 things are held out."""
        chosen = [math.floor((i + 1) * self.held_out) > math.floor(i * self.held_out) for i in range(count)]
        if not any(chosen):
            chosen[-1] = True
        if all(chosen):
            chosen[0] = False
        return chosen

    def _split_one(self, batch: Batch, inputs: Sequence[Input]) -> tuple[list[Batch], list[Batch]]:
        free = [i.name for i in inputs if i.name in batch and _first_is_free(i.type) and batch[i.name].ndim]
        sizes = {len(batch[name]) for name in free}
        if len(sizes) != 1 or min(sizes) < 2 or _first_is_elsewhere(inputs):
            got = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.items())
            raise ModelError(
                f"calibration data is one batch ({got}), which cannot be split in a tuning part and a held-out part "
                f"along a first axis that the model leaves free ({', '.join(free) or 'it has none'}): give two batches "
                "or more"
            )
        chosen = np.asarray(self._chosen(sizes.pop()))
        tuning, held_out = (
            {name: array[rows] if name in free else array for name, array in batch.items()}
            for rows in (~chosen, chosen)
        )
        return [tuning], [held_out]

    def _items(self, inputs: Sequence[Input]) -> list[Any]:
        """What was given, one item a batch, read once."""
        if self._read is None:
            take = self.take
            try:
                items = list(islice(_iterable(self.data, inputs, take is None), self.limit))
                self._read = items if take is None else [take(item) for item in items]
            except GraphoptError:
                raise
            except Exception as error:  # whatever the user's own data or functions raise
                read = "read" if take is None else "read and given to `take`"
                raise ModelError(f"calibration data cannot be {read}: {type(error).__name__}: {error}") from error
        return self._read


def inputs_of(model: Model) -> list[Input]:
    """What calibration data of `model` is to have."""
    main = model.main
    return [Input(main.name(value), main.type(value)) for value in main.inputs()]


def _is_a(kind: type, number: Any) -> bool:
    """Whether `number` is one of `kind`, of numpy too, and no flag."""
    return isinstance(number, kind) and not isinstance(number, bool)


def _iterable(data: Any, inputs: Sequence[Input], whole: bool) -> Iterable[Any]:
    """`data` as an iterable of items; `whole` if arrays in a row may be one batch by position."""
    if _is_array(data) or isinstance(data, Mapping):
        return [data]
    if callable(data) and not isinstance(data, Iterable):
        data = data()
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise ModelError(
            f"calibration is a {type(data).__name__}: expected an array, a dict of arrays by input name, an iterable "
            "of those, or a callable that returns such an iterable"
        )
    required = sum(not i.optional for i in inputs)
    if whole and required > 1 and isinstance(data, tuple | list) and data and all(map(_is_array, data)):
        return [data]
    return data


def _named(item: Any, inputs: Sequence[Input], number: int) -> Batch:
    """One item as arrays by input name."""
    where, known = f"calibration batch {number}", [i.name for i in inputs]
    if isinstance(item, Mapping):
        return _by_name(item, inputs, where)
    arrays = [item] if _is_array(item) else item
    if not isinstance(arrays, tuple | list) or not all(map(_is_array, arrays)):
        raise ModelError(
            f"{where} is a {type(item).__name__}: expected an array, a dict of arrays by input name, or a tuple of "
            f"arrays for the inputs {', '.join(known)}"
        )
    if len(arrays) != len(inputs):
        more = "; of (inputs, labels) take the inputs: Calibration(data, take=lambda batch: batch[0])"
        raise ModelError(
            f"{where} has {len(arrays)} arrays and the model {len(inputs)} inputs, {', '.join(known)}"
            f"{more if len(arrays) > len(inputs) else ''}"
        )
    return {i.name: _array(array) for i, array in zip(inputs, arrays, strict=True)}


def _by_name(item: Mapping[Any, Any], inputs: Sequence[Input], where: str) -> Batch:
    known = [i.name for i in inputs]
    for name, value in item.items():
        if name not in known:
            raise ModelError(
                f"{where} has {name!r}, which is no input{did_you_mean(str(name), known)}; the inputs are "
                f"{', '.join(known)}; leave it out with Calibration(data, take=...)"
            )
        if not _is_array(value):
            raise ModelError(f"{where}, {name!r}: expected an array or a tensor, got {type(value).__name__}")
    if missing := [i.name for i in inputs if not i.optional and i.name not in item]:
        raise ModelError(f"{where} lacks {missing[0]!r}; the inputs are {', '.join(known)}")
    return {name: _array(item[name]) for name in known if name in item}


def _cut(batch: Batch, inputs: Sequence[Input], number: int) -> list[Batch]:
    """The batch itself, or several where its arrays have a multiple of the fixed first size of the inputs; arrays of
    that size itself are the same in all of them."""
    given = [i for i in inputs if i.name in batch]
    sizes: dict[str, int] = {}
    factors = {i.name: _factor(i, batch[i.name], number, sizes) for i in given}
    count = max(factors.values(), default=1)
    if odd := [name for name, factor in factors.items() if factor not in (1, count)]:
        raise ModelError(
            f"calibration batch {number}: {odd[0]!r} has {factors[odd[0]]} times the first size of the input and other "
            f"arrays {count} times; expected the same number of samples in all"
        )
    if count > 1 and (free := [i.name for i in given if _first_is_free(i.type)]):
        larger = next(name for name, factor in factors.items() if factor > 1)
        raise ModelError(
            f"calibration batch {number}: {larger!r} has {count} times the first size of the input, and {free[0]!r} "
            "has a free first size, so that it is open which rows belong together; give the batches one by one"
        )
    return [
        {name: array if factors[name] == 1 else np.split(array, count)[k] for name, array in batch.items()}
        for k in range(count)
    ]


def _factor(input_: Input, array: Array, number: int, sizes: dict[str, int]) -> int:
    """How many times the fixed first size of the input `array` has; `sizes` holds those of symbolic dimensions."""
    type_ = input_.type
    if type_ is None:
        return 1
    got = TensorType(array.dtype.name, array.shape)
    mismatch = ModelError(f"calibration batch {number}, input {input_.name!r}: expected {type_}, got {got}")
    if type_.dtype != got.dtype:
        raise ModelError(f"{mismatch}; convert it to {type_.dtype}")
    if type_.shape is None:
        return 1
    if len(type_.shape) != array.ndim:
        raise mismatch
    factor = 1
    for axis, (dim, size) in enumerate(zip(type_.shape, array.shape, strict=True)):
        if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
            raise ModelError(f"{mismatch}, and {dim} is {sizes[dim]} in another input")
        if axis == 0 and isinstance(dim, int) and dim > 0 and size > dim and size % dim == 0:
            factor = size // dim
        elif isinstance(dim, int) and dim != size:
            raise mismatch
    return factor


def _first_is_free(type_: TensorType | None) -> bool:
    return type_ is None or type_.shape is None or (bool(type_.shape) and not isinstance(type_.shape[0], int))


def _first_is_elsewhere(inputs: Sequence[Input]) -> bool:
    """Whether the symbol of a first size occurs at another axis too, so that rows cannot be chosen alone."""
    shapes = [i.type.shape for i in inputs if i.type is not None and i.type.shape]
    first = {shape[0] for shape in shapes if isinstance(shape[0], str)}
    return any(dim in first for shape in shapes for dim in shape[1:])


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _array(value: Any) -> Array:
    """A numpy array, of a tensor of torch too."""
    if type(value).__module__.partition(".")[0] == "torch":
        from graphopt.ir.fx.tensors import to_numpy

        return to_numpy(value)
    return np.asarray(value)
