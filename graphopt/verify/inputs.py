"""Inputs to run a fragment on: sizes for its dimensions, and seeded data of several kinds.

Three kinds are drawn. "normal" is N(0, 1), and integers from -4 to 4. "mixed" spreads magnitudes over the range of
the dtype, with zeros of both signs and subnormals, a stretch of one sign at either end. "special" sprinkles NaN and
infinities over normal data, and draws integers from the edges of what the narrower types hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from graphopt.ir.graph import Call, Dim, Graph, Literal, TensorType, Value
from graphopt.ir.ops import ELEMENTWISE
from graphopt.ir.weights import FLOATS, Array, numpy_dtype
from graphopt.verify.floats import draw_float
from graphopt.verify.fragment import Fragment
from graphopt.verify.row_counts import indexed, scored, telling_rows

KINDS = ("normal", "mixed", "special")
LOCAL = frozenset({
    "conv", "conv_transpose", "batch_norm", "relu", "leaky_relu", "prelu", "sigmoid", "tanh", "silu", "gelu",
    "hard_sigmoid", "hard_swish", "clamp", "elu", "softplus", "mish", "add", "sub", "mul", "div", "maximum",
    "minimum", "neg", "exp", "sqrt", "abs", "identity", "cast", "fused_conv",
})  # fmt: skip
"""Ops that treat every position of the spatial dimensions alike: fragments of them may be run on smaller images."""
NUMERIC = ELEMENTWISE | {"transpose", "concat"}
"""Ops that take integers for numbers, however large."""
LAYOUT = frozenset({"identity", "cast", "reshape", "unsqueeze", "squeeze", "transpose", "expand"})
"""Ops that give integers another form: what they are used for afterwards, they are used for."""
IMAGES = 2
"""How many images are tried where their number is symbolic and no op can tell."""
PRIMES = (7, 11, 13, 17, 19, 23, 29, 31)
ENOUGH = 32
"""Numbers that are drawn for an input at the least, in several draws if it has fewer."""
LITTLE = 1024
"""Numbers of an input up to which that is done."""


class NoInputs(Exception):
    """No inputs can be drawn: a type or a size is not known. Carries the reason."""


Sizes = dict[Value, tuple[int, ...]]


def size_choices(fragment: Fragment, calls: Sequence[Call]) -> Iterator[Sizes]:
    """Concrete shapes for the inputs, most preferred first. The caller takes the first that the original accepts.

    Static sizes are kept, but images are first tried smaller, and few of them, where no op can tell. Symbolic sizes
    are first all different, so that a rewrite that reads the wrong dimension is seen.
    """
    types = [_known(fragment.graph, v) for v in fragment.inputs]
    shapes = [constrained(fragment, v, t, calls) for v, t in zip(fragment.inputs, types, strict=True)]
    local = treats_positions_alike(fragment, calls)
    symbols = list(dict.fromkeys(d for s in shapes for d in s if not isinstance(d, int)))
    names = list(dict.fromkeys(multiple_of(s)[1] for s in symbols))
    extent = kernel_extent(fragment, calls)
    wanted = _wanted(fragment, calls)
    spread = {name: max(PRIMES[i % len(PRIMES)], wanted.get(name, 0) + i) for i, name in enumerate(names)}
    few = _batches(shapes) if local else frozenset()
    choices = [{name: IMAGES if name in few else p + extent for name, p in spread.items()}]
    if symbols:
        choices.append(spread)
        choices += [dict.fromkeys(names, size) for size in (extent + 8, 16, 64, 1)]
    for chosen in choices:
        assignment = {s: factor * chosen[name] for s in symbols for factor, name in [multiple_of(s)]}
        exact = [tuple(d if isinstance(d, int) else assignment[d] for d in s) for s in shapes]
        exact = _scores_fitted(fragment, exact, calls)
        if local:
            yield dict(zip(fragment.inputs, [_shrink(s, extent + 8) for s in exact], strict=True))
        if (told := telling_rows(fragment, exact, calls)) is not None:
            yield dict(zip(fragment.inputs, told, strict=True))
        yield dict(zip(fragment.inputs, exact, strict=True))


def _batches(shapes: Sequence[tuple[Dim, ...]]) -> frozenset[Dim]:
    """Names of sizes that only say how many images there are."""
    fronts = {multiple_of(shape[0])[1] for shape in shapes if len(shape) >= 3}
    others = {multiple_of(d)[1] for shape in shapes for d in (shape[1:] if len(shape) >= 3 else shape)}
    return frozenset(fronts - others)


def treats_positions_alike(fragment: Fragment, calls: Sequence[Call]) -> bool:
    """Whether both sides are made of such ops: a rewrite may well have written the sizes of its images down."""
    return all(c.op in LOCAL for c in calls) and all(fragment.graph.key(n) in LOCAL for n in fragment.after.nodes)


def _scores_fitted(
    fragment: Fragment, shapes: Sequence[tuple[int, ...]], calls: Sequence[Call]
) -> list[tuple[int, ...]]:
    """`shapes` of the inputs, with scores of experts for as many tokens as there are."""
    fitted = dict(zip(fragment.inputs, shapes, strict=True))
    for call in calls:
        if call.op == "moe" and all(o in fitted for o in call.operands[:2]):
            x, scores = call.operands[:2]
            fitted[scores] = (math.prod(fitted[x][:-1]), *fitted[scores][1:])
    return list(fitted.values())


def _wanted(fragment: Fragment, calls: Sequence[Call]) -> dict[Dim, int]:
    """For symbolic numbers of indices, how many let each index occur."""
    found: dict[Dim, int] = {}
    for value, count in (*indexed(fragment, calls), *scored(fragment, calls)):
        type_ = fragment.graph.type(value)
        if type_ is not None and type_.shape and isinstance(type_.shape[0], str):
            factor, name = multiple_of(type_.shape[0])
            found[name] = max(found.get(name, 0), -(-count // factor))
    return found


def multiple_of(symbol: Dim) -> tuple[int, Dim]:
    """A size that is called "3*batch" is three times the size that is called "batch"."""
    found = re.fullmatch(r"(\d+)\*(\w+)", str(symbol))
    return (1, symbol) if found is None else (int(found[1]), found[2])


def _known(graph: Graph, value: Value) -> TensorType:
    type_ = graph.type(value)
    if type_ is None:
        raise NoInputs(f"the type of {graph.name(value)} is unknown")
    return type_


def _shrink(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    return shape if len(shape) < 3 else (*shape[:2], *(min(d, size) for d in shape[2:]))


def kernel_extent(fragment: Fragment, calls: Sequence[Call]) -> int:
    """The largest reach of a convolution kernel in the fragment, so that small images still have an interior."""
    extent = 0
    for call in calls:
        if call.op in ("conv", "fused_conv", "conv_transpose") and call.operands[1] is not None:
            weight = fragment.graph.type(call.operands[1])
            if weight is not None and weight.is_static and weight.shape is not None:
                reach = [int(k or 0) * d for k, d in zip(weight.shape[2:], call.fields["dilation"], strict=False)]
                extent = max([extent, *reach])
    return extent


def constrained(fragment: Fragment, value: Value, type_: TensorType, calls: Sequence[Call]) -> tuple[Dim, ...]:
    """The shape of an input, with unknown sizes filled in where a weight that it meets decides them."""
    graph = fragment.graph
    anonymous = iter(range(1000))
    position = fragment.inputs.index(value)
    shape: list[Dim] | None = None if type_.shape is None else list(type_.shape)
    for call in calls:
        if value not in call.operands[:1]:
            continue
        weights = [None if o is None else graph.type(o) for o in call.operands[1:]]
        known = [w for w in weights if w is not None and w.is_static and w.shape is not None]
        if not known or known[0].shape is None:
            continue
        first = known[0].shape
        if call.op in ("conv", "fused_conv", "conv_transpose"):
            shape = shape or [None] * len(first)
            channels = first[0] if call.op == "conv_transpose" else int(first[1] or 0) * call.fields["groups"]
            shape[1] = shape[1] if isinstance(shape[1], int) else channels
        elif call.op in ("batch_norm", "instance_norm", "group_norm") and shape is not None and len(shape) > 1:
            shape[1] = shape[1] if isinstance(shape[1], int) else first[0]
        elif call.op in ("linear", "matmul") and shape and len(first) > 1:
            inner = first[-1] if call.op == "linear" and call.fields["trans_w"] else first[-2]
            shape[-1] = shape[-1] if isinstance(shape[-1], int) else inner
    if shape is None:
        raise NoInputs(f"the rank of {graph.name(value)} is unknown")
    return tuple(f"?{position}.{next(anonymous)}" if d is None else d for d in shape)


def draw(
    fragment: Fragment,
    sizes: Sizes,
    calls: Sequence[Call],
    kind: str,
    seed: int,
    *,
    finite: bool = False,
    one_of_many: bool = False,
) -> list[Array]:
    """One array per input, in order; deterministic in `seed`. `finite` keeps NaN and infinities out of special
    inputs, whose integers stay what they are. `one_of_many` draws let special inputs of three numbers or fewer be NaN
    or infinite, which would leave nothing else to see in the only one."""
    rng = np.random.default_rng(seed)
    float_kind = KINDS[0] if finite and kind == "special" else kind
    arrays = []
    for value in fragment.inputs:
        type_ = _known(fragment.graph, value)
        shape = sizes[value]
        if type_.dtype in FLOATS:
            arrays.append(draw_float(rng, shape, type_.dtype, float_kind, one_of_many=one_of_many))
        elif type_.dtype in ("complex64", "complex128"):
            parts = rng.standard_normal((2, *shape))
            arrays.append((parts[0] + 1j * parts[1]).astype(numpy_dtype(type_.dtype)))
        elif type_.dtype == "bool":
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        else:
            free = kind != KINDS[0] and has_free_integers(fragment, calls)
            draw_one = _draw_number if free else _draw_integer
            arrays.append(draw_one(rng, fragment, value, type_, sizes, calls, kind))
    return arrays


def draws_of(sizes: Sizes) -> int:
    """How often inputs are drawn so that those of few numbers meet enough: one truth value or sign tells little."""
    numbers = [n for n in map(math.prod, sizes.values()) if n > 0]
    return max(1, min(-(-ENOUGH // min(numbers)), LITTLE // max(numbers))) if numbers else 1


def draw_input(rng: np.random.Generator, type_: TensorType) -> Array:
    """An input of a static type for a run of a whole model: normal floats; 0 and 1 for integers, which are valid
    labels, timesteps and masks alike."""
    assert type_.shape is not None
    shape = tuple(d for d in type_.shape if isinstance(d, int))
    if type_.dtype in FLOATS:
        return draw_float(rng, shape, type_.dtype, "normal")
    return rng.integers(0, 2, shape).astype(numpy_dtype(type_.dtype))


def has_free_integers(fragment: Fragment, calls: Sequence[Call]) -> bool:
    """Whether integers are fed and are but numbers: no node can take them for a place or a size."""
    types = [fragment.graph.type(v) for v in fragment.inputs]
    fed = [t.dtype for t in types if t is not None and t.dtype not in FLOATS and t.dtype != "bool"]
    plain = bool(fed) and all(re.fullmatch(r"u?int(8|16|32|64)", dtype) for dtype in fed)
    return plain and len(calls) == len(fragment.before.nodes) and all(c.op in NUMERIC for c in calls)


def _draw_number(
    rng: np.random.Generator,
    fragment: Fragment,
    value: Value,
    type_: TensorType,
    sizes: Sizes,
    calls: Sequence[Call],
    kind: str,
) -> Array:
    """Integers of all magnitudes, or from the edges of types and of exact floats; divisors are not zero.

    The least integer is left out: dividing it by -1 ends the process.
    """
    most = int(np.iinfo(type_.dtype).max)
    shape = sizes[value]
    if kind == "mixed":
        magnitudes = np.floor(2.0 ** rng.uniform(0, most.bit_length() - 1, shape)).astype(np.uint64)
    else:
        edges = sorted({min(1 << b, most) + d for b in (0, 7, 8, 15, 16, 24, 31, 32, 53, 63) for d in (-1, 0)} | {1})
        edges = [e for e in edges if e <= most]
        magnitudes = np.asarray(edges, np.uint64)[rng.integers(0, len(edges), shape)]
    if any(c.op in ("div", "mod") and value in c.operands[1:] for c in calls):
        magnitudes = np.maximum(magnitudes, 1)
    numbers = magnitudes.astype(numpy_dtype(type_.dtype))
    if type_.dtype.startswith("u"):
        return numbers
    return np.where(rng.random(shape) < 0.5, -numbers, numbers).astype(numbers.dtype)


def _draw_integer(
    rng: np.random.Generator,
    fragment: Fragment,
    value: Value,
    type_: TensorType,
    sizes: Sizes,
    calls: Sequence[Call],
    kind: str,
) -> Array:
    low, high = (0, 9) if type_.dtype.startswith("u") else (-4, 5)
    same = {value}
    for call in calls:
        if call.op in LAYOUT and call.operands[0] in same:
            same.update(o for o in call.outputs if o is not None)
        if call.op == "histogram":  # Of numbers beyond its ends it is not said what becomes of them.
            first, last = call.fields["low"], call.fields["high"]
            low, high = (0, 1) if first is None else (int(first), int(last) + 1)  # of the data: those of one expert
        read = next((o for o in call.operands if o in same), None)
        if read is None:
            if _is_settled_target(fragment.graph, call, value):
                return np.asarray(call.fields["shape"], numpy_dtype(type_.dtype))
            continue
        position = call.operands.index(read)
        if read == value and call.op in ("reshape", "expand", "fill") and position == len(call.operands) - 1:
            return np.asarray(_target(fragment.graph, call, sizes), numpy_dtype(type_.dtype))
        if position == 1 and call.op in ("gather", "gather_elements", "scatter_elements"):
            extent = _size_of(fragment.graph, call.operands[0], sizes)[call.fields["axis"]]
            return _indices(rng, sizes[value], extent, negative=not _rejects_negative(fragment.graph, call)).astype(
                numpy_dtype(type_.dtype)
            )
        if position == 1 and call.op in ("gather_nd", "scatter_nd"):
            first = call.fields.get("batch_dims", 0)
            depth = _size_of(fragment.graph, read, sizes)[-1]
            picked = _size_of(fragment.graph, call.operands[0], sizes)[first:][:depth]
            extent = min(picked, default=0)
            return _indices(rng, sizes[value], extent, negative=True).astype(numpy_dtype(type_.dtype))
        if position == 2 and call.op == "grouped_matmul":
            rows = _size_of(fragment.graph, call.operands[0], sizes)[0]
            ends = np.sort(rng.integers(0, rows + 1, sizes[value]))
            return np.append(ends[:-1], rows).astype(numpy_dtype(type_.dtype))
        if position == 1 and call.op in ("div", "mod"):
            low = 1
    return rng.integers(low, high, sizes[value]).astype(numpy_dtype(type_.dtype))


def _indices(rng: np.random.Generator, shape: tuple[int, ...], extent: int, *, negative: bool) -> Array:
    """Indices of an axis in random order, each as often as any other, so that none is left out if there are enough;
    half of them counted from the end if that is allowed."""
    size = math.prod(shape)
    if extent == 0:
        return np.zeros(shape, np.int64)
    found: Array = rng.permutation(np.arange(size) + rng.integers(extent)) % extent
    from_end = (rng.random(size) < 0.5) & negative
    return np.where(from_end, found - extent, found).reshape(shape)


def _rejects_negative(graph: Graph, call: Call) -> bool:
    """torch counts from the end in plain indexing alone."""
    name = graph.raw_name(call.node)
    return name.startswith("aten.") and name != "aten.index.Tensor"


def _is_settled_target(graph: Graph, call: Call, value: Value) -> bool:
    """Whether `value` is a computed shape that `call` does not read, because types say already what it holds."""
    return call.fields.get("shape") is not None and value in graph.raw_call(call.node).operands[1:]


def _size_of(graph: Graph, value: Value | None, sizes: Sizes) -> tuple[int, ...]:
    if value in sizes:
        return sizes[value]
    type_ = None if value is None else graph.type(value)
    found = [None] if type_ is None or type_.shape is None else _resolved(graph, type_.shape, sizes)
    if None in found:
        raise NoInputs("the size that an index refers to is unknown")
    return tuple(d for d in found if d is not None)


def _resolved(graph: Graph, shape: Sequence[Dim], sizes: Sizes) -> list[int | None]:
    """`shape` where inputs are of these sizes; None for a size that they do not tell."""
    named: dict[Dim, int] = {}
    for value, given in sizes.items():
        type_ = graph.type(value)
        if type_ is not None and type_.shape is not None and not isinstance(value, Literal):
            for dim, size in zip(type_.shape, given, strict=True):
                factor, name = multiple_of(dim)
                if isinstance(name, str):
                    named[name] = size // factor
    multiples = [multiple_of(dim) for dim in shape]
    return [d if isinstance(d, int) else factor * named[name] if name in named else None
            for d, (factor, name) in zip(shape, multiples, strict=True)]  # fmt: skip


def _target(graph: Graph, call: Call, sizes: Sizes) -> list[int]:
    """A value for a computed shape operand: the shape that the result is known to have."""
    result = graph.type(call.outputs[0])
    if result is None or result.shape is None:
        raise NoInputs(f"the shape that {call.op} is to produce is unknown")
    target = [-1 if d is None else d for d in _resolved(graph, result.shape, sizes)]
    if target.count(-1) > (1 if call.op == "reshape" else 0):
        raise NoInputs(f"the shape that {call.op} is to produce is not determined")
    return target
