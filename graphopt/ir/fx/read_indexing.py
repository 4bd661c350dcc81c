"""Readers of gathering and scattering."""

from __future__ import annotations

from graphopt.ir.fx.read import Reading, Said, reads
from graphopt.ir.graph import Literal, Value

_INTEGERS = ("int32", "int64")
_REDUCTIONS = {
    None: None,
    "add": "add",
    "sum": "add",
    "multiply": "mul",
    "prod": "mul",
    "amax": "max",
    "amin": "min",
}


def _indices(r: Reading, value: Value) -> Value:
    r.require(r.type(value).dtype in _INTEGERS, "indexing by a mask")
    return value


@reads("gather", "embedding.default")
def embedding(r: Reading) -> Said:
    return Said((r["weight"], _indices(r, r["indices"])), {"axis": 0})


@reads("gather", "index_select.default")
def index_select(r: Reading) -> Said:
    x = r["self"]
    r.require(r.rank(x) > 0 and r.rank(r["index"]) == 1, "a scalar")
    return Said((x, _indices(r, r["index"])), {"axis": r.axis("dim", r.rank(x))})


@reads("gather", "select.int")
def select(r: Reading) -> Said:
    axis = r.axis("dim", r.rank(r["self"]))
    return Said((r["self"], Literal(int(r.number("index")), "int64")), {"axis": axis})


@reads("gather", "index.Tensor")
def index(r: Reading) -> Said:
    given = [(axis, value) for axis, value in enumerate(r["indices"]) if value is not None]
    r.require(len(given) == 1, "indexing by several tensors")
    axis, value = given[0]
    return Said((r["self"], _indices(r, value)), {"axis": axis})


@reads("gather_elements", "gather.default")
def gather_elements(r: Reading) -> Said:
    x, axis = r["self"], r.axis("dim", r.rank(r["self"]))
    _same_but_for(r, x, r["index"], axis)
    return Said((x, r["index"]), {"axis": axis})


@reads("scatter_elements", "scatter.src", "scatter_add.default", "scatter.reduce", "scatter_reduce.two")
def scatter_elements(r: Reading) -> Said:
    x, axis = r["self"], r.axis("dim", r.rank(r["self"]))
    r.keeps_dtype(x, r["src"])
    r.require(r.dims(r["src"]) == r.dims(r["index"]), "more updates than indices")
    _same_but_for(r, x, r["index"], axis)
    r.require(bool(r.args.get("include_self", True)), "the reduction leaves out the tensor itself")
    reduction = "sum" if "scatter_add" in str(r.node.target) else r.args.get("reduce")
    r.require(reduction in _REDUCTIONS, f"reduction {reduction}")
    return Said((x, r["index"], r["src"]), {"axis": axis, "reduction": _REDUCTIONS[reduction]})


def _same_but_for(r: Reading, x: Value, indices: Value, axis: int) -> None:
    """torch lets `indices` be smaller than `x` along the other axes, the vocabulary does not."""
    a, b = list(r.dims(x)), list(r.dims(indices))
    r.require(len(a) == len(b) > 0, "a scalar")
    del a[axis], b[axis]
    r.require(a == b, "indices of part of the tensor")
