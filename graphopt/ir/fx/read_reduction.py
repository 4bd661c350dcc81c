"""Readers of reductions, running sums and selections."""

from __future__ import annotations

from graphopt.ir.fx.read import Reading, Said, reads


@reads("reduce_mean", "mean.dim", "mean.default")
@reads("reduce_sum", "sum.dim_IntList", "sum.default")
@reads("reduce_max", "amax.default", "max.default")
@reads("reduce_min", "amin.default", "min.default")
@reads("reduce_prod", "prod.dim_int", "prod.default")
def reduction(r: Reading) -> Said:
    return _reduce(r)


@reads("reduce_max", "max.dim")
@reads("reduce_min", "min.dim")
def extreme(r: Reading) -> Said:
    return _reduce(r)


def _reduce(r: Reading) -> Said:
    x = r["self"]
    dtype = r.keeps_dtype(x)
    r.require(dtype != "bool", "reduction of truth values")
    rank = r.rank(x)
    r.require(rank > 0, "reduction of a scalar")
    axes = r.axes("dim", rank) if "dim" in r.args else tuple(range(rank))
    return Said((x,), {"axes": axes, "keepdims": bool(r.args.get("keepdim", False))})


@reads(
    "reduce_mean",
    "adaptive_avg_pool1d.default",
    "adaptive_avg_pool2d.default",
    "adaptive_avg_pool3d.default",
    "_adaptive_avg_pool2d.default",
    "_adaptive_avg_pool3d.default",
)
def global_average(r: Reading) -> Said:
    x, sizes = r["self"], r.numbers("output_size")
    r.keeps_dtype(x)
    r.require(set(sizes) == {1}, "adaptive pooling to more than one element")
    rank = r.rank(x)
    return Said((x,), {"axes": tuple(range(rank - len(sizes), rank)), "keepdims": True})


@reads("reduce_l2", "linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar")
def norm(r: Reading) -> Said:
    order = r["ord"] if "ord" in r.args else r["p"]
    r.require(order is None or order == 2, f"norm of order {order}")
    return _reduce(r)


@reads("arg_max", "argmax.default")
@reads("arg_min", "argmin.default")
def arg_extreme(r: Reading) -> Said:
    rank = r.rank(r["self"])
    r.require(r["dim"] is not None or rank == 1, "index into the flattened tensor")
    axis = 0 if r["dim"] is None else r.axis("dim", rank)
    r.require(r["dim"] is not None or not r["keepdim"], "keepdim without an axis")
    return Said((r["self"],), {"axis": axis, "keepdims": bool(r["keepdim"])})


@reads("cumsum", "cumsum.default")
def cumsum(r: Reading) -> Said:
    x, result = r["self"], r.result().dtype
    axis = r.axis("dim", r.rank(x))
    dtype = None if r.type(x).dtype == result else result
    return Said((x,), {"axis": axis, "exclusive": False, "reverse": False, "dtype": dtype})


@reads("topk", "topk.default")
def topk(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    r.require(bool(r["sorted"]), "unsorted")
    fields = {"k": r.number("k"), "axis": r.axis("dim", r.rank(r["self"])), "largest": bool(r["largest"])}
    return Said((r["self"],), fields, outputs=2)


@reads("sort", "sort.default", "sort.stable")
def sort(r: Reading) -> Said:
    x = r["self"]
    r.require(r.rank(x) > 0, "sorting of a scalar")
    fields = {"axis": r.axis("dim", r.rank(x)), "descending": bool(r["descending"])}
    return Said((x,), fields, outputs=2)


@reads("histogram", "histc.default")
def histogram(r: Reading) -> Said:
    low, high, bins = float(r.number("min")), float(r.number("max")), r.number("bins")
    of_data = low == high == 0  # what a single expert makes of 0 and E - 1; all elements are in the one interval then
    r.require(low < high or (of_data and bins == 1), "a histogram over the range of the data")
    r.keeps_dtype(r["self"])
    return Said((r["self"],), {"bins": bins, "low": None if of_data else low, "high": None if of_data else high})
