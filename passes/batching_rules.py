"""How each op of the vocabulary computes all rows at once: one rule per op.

A value that depends on the timestep gets a leading axis, one entry for every row of a schedule; all others stay as they
are. A rule writes the call that gives, at every place of that axis, what the op gives for that row (the batching of
`jax.vmap`, for one fixed axis).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, TypeAlias

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Dim, TensorType, Value
from graphopt.ir.ops import ELEMENTWISE, OPS
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef

ROWS = "rows"
"""The name of the leading size."""
Sizes: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """A value of the graph that is written."""

    value: Value
    dtype: str
    shape: Sizes
    """Of one row."""
    batched: bool
    """Whether it has the leading axis."""

    @property
    def rank(self) -> int:
        """Of one row."""
        return len(self.shape)


@dataclass(frozen=True)
class Site:
    """A call that reads at least one value that differs from row to row."""

    op: str
    operands: tuple[Operand | None, ...]
    fields: Mapping[str, Any]
    results: tuple[tuple[str, Sizes], ...]
    """(dtype, shape of one row) of every output."""

    def batched(self, index: int) -> Operand:
        """An operand that the rule needs to be different from row to row."""
        operand = self.operands[index]
        if operand is None or not operand.batched:
            raise UnsupportedError(f"{self.op} whose {self._label(index)} does not depend on the timestep")
        return operand

    def others_shared(self, first: int = 1) -> tuple[Operand | None, ...]:
        """The operands from `first` on, which have to be the same for all rows."""
        for index, operand in enumerate(self.operands):
            if index >= first and operand is not None and operand.batched:
                raise UnsupportedError(f"{self.op} whose {self._label(index)} depends on the timestep")
        return self.operands[first:]

    def _label(self, index: int) -> str:
        names = OPS[self.op].operands
        return names[min(index, len(names) - 1)]


class RowsWriter:
    """Writes calls whose results have the leading axis."""

    def __init__(self, scratch: ScratchGraph) -> None:
        self._scratch = scratch
        self._count: Value | None = None
        self._timestep: Operand | None = None

    def counts(self, timestep: Operand) -> None:
        """Tell which value is certain to have the leading axis."""
        self._timestep = timestep

    def call(
        self,
        op: str,
        operands: Sequence[Operand | None],
        results: Sequence[tuple[str, Sizes]],
        fields: Mapping[str, Any],
        lead: Sequence[Dim] = (ROWS,),
    ) -> list[Operand]:
        """One call; its results have the axes `lead` in front of what `results` says."""
        types = [TensorType(dtype, (*lead, *shape)) for dtype, shape in results]
        values = [None if o is None else o.value for o in operands]
        node = self._scratch.append_call(op, values, fields, types)
        outputs = zip(node.call.outputs, results, strict=True)
        return [Operand(value, dtype, shape, bool(lead)) for value, (dtype, shape) in outputs]

    def like(self, site: Site, operands: Sequence[Operand | None], **changed: Any) -> list[Operand]:
        """The call of `site` with other operands and with some fields changed."""
        return self.call(site.op, operands, site.results, {**site.fields, **changed})

    def constant(self, values: Sequence[int]) -> Operand:
        """An int64 vector that is the same for all rows."""
        data = ArrayRef(np.asarray(values, np.int64))
        return Operand(self._scratch.add_constant(data, "sizes")[0], "int64", data.shape, False)

    def shaped(self, x: Operand, shape: Sizes) -> Operand:
        """Every row of `x` in another shape."""
        if x.shape == shape:
            return x
        if 0 in shape:
            raise UnsupportedError(f"a reshape to {list(shape)}, which holds nothing")
        return self.call("reshape", [x], [(x.dtype, shape)], {"shape": (-1, *shape)})[0]

    def aligned(self, x: Operand, rank: int) -> Operand:
        """`x` with ones in front of a row's own axes, as broadcasting against `rank` axes takes them."""
        missing = rank - x.rank
        if missing <= 0 or not x.batched:
            return x
        axes = tuple(range(1, 1 + missing))
        return self.call("unsqueeze", [x], [(x.dtype, (1,) * missing + x.shape)], {"axes": axes})[0]

    def repeated(self, x: Operand) -> Operand:
        """`x` with the leading axis, whether it differs from row to row or not."""
        if x.batched:
            return x
        count = Operand(self._rows(), "int64", (1,), False)
        sizes = [count, self.constant(x.shape)] if x.rank else [count]
        target = self.call("concat", sizes, [("int64", (1 + x.rank,))], {"axis": 0}, ())[0] if x.rank else count
        return self.call("expand", [x, target], [(x.dtype, x.shape)], {})[0]

    def _rows(self) -> Value:
        """The number of rows, int64[1]."""
        if self._count is None:
            t = self._timestep
            assert t is not None
            found = self.call("shape", [t], [("int64", (1 + t.rank,))], {}, ())
            if t.rank:
                first = {"starts": (0,), "ends": (1,), "axes": (0,), "steps": (1,)}
                found = self.call("slice", found, [("int64", (1,))], first, ())
            self._count = found[0].value
        return self._count

    def folded(self, x: Operand, leading: int) -> Operand:
        """`x` with its `leading` first axes and the rows as one axis; `unfolded` takes that apart again."""
        if leading == 0:
            return x
        if 0 in x.shape:
            raise UnsupportedError(f"a value of shape {list(x.shape)}, which holds nothing")
        kept = x.shape[leading:]
        lead = (_multiple(math.prod(x.shape[:leading])),)
        return self.call("reshape", [x], [(x.dtype, kept)], {"shape": (-1, *kept)}, lead)[0]

    def on_folded(self, site: Site, operands: Sequence[Operand | None], leading: int) -> list[Operand]:
        """The op on operands that are folded; its results keep the `leading` axes."""
        lead = (_multiple(math.prod(site.results[0][1][:leading])),)
        kept = [(dtype, shape[leading:]) for dtype, shape in site.results]
        outputs = self.call(site.op, operands, kept, site.fields, lead)
        if leading == 0:
            return outputs
        return [
            self.call("reshape", [o], [(dtype, shape)], {"shape": (-1, *shape)})[0]
            for o, (dtype, shape) in zip(outputs, site.results, strict=True)
        ]


def _multiple(count: int) -> str:
    return ROWS if count == 1 else f"{count}*{ROWS}"


Rule: TypeAlias = Callable[[RowsWriter, Site], list[Operand]]


def _pointwise(write: RowsWriter, site: Site) -> list[Operand]:
    rank = len(site.results[0][1])
    return write.like(site, [None if o is None else write.aligned(o, rank) for o in site.operands])


def _clamp(write: RowsWriter, site: Site) -> list[Operand]:
    return write.like(site, [site.batched(0), *site.others_shared()])


def _prelu(write: RowsWriter, site: Site) -> list[Operand]:
    """The slope is broadcast to x, never the other way round."""
    x, slope = site.operands
    assert x is not None and slope is not None
    return write.like(site, [write.repeated(x), write.aligned(slope, x.rank)])


def _axes_after(name: str) -> Rule:
    """Axes counted from the front are one further to the back."""

    def rule(write: RowsWriter, site: Site) -> list[Operand]:
        given = site.fields[name]
        moved = given + 1 if isinstance(given, int) else tuple(a + 1 for a in given)
        return write.like(site, [site.batched(0), *site.others_shared()], **{name: moved})

    return rule


def _normalised_last(write: RowsWriter, site: Site) -> list[Operand]:
    """Axes counted from the back stay what they are."""
    return write.like(site, [site.batched(0), *site.others_shared()])


def _all_repeated(write: RowsWriter, site: Site) -> list[Operand]:
    operands = [write.repeated(o) for o in site.operands if o is not None]
    return write.like(site, operands, axis=site.fields["axis"] + 1)


def _reshape(write: RowsWriter, site: Site) -> list[Operand]:
    return [write.shaped(site.batched(0), site.results[0][1])]


def _expand(write: RowsWriter, site: Site) -> list[Operand]:
    shape = site.results[0][1]
    x = write.aligned(site.batched(0), len(shape))
    return write.call("expand", [x], site.results, {"shape": (1, *shape)})


def _transpose(write: RowsWriter, site: Site) -> list[Operand]:
    return write.like(site, [site.batched(0)], perm=(0, *(p + 1 for p in site.fields["perm"])))


def _pad(write: RowsWriter, site: Site) -> list[Operand]:
    pads, half = site.fields["pads"], len(site.fields["pads"]) // 2
    moved = (0, *pads[:half], 0, *pads[half:])
    return write.like(site, [site.batched(0), *site.others_shared()], pads=moved)


def _tile(write: RowsWriter, site: Site) -> list[Operand]:
    return write.like(site, [site.batched(0)], repeats=(1, *site.fields["repeats"]))


def _trilu(write: RowsWriter, site: Site) -> list[Operand]:
    return write.like(site, [site.batched(0)])


def _shape(write: RowsWriter, site: Site) -> list[Operand]:
    """The shape of a row, which no timestep changes."""
    return [write.constant(site.batched(0).shape[site.fields["start"] : site.fields["end"]])]


def _gather(write: RowsWriter, site: Site) -> list[Operand]:
    x, indices = site.operands
    axis = site.fields["axis"]
    assert x is not None and indices is not None
    if not indices.batched:
        return write.like(site, [x, indices], axis=axis + 1)
    if x.batched:
        raise UnsupportedError("gather whose x and indices both depend on the timestep")
    if axis:
        order = (axis, *(i for i in range(x.rank) if i != axis))
        moved = (x.dtype, tuple(x.shape[i] for i in order))
        x = write.call("transpose", [x], [moved], {"perm": order}, ())[0]
        dtype, shape = site.results[0]
        front = (dtype, (*indices.shape, *x.shape[1:]))
        found = write.call("gather", [x, indices], [front], {"axis": 0})[0]
        count = indices.rank
        back = (0, *range(1 + count, 1 + count + axis), *range(1, 1 + count), *range(1 + count + axis, 1 + len(shape)))
        return write.call("transpose", [found], site.results, {"perm": back})
    return write.like(site, [x, indices])


def _folded(write: RowsWriter, site: Site) -> list[Operand]:
    """The op takes a batch in its first axis."""
    if site.fields.get("training"):
        raise UnsupportedError(f"{site.op} in training mode, whose statistics are over the batch")
    return write.on_folded(site, [write.folded(site.batched(0), 1), *site.others_shared()], 1)


def _linear(write: RowsWriter, site: Site) -> list[Operand]:
    x = site.batched(0)
    return write.on_folded(site, [write.folded(x, x.rank - 1), *site.others_shared()], x.rank - 1)


def _matmul(write: RowsWriter, site: Site) -> list[Operand]:
    """An operand of one axis is a row or a column; it becomes a matrix, because numpy takes no batch of vectors."""
    a, b = site.operands
    assert a is not None and b is not None
    dtype, shape = site.results[0]
    if a.batched and a.rank == 1:
        columns = shape[-1:] if b.rank > 1 else ()
        a, shape = write.shaped(a, (1, *a.shape)), (*shape[: len(shape) - len(columns)], 1, *columns)
    if b.batched and b.rank == 1:
        b, shape = write.shaped(b, (*b.shape, 1)), (*shape, 1)
    rank = max(a.rank, b.rank, 2)
    product = write.call("matmul", [write.aligned(a, rank), write.aligned(b, rank)], [(dtype, shape)], {})[0]
    return [write.shaped(product, site.results[0][1])]


def _einsum(write: RowsWriter, site: Site) -> list[Operand]:
    """Another index, in every term that differs from row to row and in the result."""
    equation = str(site.fields["equation"]).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        raise UnsupportedError(f"einsum {equation!r}, whose result is not spelled out")
    index = next((letter for letter in ascii_lowercase if letter not in equation), None)
    if index is None:
        raise UnsupportedError(f"einsum {equation!r}, which has no letter left")
    operands = [o for o in site.operands if o is not None]
    spelled = [index + t if o.batched else t for t, o in zip(terms.split(","), operands, strict=True)]
    return write.like(site, operands, equation=f"{','.join(spelled)}->{index}{result}")


def _attention(write: RowsWriter, site: Site) -> list[Operand]:
    q, k, v, mask = site.operands
    folded = [write.folded(write.repeated(o), 1) for o in (q, k, v) if o is not None]
    if mask is None:
        return write.on_folded(site, [*folded, None], 1)
    if not mask.batched and (mask.rank < 4 or mask.shape[0] == 1):
        return write.on_folded(site, [*folded, mask], 1)
    full = write.aligned(write.repeated(mask), 4)
    assert q is not None
    whole = (q.shape[0], *full.shape[1:])
    if whole != full.shape:
        full = write.call("expand", [full], [(full.dtype, whole)], {"shape": (1, *whole)})[0]
    return write.on_folded(site, [*folded, write.folded(full, 1)], 1)


_SHIFTED_AXIS = ("softmax", "log_softmax", "arg_max", "arg_min", "cumsum", "topk", "split")
_SHIFTED_AXES = ("unsqueeze", "squeeze", "slice")
_BATCH_FIRST = (
    "conv", "fused_conv", "conv_transpose", "max_pool", "avg_pool", "depth_to_space", "space_to_depth", "batch_norm",
    "instance_norm", "group_norm",
)  # fmt: skip


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict.fromkeys(ELEMENTWISE, _pointwise)
    rules |= dict.fromkeys(_SHIFTED_AXIS, _axes_after("axis"))
    rules |= dict.fromkeys((*_SHIFTED_AXES, *(n for n in OPS if n.startswith("reduce_"))), _axes_after("axes"))
    rules |= dict.fromkeys(("layer_norm", "rms_norm"), _normalised_last)
    rules |= dict.fromkeys(_BATCH_FIRST, _folded)
    return rules | {
        "clamp": _clamp,
        "prelu": _prelu,
        "concat": _all_repeated,
        "gather": _gather,
        "gather_elements": _all_repeated,
        "reshape": _reshape,
        "expand": _expand,
        "transpose": _transpose,
        "pad": _pad,
        "tile": _tile,
        "trilu": _trilu,
        "shape": _shape,
        "linear": _linear,
        "matmul": _matmul,
        "einsum": _einsum,
        "attention": _attention,
    }


RULES: dict[str, Rule] = _rules()
"""By op. What has no rule (`range`, `scatter_nd`, ...) is not batched."""
