"""Small graphs made from a rule's own pattern, at random: what the rule is tried on where there is no model.

Shapes are given from the root down, so that they always fit: each op says what its operands have to be for its result
to be what is wanted. Ops that are not listed here pass on the shape that is wanted of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.ops.spec import REQUIRED
from graphopt.ir.scratch import ScratchGraph, ScratchNode, ScratchValue, float64_leaf
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.rewrite.pattern import AnyOf, Const, Many, OpPattern, Opt, Pattern, Var, any_
from graphopt.rewrite.rule import Rule

SIZES = (2, 3, 4, 5, 6, 7)
USUAL = [[1, 0], [0, 2, 1], [0, 1, 3, 2], [0, 2, 1, 3], [0, 2, 3, 1]]
"""Orders of axes that attention is written with."""
EQUATIONS = ["bihd,bjhd->bhij", "bhij,bjhd->bihd", "bhid,bhjd->bhij", "bhij,bhjd->bhid", "bid,bjd->bij", "bij,bjd->bid"]


class NoSample(Exception):
    """This draw has come to nothing: the pattern asks for what is not known here, or shapes contradict each other."""


def samples(rule: Rule, seed: int = 0) -> Iterator[tuple[ScratchGraph, ScratchNode] | None]:
    """Endless draws of a graph for `rule` and the node of its first root, None for one that came to nothing; whether
    the rule applies is to be seen."""
    rng = random.Random(seed)
    while True:
        sampler = _Sampler(rng)
        try:
            roots = [sampler.emit(root, sampler.wanted(root)) for root in rule.roots]
        except NoSample:
            yield None
            continue
        for root in roots:  # an output of a graph keeps a node of its own
            last = "logical_not" if root.type.dtype == "bool" else "neg"
            sampler.graph.add_output(sampler.graph.append(last, root, types=[root.type]))
        if not _is_sound(sampler.graph):
            yield None
            continue
        yield sampler.graph, roots[0].producer


def _is_sound(graph: ScratchGraph) -> bool:
    """Whether every value has the shape that is said of it."""
    feeds = [np.ones(_shape(v.type), numpy_dtype(v.type.dtype)) for v in graph.inputs()]
    wrong: list[ScratchValue] = []

    def observe(value: ScratchValue, result: Any) -> None:
        if value.type is None or np.shape(result) != value.type.shape:
            wrong.append(value)

    with np.errstate(all="ignore"):
        try:
            graph.evaluate(feeds, Float64(), float64_leaf, observe)
        except (ValueError, IndexError, TypeError):
            return False
    return not wrong


class _Sampler:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.graph = ScratchGraph()
        self.numbers = np.random.default_rng(rng.getrandbits(32))
        self.variables: dict[str, Any] = {}

    def wanted(self, root: OpPattern) -> TensorType:
        sizes = self.rng.sample(SIZES, self.rng.randint(2, 4))
        dtype = "bool" if root.op.startswith("logical") else "float32"
        return TensorType(dtype, tuple(1 if self.rng.random() < 0.15 else n for n in sizes))

    def size(self) -> int:
        return self.rng.choice(SIZES)

    # ---- patterns --------------------------------------------------------------------------------------------

    def emit(self, pattern: Pattern, type_: TensorType, *, constant: bool = False) -> Any:
        """A value of `type_` that `pattern` stands for; a variable may be a `constant`."""
        match pattern:
            case AnyOf():
                return self.emit(self.rng.choice(pattern.alternatives), type_, constant=constant)
            case Opt():
                return None if self.rng.random() < 0.5 else self.emit(pattern.inner, type_, constant=constant)
            case Const():
                return self.constant(type_, pattern.value)
            case Var():
                return self.variable(pattern.name, type_, constant=constant)
            case OpPattern():
                return self.op(pattern, type_)
        raise NoSample

    def constant(self, type_: TensorType, value: float | None = None) -> Value:
        """Of one number if it is a single one: what rules read of it is then exact, as it is a power of two."""
        if value is None and np.prod(_shape(type_)) == 1:
            value = self.rng.choice([0.0, -0.0, 1.0, 0.25, 0.5, 2.0, 4.0])
        shape, dtype = _shape(type_), numpy_dtype(type_.dtype)
        if value is None and self.rng.random() < 0.2:
            value = self.rng.choice([0.0, -0.0, 1.0])
        data = self.numbers.uniform(0.5, 2.0, shape) if value is None else np.full(shape, value)
        return self.graph.add_constant(ArrayRef(np.asarray(data, dtype)), "c")[0]

    def variable(self, name: str, type_: TensorType, *, constant: bool) -> Any:
        if name not in self.variables:
            stored = constant and self.rng.random() < 0.7
            self.variables[name] = self.constant(type_) if stored else self.graph.add_input(type_)
        if self.variables[name].type != type_:
            raise NoSample
        return self.variables[name]

    def op(self, pattern: OpPattern, type_: TensorType) -> Any:
        spec = OPS.get(pattern.op)
        if spec is None:
            raise NoSample
        try:
            wanted, drawn = _OPERANDS.get(pattern.op, _alike)(self, pattern, type_)
        except (IndexError, ValueError):
            raise NoSample from None
        fields = {k: v for k, v in pattern.fields.items() if v is not any_}
        fields = {k: v for k, v in spec.fields.items() if v is not REQUIRED} | drawn | fields
        if any(v is REQUIRED and k not in fields for k, v in spec.fields.items()):
            raise NoSample
        operands = []
        for i, (operand, part) in enumerate(zip(_spread(pattern.operands, len(wanted)), wanted, strict=False)):
            operands.append(self.emit(operand, part, constant=i > 0))
        results = self.graph.append(pattern.op, *operands, types=[type_] * (spec.outputs or 1), **fields)
        return results[pattern.output] if isinstance(results, tuple) else results


def _shape(type_: TensorType) -> tuple[int, ...]:
    return tuple(n for n in type_.shape or () if isinstance(n, int))


def _spread(patterns: tuple[Pattern, ...], count: int) -> list[Pattern]:
    """The operands' patterns, that for many written out as variables of their own."""
    if len(patterns) == 1 and isinstance(many := patterns[0], Many):
        return [Var(f"{many.name} {i}") for i in range(count)]
    return list(patterns)


# ---- what ops want of their operands -------------------------------------------------------------------------------

Wanted = tuple[list[TensorType], dict[str, Any]]


def _alike(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    """Elementwise: constants may be broadcast."""
    shape, found = _shape(type_), []
    for i, operand in enumerate(pattern.operands):
        inner = operand.inner if isinstance(operand, Opt) else operand
        free = isinstance(inner, Const) and (i > 0 or len(pattern.operands) == 2)
        found.append(TensorType(type_.dtype, _broadcast(s, shape) if free else shape))
    parameters = {"slope": 0.25, "alpha": 0.5, "beta": 0.25} if pattern.op != "elu" else {"alpha": 0.5}
    drawn = {k: v for k, v in parameters.items() if k in OPS[pattern.op].fields}
    return found, drawn | {"axis": len(shape) - 1} if "axis" in OPS[pattern.op].fields else drawn


def _broadcast(s: _Sampler, shape: tuple[int, ...]) -> tuple[int, ...]:
    kept = tuple(n if s.rng.random() < 0.4 else 1 for n in shape)
    return s.rng.choice([shape, kept, kept[1:], (), (1,) * (len(shape) - 2) + shape[-1:],
                         shape[1:2] + (1,) * (len(shape) - 2)])  # fmt: skip


def _scalars(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [type_, TensorType(type_.dtype, ()), TensorType(type_.dtype, ())], {}


def _conv(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    batch, made, *spatial = _shape(type_)
    n, transposed = len(spatial), pattern.op == "conv_transpose"
    if not n:
        raise NoSample
    groups = s.rng.choice([g for g in (1, 1, 2, 3, made) if made % g == 0])
    given = groups * s.rng.randint(1, 3)
    kernel = [s.rng.randint(1, 3) for _ in spatial]
    stride = [1 if transposed else s.rng.randint(1, 2) for _ in spatial]
    pads = [0] * (2 * n) if s.rng.random() < 0.3 else [s.rng.randint(0, 2) for _ in range(2 * n)]
    around = [pads[i] + pads[n + i] for i in range(n)]
    if transposed:
        sizes = [spatial[i] - kernel[i] + 1 + around[i] for i in range(n)]
        weight: tuple[int, ...] = (given, made // groups, *kernel)
    else:
        sizes = [(spatial[i] - 1) * stride[i] + kernel[i] - around[i] for i in range(n)]
        weight = (made, given // groups, *kernel)
    if min(sizes) < 1:
        raise NoSample
    fields = {"stride": tuple(stride), "pads": tuple(pads), "dilation": (1,) * n, "groups": groups}
    fields |= {"output_padding": (0,) * n} if transposed else {}
    return _floats(type_, (batch, given, *sizes), weight, (made,)), fields


def _resize(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    """Space by divisors of what it is to be."""
    batch, channels, *spatial = _shape(type_)
    factors = [s.rng.choice([f for f in range(1, n + 1) if n % f == 0]) for n in spatial]
    fields = {"scales": (1.0, 1.0, *map(float, factors)), "mode": "nearest"}
    sizes = [n // f for n, f in zip(spatial, factors, strict=True)]
    return _floats(type_, (batch, channels, *sizes)), fields | {"coordinates": "asymmetric", "nearest": "floor"}


def _floats(type_: TensorType, *shapes: tuple[int, ...]) -> list[TensorType]:
    return [TensorType(type_.dtype, shape) for shape in shapes]


def _linear(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    *rows, made = _shape(type_)
    given, trans_w = s.size(), s.rng.random() < 0.5
    weight = (made, given) if trans_w else (given, made)
    return _floats(type_, (*rows, given), weight, (made,)), {"trans_w": trans_w}


def _matmul(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    *batch, rows, columns = _shape(type_)
    inner = s.size()
    matrix = isinstance(pattern.operands[1], Const)
    return _floats(type_, (*batch, rows, inner), (*([] if matrix else batch), inner, columns)), {}


def _batch_norm(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    return _floats(type_, shape, *[shape[1:2]] * 4), {"eps": 1e-5, "training": False}


def _attention(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    *batch, rows, columns = _shape(type_)
    keys, inner = s.size(), s.size()
    shapes = (*batch, rows, inner), (*batch, keys, inner), (*batch, keys, columns), (rows, keys)
    return _floats(type_, *shapes), {"scale": 0.5, "causal": False, "gqa": False}


def _transpose(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    perm = s.rng.sample(range(len(shape)), len(shape))
    if s.rng.random() < 0.7:
        perm = s.rng.choice([p for p in USUAL if len(p) == len(shape)])
    return _floats(type_, tuple(shape[perm.index(i)] for i in range(len(shape)))), {"perm": tuple(perm)}


def _reshape(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    """Two axes become one, or one becomes two, or nothing changes."""
    shape = _shape(type_)
    axis = s.rng.randrange(len(shape))
    factors = [n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]
    split = s.rng.choice(factors)
    merged = (*shape[:axis], int(np.prod(shape[axis : axis + 2])), *shape[axis + 2 :])
    divided = (*shape[:axis], split, shape[axis] // split, *shape[axis + 1 :])
    return _floats(type_, s.rng.choice([merged, divided, shape])), {"shape": shape}


def _unsqueeze(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    axis = s.rng.choice([i for i, n in enumerate(shape) if n == 1])
    return _floats(type_, (*shape[:axis], *shape[axis + 1 :])), {"axes": (axis,)}


def _squeeze(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    axis = s.rng.randint(0, len(shape))
    return _floats(type_, (*shape[:axis], 1, *shape[axis:])), {"axes": (axis,)}


def _slice(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    axis, front, behind = s.rng.randrange(len(shape)), s.rng.choice([0, 0, 1]), s.rng.choice([0, 0, 1])
    length = front + shape[axis] + behind
    fields = {"starts": (front,), "ends": (front + shape[axis],), "axes": (axis,), "steps": (1,)}
    return _floats(type_, (*shape[:axis], length, *shape[axis + 1 :])), fields


def _concat(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    axis = s.rng.randrange(len(shape))
    cut = s.rng.randrange(1, shape[axis])
    parts = [(*shape[:axis], n, *shape[axis + 1 :]) for n in (cut, shape[axis] - cut)]
    parts = [shape] if s.rng.random() < 0.3 else parts
    return _floats(type_, *parts), {"axis": axis}


def _einsum(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    equation = s.rng.choice([e for e in EQUATIONS if len(e.partition("->")[2]) == len(shape)])
    operands, _, result = equation.partition("->")
    sizes = dict(zip(result, shape, strict=True))
    for letter in "dj":
        sizes.setdefault(letter, s.size())
    return _floats(type_, *(tuple(sizes[c] for c in term) for term in operands.split(","))), {"equation": equation}


def _split(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    axis = s.rng.randrange(len(_shape(type_)))
    return [type_], {"axis": axis, "sizes": (_shape(type_)[axis],)}


def _pad(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [type_, TensorType(type_.dtype, ())], {"pads": (0,) * (2 * len(_shape(type_)))}


def _tile(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [type_], {"repeats": (1,) * len(_shape(type_))}


def _expand(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    shape = _shape(type_)
    kept = tuple(n if s.rng.random() < 0.7 else 1 for n in shape)
    return _floats(type_, kept), {"shape": shape}


def _cast(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [TensorType(s.rng.choice([type_.dtype, "float16", "float64"]), type_.shape)], {"dtype": type_.dtype}


def _where(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [TensorType("bool", type_.shape), type_, type_], {}


def _logical(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [TensorType("bool", type_.shape)] * len(pattern.operands), {}


def _compared(s: _Sampler, pattern: OpPattern, type_: TensorType) -> Wanted:
    return [TensorType("float32", type_.shape)] * len(pattern.operands), {}


_OPERANDS: dict[str, Callable[[_Sampler, OpPattern, TensorType], Wanted]] = {
    "conv": _conv, "conv_transpose": _conv, "linear": _linear, "matmul": _matmul, "batch_norm": _batch_norm,
    "attention": _attention, "transpose": _transpose, "reshape": _reshape, "unsqueeze": _unsqueeze,
    "squeeze": _squeeze, "slice": _slice, "concat": _concat, "expand": _expand, "cast": _cast, "where": _where,
    "einsum": _einsum, "split": _split, "pad": _pad, "tile": _tile, "clamp": _scalars,
    "resize": _resize, "is_nan": _compared, "logical_not": _logical,
}  # fmt: skip
