"""Writers of what moves elements: shapes, axes, joining, slicing, filling, gathering."""

from __future__ import annotations

import torch

from graphopt.ir.fx.tensors import TORCH_DTYPES
from graphopt.ir.fx.write import Plan, Writing, writes
from graphopt.ir.graph import Dim

aten = torch.ops.aten


@writes("reshape")
def reshape(w: Writing) -> Plan:
    shape = w.field("shape")
    w.require(shape is not None, "a computed shape")
    return Plan(aten.reshape.default, (w.tensor("x"), list(shape)))


@writes("transpose")
def transpose(w: Writing) -> Plan:
    return Plan(aten.permute.default, (w.tensor("x"), list(w.field("perm"))))


@writes("expand")
def expand(w: Writing) -> Plan:
    shape, old = w.field("shape"), w.type("x").shape or ()
    w.require(shape is not None, "a computed shape")
    rank = max(len(shape), len(old))
    before: tuple[Dim, ...] = (*[1] * (rank - len(old)), *old)
    target = (*[1] * (rank - len(shape)), *shape)
    sizes = [-1 if after == 1 and i >= rank - len(old) else after for i, after in enumerate(target)]
    fits = all(a in (1, b) or b == 1 for a, b in zip(target, before, strict=True))
    w.require(fits, "the shapes do not broadcast")
    return Plan(aten.expand.default, (w.tensor("x"), sizes))


@writes("unsqueeze")
def unsqueeze(w: Writing) -> Plan:
    axes = w.field("axes")
    w.require(len(axes) == 1, "torch adds one axis at a time")
    return Plan(aten.unsqueeze.default, (w.tensor("x"), axes[0]))


@writes("squeeze")
def squeeze(w: Writing) -> Plan:
    axes, shape = w.field("axes"), w.type("x").shape or ()
    w.require(all(shape[a] == 1 for a in axes), "an axis that is not known to be of size 1")
    return Plan(aten.squeeze.dims, (w.tensor("x"), list(axes)))


@writes("concat")
def concat(w: Writing) -> Plan:
    w.one_dtype()
    return Plan(aten.cat.default, (w.all_tensors(), w.field("axis")))


@writes("split")
def split(w: Writing) -> Plan:
    return Plan(aten.split_with_sizes.default, (w.tensor("x"), list(w.field("sizes")), w.field("axis")))


@writes("slice")
def slice_(w: Writing) -> Plan:
    bounds = [w.field(n) for n in ("axes", "starts", "ends", "steps")]
    w.require(all(len(b) == 1 for b in bounds), "torch slices one axis at a time")
    axis, start, end, step = (b[0] for b in bounds)
    w.require(step > 0, "torch slices forwards only")
    return Plan(aten.slice.Tensor, (w.tensor("x"), axis, start, end, step))


@writes("pad")
def pad(w: Writing) -> Plan:
    rank, mode = w.rank("x"), w.field("mode")
    pads = w.numbers("pads", 2 * rank)
    pairs = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[rank + axis])]
    value = w.value("value")
    w.require(value is None or isinstance(value, (bool, int, float)), "torch pads with a number only")
    if mode == "constant":
        return Plan(aten.constant_pad_nd.default, (w.tensor("x"), pairs, 0 if value is None else value))
    w.require(value is None, "a padding value without constant mode")
    while len(pairs) > 2 and pairs[-2:] == [0, 0]:
        del pairs[-2:]
    n = len(pairs) // 2
    while n < rank - 2:  # torch wants one or two axes in front of the padded ones.
        n += 1
        pairs += [0, 0]
    w.require(n in (1, 2, 3) and n < rank and min(pairs) >= 0, f"torch cannot pad so in mode {mode}")
    name = {"reflect": "reflection", "edge": "replication"}[mode]
    return Plan(getattr(aten, f"{name}_pad{n}d").default, (w.tensor("x"), pairs))


@writes("tile")
def tile(w: Writing) -> Plan:
    return Plan(aten.repeat.default, (w.tensor("x"), list(w.field("repeats"))))


@writes("repeat_interleave")
def repeat_interleave(w: Writing) -> Plan:
    return Plan(aten.repeat_interleave.self_int, (w.tensor("x"), w.field("repeats"), w.field("axis")))


@writes("trilu")
def trilu(w: Writing) -> Plan:
    return Plan((aten.triu if w.field("upper") else aten.tril).default, (w.tensor("x"), w.field("k")))


@writes("fill")
def fill(w: Writing) -> Plan:
    shape, dtype = w.field("shape"), w.field("dtype")
    w.require(shape is not None, "a computed shape")
    w.require(dtype in TORCH_DTYPES, f"torch has no {dtype}")
    kwargs = {"dtype": TORCH_DTYPES[dtype], "device": torch.device("cpu"), "pin_memory": False}
    return Plan(aten.full.default, (list(shape), w.field("value")), kwargs)


@writes("range")
def range_(w: Writing) -> Plan:
    dtype = w.one_dtype()
    bounds = [w.value(n) for n in ("start", "stop", "step")]
    w.require(all(isinstance(b, (int, float)) for b in bounds), "computed bounds")
    w.require(all(b == int(b) for b in bounds), "a range of fractions")
    kwargs = {"dtype": TORCH_DTYPES[dtype], "device": torch.device("cpu"), "pin_memory": False}
    return Plan(aten.arange.start_step, tuple(bounds), kwargs)


@writes("gather")
def gather(w: Writing) -> Plan:
    x, indices, axis = w.tensor("x"), w.value("indices"), w.field("axis")
    if isinstance(indices, int):
        return Plan(aten.select.int, (x, axis, indices))
    w.require(w.type("indices").dtype in ("int32", "int64"), "indices that are no integers")
    return Plan(aten.index.Tensor, (x, [None] * axis + [indices]))


@writes("gather_elements")
def gather_elements(w: Writing) -> Plan:
    w.require(w.type("indices").dtype == "int64", "torch gathers with int64 indices")
    return Plan(aten.gather.default, (w.tensor("x"), w.field("axis"), w.tensor("indices")))


@writes("scatter_elements")
def scatter_elements(w: Writing) -> Plan:
    w.require(w.type("indices").dtype == "int64", "torch scatters with int64 indices")
    operands = (w.tensor("x"), w.field("axis"), w.tensor("indices"), w.tensor("updates"))
    reduction = w.field("reduction")
    if reduction is None:
        return Plan(aten.scatter.src, operands)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return Plan(aten.scatter_reduce.two, (*operands, names[reduction]))
