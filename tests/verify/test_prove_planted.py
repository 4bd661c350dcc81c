"""Wrong rewrites of single ops and pairs of ops, each of which differs on the inputs given with it. None is proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks.mutants import differ, evaluated
from benchmarks.proof_catalogue import Ops
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.prove import prove

Build = Callable[..., Any]


@dataclass(frozen=True)
class Wrong:
    before: Build
    after: Build
    inputs: tuple[Any, ...]
    """On which the sides differ."""

    @property
    def fragment(self) -> Fragment:
        graph = ScratchGraph()
        ops = Ops(graph)
        values = [graph.add_input(TensorType(x.dtype.name, x.shape)) for x in self.inputs]
        sides = []
        for build in (self.before, self.after):
            known = set(graph.nodes())
            result = build(ops, *values)
            sides.append(Side(tuple(n for n in graph.nodes() if n not in known), (result,)))
        return Fragment(graph, tuple(values), *sides)


WRONG: dict[str, Wrong] = {}


def wrong(name: str, before: Build, after: Build, *inputs: Any) -> None:
    given = [np.asarray(x) for x in inputs]
    WRONG[name] = Wrong(before, after, tuple(x.astype(np.float32) if x.dtype == np.float64 else x for x in given))


def ints(*values: int) -> Any:
    return np.asarray(values, np.int64)


ROW = [[-2.0, 0.5, 3.0]]
SQUARE = [[1.0, -2.0, 4.0], [0.5, 3.0, -1.0], [2.0, 5.0, -3.0]]
IMAGE = np.arange(2.0 * 4 * 4 * 4).reshape(2, 4, 4, 4) % 7 - 3

# ---- signs, roots, powers --------------------------------------------------------------------------------------------

wrong("inverse root of a square", lambda o, x: o.rsqrt(o.mul(x, x)), lambda o, x: o.reciprocal(x), ROW)
wrong("root of a square", lambda o, x: o.sqrt(o.mul(x, x)), lambda o, x: x, ROW)
wrong("root of a fourth power", lambda o, x: o.sqrt(o.pow(x, 4.0)), lambda o, x: o.neg(o.mul(x, x)), ROW)
wrong("half power of a square", lambda o, x: o.pow(o.mul(x, x), 0.5), lambda o, x: o.neg(x), ROW)
wrong("sign times the number", lambda o, x: o.mul(o.sign(x), x), lambda o, x: o.neg(o.abs(x)), ROW)
wrong("log of a square", lambda o, x: o.log(o.mul(x, x)), lambda o, x: o.mul(o.log(x), o.log(x)), ROW)
wrong("exp of a product", lambda o, x: o.exp(o.mul(x, 2.0)), lambda o, x: o.mul(o.exp(x), 2.0), ROW)
wrong("power of a sum", lambda o, x: o.exp(o.add(x, x)), lambda o, x: o.add(o.exp(x), o.exp(x)), ROW)
wrong("sigmoid of the negative", lambda o, x: o.sigmoid(o.neg(x)), lambda o, x: o.neg(o.sigmoid(x)), ROW)
wrong("tanh of a sum", lambda o, x: o.tanh(o.add(x, x)),
      lambda o, x: o.div(o.mul(2.0, o.tanh(x)), o.sub(1.0, o.mul(o.tanh(x), o.tanh(x)))), ROW)  # fmt: skip
wrong("softplus of a scale", lambda o, x: o.softplus(x, beta=2.0),
      lambda o, x: o.softplus(o.mul(x, 2.0)), ROW)  # fmt: skip
wrong("elu", lambda o, x: o.elu(x, alpha=0.5), lambda o, x: o.mul(o.elu(x, alpha=1.0), 0.5), ROW)
wrong("hard swish", lambda o, x: o.hard_swish(x),
      lambda o, x: o.mul(x, o.hard_sigmoid(x, alpha=0.2, beta=0.5)), ROW)  # fmt: skip
wrong("norm of the absolute", lambda o, x: o.reduce_l2(x, axes=(1,), keepdims=True),
      lambda o, x: o.reduce_sum(o.abs(x), axes=(1,), keepdims=True), ROW)  # fmt: skip

# ---- rounding, whole numbers, remainders -----------------------------------------------------------------------------

wrong("floor for round", lambda o, x: o.floor(x), lambda o, x: o.round(x), [[0.75]])
wrong("halves are rounded to even", lambda o, x: o.round(x), lambda o, x: o.floor(o.add(x, 0.5)), [[0.5]])
wrong("ceil of the negative", lambda o, x: o.neg(o.floor(o.neg(x))), lambda o, x: o.floor(x), [[0.25]])
wrong("ceil is floor and one", lambda o, x: o.ceil(x), lambda o, x: o.add(o.floor(x), 1.0), [[2.0]])
wrong("floor of a half for a shift", lambda o, x: o.div(x, 2.0, rounding="floor"),
      lambda o, x: o.mul(x, 0.5), [[3.0]])  # fmt: skip
wrong("truncated for floored division", lambda o, x: o.div(x, 2.0, rounding="trunc"),
      lambda o, x: o.div(x, 2.0, rounding="floor"), [[-3.0]])  # fmt: skip
wrong("division of integers", lambda o, x, y: o.mul(o.div(x, y, rounding="trunc"), y),
      lambda o, x, y: o.identity(x),
      ints(7), ints(2))  # fmt: skip
wrong("division of a sum of integers",
      lambda o, x, y: o.div(o.add(x, y), o.constant(np.int64(2)), rounding="trunc"),
      lambda o, x, y: o.add(*(o.div(t, o.constant(np.int64(2)), rounding="trunc") for t in (x, y))),
      ints(1), ints(1))  # fmt: skip
wrong("remainder for a fraction", lambda o, x: o.mod(x, 1.0), lambda o, x: o.sub(x, o.round(x)), [[0.75]])
wrong("sign of a remainder", lambda o, x: o.mod(x, 3.0), lambda o, x: o.mod(x, 3.0, fmod=True), [[-1.0]])
wrong("remainder of the negative", lambda o, x: o.mod(o.neg(x), 3.0),
      lambda o, x: o.neg(o.mod(x, 3.0)), [[1.0]])  # fmt: skip
wrong("a cast to integers and back", lambda o, x: o.cast(o.cast(x, dtype="int64"), dtype="float32"),
      lambda o, x: o.floor(x), [[-1.5]])  # fmt: skip
wrong("a cast to truth values and back", lambda o, x: o.cast(o.cast(x, dtype="bool"), dtype="float32"),
      lambda o, x: o.identity(x), [[2.0]])  # fmt: skip
wrong("bytes that wrap around", lambda o, x, y: o.cast(o.add(x, y), dtype="float32"),
      lambda o, x, y: o.add(o.cast(x, dtype="float32"), o.cast(y, dtype="float32")),
      np.asarray([200], np.uint8), np.asarray([100], np.uint8))  # fmt: skip
wrong("the least of signed bytes", lambda o, x: o.cast(o.neg(x), dtype="float32"),
      lambda o, x: o.neg(o.cast(x, dtype="float32")), np.asarray([-128], np.int8))  # fmt: skip

# ---- order -----------------------------------------------------------------------------------------------------------

wrong("ends of a clamp swapped", lambda o, x: o.clamp(x, -1.0, 1.0), lambda o, x: o.clamp(x, 1.0, -1.0), ROW)
wrong("clamps in the other order", lambda o, x: o.maximum(o.minimum(x, 1.0), 2.0),
      lambda o, x: o.minimum(o.maximum(x, 2.0), 1.0), ROW)  # fmt: skip
wrong("a clamp whose ends are the wrong way round", lambda o, x: o.maximum(o.minimum(x, -1.0), 1.0),
      lambda o, x: o.minimum(o.maximum(x, 1.0), -1.0), ROW)  # fmt: skip
wrong("a clamp by what is no constant", lambda o, x, y: o.maximum(o.minimum(x, 1.0), y),
      lambda o, x, y: o.minimum(o.maximum(x, y), 1.0), ROW, [[2.0, 2.0, 2.0]])  # fmt: skip
wrong("a clamp with other ends for each", lambda o, x: o.maximum(o.minimum(x, 1.0), np.asarray([0.0, 0.0, 2.0])),
      lambda o, x: o.minimum(o.maximum(x, np.asarray([0.0, 0.0, 2.0])), 1.0), ROW)  # fmt: skip
wrong("greatest of products", lambda o, x: o.maximum(o.mul(x, -2.0), o.mul(-2.0, 0.5)),
      lambda o, x: o.mul(o.maximum(x, 0.5), -2.0), ROW)  # fmt: skip
wrong("greatest of negatives", lambda o, x: o.reduce_max(o.neg(x), axes=(1,), keepdims=True),
      lambda o, x: o.neg(o.reduce_max(x, axes=(1,), keepdims=True)), ROW)  # fmt: skip
wrong("greatest of absolutes", lambda o, x: o.reduce_max(o.abs(x), axes=(1,), keepdims=True),
      lambda o, x: o.abs(o.reduce_max(x, axes=(1,), keepdims=True)), [[-4.0, 2.0]])  # fmt: skip
wrong("less or equal", lambda o, x: o.where(o.less_equal(x, 0.0), 1.0, x),
      lambda o, x: o.where(o.less(x, 0.0), 1.0, x),
      [[0.0]])  # fmt: skip
wrong("not less is greater", lambda o, x: o.where(o.logical_not(o.less(x, 1.0)), 1.0, 0.0),
      lambda o, x: o.where(o.greater(x, 1.0), 1.0, 0.0), [[1.0]])  # fmt: skip
wrong("neither, and not both", lambda o, x, y: o.logical_not(o.logical_and(x, y)),
      lambda o, x, y: o.logical_and(o.logical_not(x), o.logical_not(y)), np.asarray([True]),
      np.asarray([False]))  # fmt: skip
wrong("one or the other, or both", lambda o, x, y: o.logical_xor(x, y), lambda o, x, y: o.logical_or(x, y),
      np.asarray([True]), np.asarray([True]))  # fmt: skip
wrong("sorted upwards for downwards", lambda o, x: o.sort(x, axis=1)[0],
      lambda o, x: o.sort(x, axis=1, descending=True)[0],
      ROW)  # fmt: skip
wrong("the greatest for the least", lambda o, x: o.topk(x, k=2, axis=1)[0],
      lambda o, x: o.topk(x, k=2, axis=1, largest=False)[0], ROW)  # fmt: skip
wrong("the greatest in their places", lambda o, x: o.topk(x, k=3, axis=1)[0], lambda o, x: o.identity(x), ROW)
wrong("the greatest in the other order", lambda o, x: o.topk(x, k=2, axis=1)[0],
      lambda o, x: o.slice(o.topk(x, k=2, axis=1)[0], starts=(-1,), ends=(-(2**62),), axes=(1,), steps=(-1,)),
      [[1.0, 2.0]])  # fmt: skip

# ---- places ----------------------------------------------------------------------------------------------------------

wrong("an index from the end", lambda o, x: o.gather(x, o.constant(ints(-1)), axis=1),
      lambda o, x: o.gather(x, o.constant(ints(1)), axis=1), ROW)  # fmt: skip
wrong("rows for columns", lambda o, x: o.gather(x, o.constant(ints(2)), axis=0),
      lambda o, x: o.turned(o.gather(x, o.constant(ints(2)), axis=1), 1, 0), SQUARE)  # fmt: skip
wrong("elements for rows", lambda o, x: o.gather_elements(x, o.constant(np.asarray([[0, 1, 2]] * 3)), axis=0),
      lambda o, x: o.gather_elements(x, o.constant(np.asarray([[0, 1, 2]] * 3)), axis=1), SQUARE)  # fmt: skip
wrong("pairs of indices by batches",
      lambda o, x: o.gather_nd(x, o.constant(np.asarray([[[1]], [[2]], [[0]]])), batch_dims=1),
      lambda o, x: o.gather_nd(x, o.constant(np.asarray([[[1, 0]], [[2, 1]], [[0, 2]]]))),
      SQUARE)  # fmt: skip
wrong("the last of two writes", lambda o, x, y: o.scatter_nd(x, o.constant(np.asarray([[0], [0]])), y),
      lambda o, x, y: o.scatter_nd(x, o.constant(np.asarray([[0], [0]])), o.roll(y, shifts=(1,), axes=(0,))),
      SQUARE, [[1.0] * 3, [2.0] * 3])  # fmt: skip
wrong("written for added",
      lambda o, x, y: o.scatter_elements(x, o.constant(np.asarray([[1]])), y, axis=1, reduction="add"),
      lambda o, x, y: o.scatter_elements(x, o.constant(np.asarray([[1]])), y, axis=1), ROW,
      [[5.0]])  # fmt: skip
wrong("a cut by a negative end", lambda o, x: o.cut(x, 0, -1, 1), lambda o, x: o.cut(x, 1, 3, 1), ROW)
wrong("every second from the other end",
      lambda o, x: o.slice(x, starts=(0,), ends=(4,), axes=(1,), steps=(2,)),
      lambda o, x: o.slice(x, starts=(3,), ends=(-(2**62),), axes=(1,), steps=(-2,)), [[1.0, 2.0, 3.0, 4.0]])
wrong("rolled the other way", lambda o, x: o.roll(x, shifts=(1,), axes=(1,)),
      lambda o, x: o.roll(x, shifts=(-1,), axes=(1,)),
      ROW)  # fmt: skip
wrong("tiled for repeated", lambda o, x: o.tile(x, repeats=(1, 2)),
      lambda o, x: o.repeat_interleave(x, repeats=2, axis=1),
      ROW)  # fmt: skip
wrong("a range from one", lambda o, x: o.mul(x, o.constant(np.arange(3.0))),
      lambda o, x: o.mul(x, o.cast(o.range(*(o.constant(np.int64(n)) for n in (1, 4, 1))),
      dtype="float32")), ROW)  # fmt: skip
wrong("the other triangle", lambda o, x: o.trilu(x, k=0, upper=True),
      lambda o, x: o.turned(o.trilu(x, k=0, upper=False), 1, 0),
      SQUARE)  # fmt: skip
wrong("the triangle beside the diagonal", lambda o, x: o.trilu(x, k=1, upper=True),
      lambda o, x: o.trilu(x, k=0, upper=True),
      SQUARE)  # fmt: skip
wrong("space to depth and back by the other mode",
      lambda o, x: o.depth_to_space(o.space_to_depth(x, block=2), block=2),
      lambda o, x: o.depth_to_space(o.space_to_depth(x, block=2), block=2, mode="CRD"), IMAGE)  # fmt: skip
wrong("one hot along the other axis",
      lambda o, x: o.mul(x, o.one_hot(o.constant(ints(0, 2, 2)), o.constant(np.int64(3)),
      o.constant(np.float32([0, 1])), axis=1)),
      lambda o, x: o.mul(x, o.one_hot(o.constant(ints(0, 2, 2)), o.constant(np.int64(3)),
      o.constant(np.float32([0, 1])), axis=0)),
      SQUARE)  # fmt: skip

# ---- sums over axes --------------------------------------------------------------------------------------------------

wrong("a mean over no axes", lambda o, x: o.add(x, o.reduce_mean(x, axes=(), keepdims=True)),
      lambda o, x: o.add(x, o.mean(x, 0, 1)), SQUARE)  # fmt: skip
wrong("axes that are not kept", lambda o, x: o.sub(x, o.sum(x, 1)),
      lambda o, x: o.sub(x, o.reduce_sum(x, axes=(1,), keepdims=False)), SQUARE)  # fmt: skip
wrong("a mean of means of unequal parts", lambda o, x: o.mean(x, 1),
      lambda o, x: o.mul(o.add(o.mean(o.cut(x, 0, 1, 1), 1), o.mean(o.cut(x, 1, 3, 1), 1)), 0.5),
      ROW)  # fmt: skip
wrong("a product of sums", lambda o, x: o.reduce_prod(x, axes=(1,), keepdims=True),
      lambda o, x: o.sum(x, 1), ROW)  # fmt: skip
wrong("a running sum without its own", lambda o, x: o.cumsum(x, axis=1),
      lambda o, x: o.cumsum(x, axis=1, exclusive=True), ROW)  # fmt: skip
wrong("a running sum from the end", lambda o, x: o.cumsum(x, axis=1),
      lambda o, x: o.cumsum(x, axis=1, reverse=True), ROW)  # fmt: skip
wrong("a trace for a sum", lambda o, x: o.einsum(x, x, equation="ij,ij->"),
      lambda o, x: o.einsum(x, x, equation="ij,ji->"), SQUARE)  # fmt: skip
wrong("a diagonal for a sum of rows", lambda o, x: o.einsum(x, equation="ii->i"),
      lambda o, x: o.einsum(x, equation="ij->i"), SQUARE)  # fmt: skip
wrong("an outer for an inner product", lambda o, x, y: o.einsum(x, y, equation="ij,jk->ik"),
      lambda o, x, y: o.einsum(x, y, equation="ij,kj->ik"), SQUARE, np.asarray(SQUARE) * 2 + 1)  # fmt: skip
wrong("softmax before a transpose", lambda o, x: o.turned(o.softmax(x, axis=1), 1, 0),
      lambda o, x: o.softmax(o.turned(x, 1, 0), axis=1), SQUARE)  # fmt: skip
wrong("softmax of a multiple", lambda o, x: o.softmax(o.mul(x, 2.0), axis=1),
      lambda o, x: o.softmax(x, axis=1), SQUARE)  # fmt: skip
wrong("a condition by columns", lambda o, x: o.where(o.less(o.cut(x, 0, 1, 1), 0.0), x, 0.0),
      lambda o, x: o.where(o.less(o.turned(o.cut(x, 0, 1, 1), 1, 0), 0.0), x, 0.0), [[-1.0, 2.0], [3.0,
      4.0]])  # fmt: skip

# ---- normalisation ---------------------------------------------------------------------------------------------------

wrong("epsilon outside of the root", lambda o, x: o.rms_norm(x, o.weight("g", 3), axis=-1, eps=0.25),
      lambda o, x: o.mul(o.div(x, o.add(o.sqrt(o.mean(o.mul(x, x), 1)), 0.25)), o.weight("g", 3)),
      ROW)  # fmt: skip
wrong("variance of the sample", lambda o, x: o.instance_norm(x, o.weight("g", 4), o.weight("h", 4), eps=0.5),
      lambda o, x: o.group_norm(o.mul(x, float(np.sqrt(1.0625))), o.weight("g", 4), o.weight("h", 4),
      groups=4, eps=0.5),
      IMAGE)  # fmt: skip
wrong("layer norm over one axis more",
      lambda o, x: o.layer_norm(x, o.weight("g", 4), o.weight("h", 4), axis=-1, eps=0.5),
      lambda o, x: o.layer_norm(x, o.weight("g", 4), o.weight("h", 4), axis=-2, eps=0.5), IMAGE)  # fmt: skip
wrong("scale and shift swapped",
      lambda o, x: o.batch_norm(x, *(o.weight(n, 4) for n in "shmv"), eps=0.5),
      lambda o, x: o.batch_norm(x, *(o.weight(n, 4) for n in "hsmv"), eps=0.5), IMAGE)  # fmt: skip

# ---- images ----------------------------------------------------------------------------------------------------------

PADS = (0, 0, 1, 1, 0, 0, 1, 1)
wrong("mirrored for repeated borders", lambda o, x: o.pad(x, pads=PADS, mode="reflect"),
      lambda o, x: o.pad(x, pads=PADS, mode="edge"), IMAGE)  # fmt: skip
wrong("padding in the other order", lambda o, x: o.pad(x, 0.0, pads=(0, 0, 1, 0, 0, 0, 0, 2)),
      lambda o, x: o.pad(x, 0.0, pads=(0, 0, 0, 2, 0, 0, 1, 0)), IMAGE)  # fmt: skip
POOL = {"kernel": (2, 2), "stride": (2, 2), "dilation": (1, 1)}
wrong("maxima over zeros", lambda o, x: o.max_pool(x, pads=(1, 1, 1, 1), **POOL),
      lambda o, x: o.max_pool(o.pad(x, 0.0, pads=PADS), pads=(0,) * 4, **POOL),
      -1.0 - np.abs(IMAGE))  # fmt: skip
wrong("averages that count the padding", lambda o, x: o.avg_pool(x, pads=(1, 1, 1, 1), **POOL),
      lambda o, x: o.avg_pool(x, pads=(1, 1, 1, 1), count_include_pad=True, **POOL), IMAGE)  # fmt: skip
SIZES = (2, 4, 8, 8)
wrong("nearest for linear", lambda o, x: o.resize(x, sizes=SIZES, mode="linear", coordinates="half_pixel"),
      lambda o, x: o.resize(x, sizes=SIZES, mode="nearest", coordinates="half_pixel", nearest="floor"),
      IMAGE)  # fmt: skip
wrong("pixels from their corners",
      lambda o, x: o.resize(x, sizes=SIZES, mode="linear", coordinates="half_pixel"),
      lambda o, x: o.resize(x, sizes=SIZES, mode="linear", coordinates="asymmetric"), IMAGE)  # fmt: skip
wrong("pixels rounded up",
      lambda o, x: o.resize(x, sizes=SIZES, mode="nearest", coordinates="asymmetric", nearest="floor"),
      lambda o, x: o.resize(x, sizes=SIZES, mode="nearest", coordinates="asymmetric", nearest="ceil"),
      IMAGE)  # fmt: skip
wrong("a dilated kernel", lambda o, x: o.convolved(x, o.weight("w", 2, 4, 2, 2), pad=0, dilation=(2, 1)),
      lambda o, x: o.cut(o.convolved(x, o.weight("w", 2, 4, 2, 2), pad=0), 0, 2, 2), IMAGE)  # fmt: skip

# ---- attention -------------------------------------------------------------------------------------------------------

HEADS = [np.sin(np.arange(2.0 * n * 4) + n).reshape(1, 2, n, 4) for n in (2, 3, 5)]
wrong("a mask on the other keys",
      lambda o, q, k: o.attention(q, k, k, o.constant(np.float32([[0, 0, -9.0]])), scale=0.5),
      lambda o, q, k: o.attention(q, k, k, o.constant(np.float32([[-9.0, 0, 0]])), scale=0.5),
      *HEADS[:2])  # fmt: skip
wrong("a mask of the other sign", lambda o, q, k, m: o.attention(q, k, k, m, scale=0.5),
      lambda o, q, k, m: o.attention(q, k, k, o.neg(m), scale=0.5), *HEADS[:2], [[0.0, 1.0,
      -2.0]])  # fmt: skip
wrong("a mask by queries", lambda o, q, m: o.attention(q, q, q, m, scale=0.5),
      lambda o, q, m: o.attention(q, q, q, o.turned(m, 1, 0), scale=0.5), HEADS[0], [[0.0, 1.0], [2.0,
      0.5]])  # fmt: skip
wrong("truth values that hide", lambda o, q, m: o.attention(q, q, q, m, scale=0.5),
      lambda o, q, m: o.attention(q, q, q, o.logical_not(m), scale=0.5), HEADS[0], np.asarray([[True,
      False]]))  # fmt: skip
wrong("a mask that is scaled", lambda o, q, m: o.attention(q, q, q, m, scale=0.5),
      lambda o, q, m: o.attention(o.mul(q, 0.5), q, q, o.mul(m, 0.5), scale=1.0), HEADS[0], [[0.0,
      1.0]])  # fmt: skip


def test_there_are_many_kinds():
    assert len(WRONG) >= 60


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_fault_of_one_op_is_not_proved(name: str):
    planted = WRONG[name]
    fragment = planted.fragment
    sides = [evaluated(fragment, side, planted.inputs) for side in (fragment.before, fragment.after)]
    assert differ(*sides) == "number", sides
    for seed in range(4):
        proof = prove(fragment, planted.inputs, seed=seed)
        assert not proof.holds and proof.reason, proof
        other = prove(fragment, [np.zeros_like(x) for x in planted.inputs], seed=seed)
        assert not other.holds or other.sampled, other
