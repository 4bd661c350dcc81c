"""Two files of one model: inputs and outputs matched by name, and sizes to compare them at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir.graph import Dim, TensorType, Value
from graphopt.ir.load import load_model
from graphopt.ir.weights import FLOATS, Array, numpy_dtype
from graphopt.verify.floats import draw_float
from graphopt.verify.fragment import reads

SIZES = ((3, 5, 7, 11, 13, 17, 19, 23), (8, 16, 24, 32, 40, 48, 56, 64))
"""What the free sizes of two files are fixed to: all different, so that one that is taken for another is seen."""


@dataclass(frozen=True)
class Pair:
    """Two models with the same interface."""

    before: Any
    after: Any
    inputs: Mapping[str, TensorType]
    """What both files say of each input together."""
    outputs: tuple[str, ...]

    def values(self, model: Any) -> dict[str, Value]:
        """The inputs of one of the models, by name."""
        return {model.main.name(v): v for v in model.main.inputs()}

    def results(self, model: Any, made: Sequence[Any]) -> list[Any]:
        """`made`, one thing for each output of `model`, in the order of `outputs`."""
        names = [model.main.name(v) for v in model.main.outputs()]
        return [made[names.index(name)] for name in self.outputs]

    @property
    def is_constant(self) -> bool:
        """Whether no output of either model depends on an input."""
        return all(_fixed(model) for model in (self.before, self.after))


def pair(before: Any, after: Any) -> Pair:
    """Match two ONNX models, each a path or what else `load_model` takes.

    Raises:
        ModelError: no ONNX model, or the names, element types or sizes of inputs or outputs differ.
    """
    models = [_loaded(source) for source in (before, after)]
    names = [_names(before, "the first model"), _names(after, "the second model")]
    sides = [{m.main.name(v): m.main.type(v) for v in m.main.inputs()} for m in models]
    _same_names("input", [_required(m) for m in models], [set(s) for s in sides], names)
    outputs = [[m.main.name(v) for v in m.main.outputs()] for m in models]
    _same_names("output", [set(o) for o in outputs], [set(o) for o in outputs], names)
    one, other = sides
    inputs = {n: _joint(n, one.get(n), other.get(n), names) for n in dict.fromkeys([*one, *other])}
    return Pair(models[0], models[1], inputs, tuple(outputs[0]))


def _fixed(model: Any) -> bool:
    main = model.main
    varying = set(main.inputs())
    for node in main.nodes():
        if not main.is_pure(node) or not varying.isdisjoint(reads(main, node)):
            varying.update(o for o in main.results(node) if o is not None)
    return varying.isdisjoint(main.outputs())


def _names(source: Any, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise


def _loaded(source: Any) -> Any:
    """The model with its functions taken apart. What came in is not changed."""
    model: Any = load_model(source)
    if model.storage != "onnx":
        raise ModelError(f"{_names(source, 'the model')}: only ONNX models are compared, got one of {model.storage}")
    if not model.ir.functions:
        return model
    import onnx.inliner
    import onnx_ir as ir

    return load_model(onnx.inliner.inline_local_functions(ir.to_proto(model.ir)))


def _required(model: Any) -> set[str]:
    """Inputs without a default value."""
    return {model.main.name(v) for v in model.main.inputs() if not v.is_initializer()}


def _same_names(what: str, needed: Sequence[set[str]], known: Sequence[set[str]], names: Sequence[str]) -> None:
    for one, other in ((0, 1), (1, 0)):
        if missing := sorted(needed[one] - known[other]):
            raise ModelError(
                f"{names[other]} has no {what} {missing[0]!r}, which {names[one]} has; expected the same {what}s in "
                f"both, got {sorted(known[other])}; compare two files of one model, or rename"
            )


def _joint(name: str, a: TensorType | None, b: TensorType | None, names: Sequence[str]) -> TensorType:
    known = [t for t in (a, b) if t is not None]
    if not known:
        raise ModelError(f"input {name!r} of {names[0]}: only tensors of numbers are compared; it is something else")
    if len({t.dtype for t in known}) > 1:
        raise ModelError(f"input {name!r} is {known[0].dtype} in {names[0]} and {known[1].dtype} in {names[1]}")
    shapes = [t.shape for t in known if t.shape is not None]
    if len({len(s) for s in shapes}) > 1 or any(_conflict(*dims) for dims in zip(*shapes, strict=True)):
        raise ModelError(
            f"input {name!r} has the sizes {list(shapes[0])} in {names[0]} and {list(shapes[1])} in {names[1]}; "
            "expected sizes that both accept"
        )
    shape = tuple(_size(*dims) for dims in zip(*shapes, strict=True)) if shapes else None
    return TensorType(known[0].dtype, shape)


def _size(*dims: Dim) -> Dim:
    return next((d for d in dims if isinstance(d, int)), next((d for d in dims if d is not None), None))


def _conflict(*dims: Dim) -> bool:
    return len({d for d in dims if isinstance(d, int)}) > 1


def shapes(pair: Pair, examples: Mapping[str, Array] | None) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes for the inputs: those of `examples`, else free sizes fixed to small ones. Raises ModelError."""
    if examples is not None:
        for name, array in examples.items():
            _accepted(pair, name, array)
    given = examples or {}
    symbols = dict.fromkeys(
        (name, i) if d is None else d
        for name, t in pair.inputs.items()
        if name not in given
        for i, d in enumerate(t.shape or ())
        if not isinstance(d, int)
    )
    fixed = {d for t in pair.inputs.values() for d in t.shape or () if isinstance(d, int)}
    for sizes in SIZES if symbols else SIZES[:1]:
        free = [n for n in (*sizes, *range(sizes[-1] + 1, sizes[-1] + 1 + len(symbols))) if n not in fixed]
        chosen: dict[Any, int] = dict(zip(symbols, [*free, *range(101, 101 + len(symbols))], strict=False))
        yield {name: given[name].shape if name in given else _shape(name, t, chosen) for name, t in pair.inputs.items()}


def _shape(name: str, type_: TensorType, chosen: Mapping[Any, int]) -> tuple[int, ...]:
    if type_.shape is None:
        raise ModelError(f"the rank of input {name!r} is unknown; give an example of it")
    return tuple(d if isinstance(d, int) else chosen[(name, i) if d is None else d] for i, d in enumerate(type_.shape))


def _accepted(pair: Pair, name: str, array: Array) -> None:
    type_ = pair.inputs.get(name)
    if type_ is None:
        raise ModelError(f"there is an example of {name!r}; the inputs are {sorted(pair.inputs)}")
    fits = type_.shape is None or (
        len(type_.shape) == array.ndim
        and all(not isinstance(d, int) or d == n for d, n in zip(type_.shape, array.shape, strict=True))
    )
    if array.dtype.name != type_.dtype or not fits:
        raise ModelError(f"the example of {name!r} is {array.dtype.name}{list(array.shape)}; expected {type_}")


def drawn(
    pair: Pair,
    sizes: Mapping[str, tuple[int, ...]],
    examples: Mapping[str, Array] | None,
    seed: int,
    least: int = 0,
    below: int = 2,
) -> dict[str, Array]:
    """Numbers for all inputs: normal ones for floats; for integers those of `examples`, else ones of a range, of which
    0 and 1 are valid labels, places and masks alike."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, type_ in pair.inputs.items():
        shape = sizes[name]
        if type_.dtype in FLOATS:
            found[name] = draw_float(rng, shape, type_.dtype, "normal")
        elif examples is not None and name in examples:
            found[name] = examples[name]
        else:
            found[name] = rng.integers(least, below, shape).astype(numpy_dtype(type_.dtype))
    return found
