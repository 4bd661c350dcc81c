"""Writers of convolution, pooling and resizing."""

from __future__ import annotations

from typing import Any

import torch

from graphopt.ir.fx.write import Plan, Writing, writes

aten = torch.ops.aten


def _spatial(w: Writing) -> int:
    spatial = w.rank("x") - 2
    w.require(spatial in (1, 2, 3), f"{spatial} spatial axes")
    return spatial


@writes("conv")
def conv(w: Writing) -> Plan:
    w.one_dtype()
    n = _spatial(w)
    operands = (w.tensor("x"), w.tensor("w"), w.optional("b"))
    window = (w.numbers("stride", n), w.symmetric_pads(n), w.numbers("dilation", n))
    return Plan(getattr(aten, f"conv{n}d").default, (*operands, *window, w.field("groups")))


@writes("conv_transpose")
def conv_transpose(w: Writing) -> Plan:
    w.one_dtype()
    n = _spatial(w)
    operands = (w.tensor("x"), w.tensor("w"), w.optional("b"))
    extra = (w.numbers("output_padding", n), w.field("groups"), w.numbers("dilation", n))
    target = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[n - 1]
    return Plan(target, (*operands, w.numbers("stride", n), w.symmetric_pads(n), *extra))


@writes("max_pool")
def max_pool(w: Writing) -> Plan:
    n = _spatial(w)
    window = (w.numbers("kernel", n), w.numbers("stride", n), w.symmetric_pads(n), w.numbers("dilation", n))
    return Plan(getattr(aten, f"max_pool{n}d").default, (w.tensor("x"), *window, w.field("ceil")))


@writes("avg_pool")
def avg_pool(w: Writing) -> Plan:
    n = _spatial(w)
    w.require(set(w.numbers("dilation", n)) == {1}, "dilated averages")
    window = (w.numbers("kernel", n), w.numbers("stride", n), w.symmetric_pads(n))
    args = (w.tensor("x"), *window, w.field("ceil"), w.field("count_include_pad"))
    return Plan(getattr(aten, f"avg_pool{n}d").default, args)


_RESIZE = {
    ("nearest", "asymmetric", "floor"): ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
    ("nearest", "half_pixel", "round_prefer_ceil"): (
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    ),
    ("linear", "half_pixel", None): ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    ("linear", "align_corners", None): ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    ("cubic", "half_pixel", None): ("", "upsample_bicubic2d", ""),
    ("cubic", "align_corners", None): ("", "upsample_bicubic2d", ""),
}  # fmt: skip


@writes("resize")
def resize(w: Writing) -> Plan:
    n = _spatial(w)
    how = (w.field("mode"), w.field("coordinates"), w.field("nearest"))
    name = _RESIZE.get(how, ("", "", ""))[n - 1]
    w.require(bool(name), f"torch has no resize of {how} over {n} axes")
    sizes, scales = _spatial_part(w, w.field("sizes"), n), _spatial_part(w, w.field("scales"), n)
    corners = () if how[0] == "nearest" else (how[1] == "align_corners",)
    return Plan(getattr(aten, name).vec, (w.tensor("x"), sizes, *corners, scales))


def _spatial_part(w: Writing, values: Any, spatial: int) -> list[Any] | None:
    """The values for the spatial axes; those for the others must change nothing."""
    if values is None:
        return None
    x = w.type("x").shape or ()
    kept = (1.0, 1.0) if any(isinstance(v, float) for v in values) else x[:2]
    w.require(tuple(values[:2]) == tuple(kept), "resizes batch or channels")
    w.require(len(values) == spatial + 2, "values do not match the rank")
    return list(values[2:])


@writes("depth_to_space")
def depth_to_space(w: Writing) -> Plan:
    w.require(w.field("mode") == "CRD", "torch has the mode CRD only")
    return Plan(aten.pixel_shuffle.default, (w.tensor("x"), w.field("block")))
