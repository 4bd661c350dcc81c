"""Readers of convolution, pooling and resizing."""

from __future__ import annotations

from typing import Any

from graphopt.ir.fx.read import KEYS, Reading, Said, reads
from graphopt.ir.fx.schema import find_operator
from graphopt.ir.graph import Node


def _conv_operands(r: Reading) -> tuple[tuple[Any, ...], int]:
    """(x, w, b) and the number of spatial axes."""
    operands = (r["input"], r["weight"], r["bias"])
    r.keeps_dtype(*operands)
    spatial = r.rank(r["weight"]) - 2
    r.require(r.rank(r["input"]) == spatial + 2, "the input has no batch axis")
    r.require(spatial in (1, 2, 3), f"{spatial} spatial axes")
    return operands, spatial


def _conv_fields(r: Reading, spatial: int, pads: tuple[int, ...]) -> dict[str, Any]:
    return {
        "stride": r.numbers("stride", spatial),
        "pads": pads,
        "dilation": r.numbers("dilation", spatial),
        "groups": r.number("groups"),
    }


@reads("conv", "conv1d.default", "conv2d.default", "conv3d.default")
def conv(r: Reading) -> Said:
    operands, spatial = _conv_operands(r)
    return Said(operands, _conv_fields(r, spatial, r.numbers("padding", spatial) * 2))


@reads("conv", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv_named_padding(r: Reading) -> Said:
    operands, spatial = _conv_operands(r)
    pads = (0,) * (2 * spatial)
    if r["padding"] == "same":
        dilation = r.numbers("dilation", spatial)
        total = [d * (r.size(r["weight"], i + 2) - 1) for i, d in enumerate(dilation)]
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    return Said(operands, _conv_fields(r, spatial, pads))


@reads("conv_transpose", "conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(r: Reading) -> Said:
    operands, spatial = _conv_operands(r)
    fields = _conv_fields(r, spatial, r.numbers("padding", spatial) * 2)
    return Said(operands, fields | {"output_padding": r.numbers("output_padding", spatial)})


@reads("conv", "convolution.default")
def convolution(r: Reading) -> Said:
    return conv_transpose(r) if r["transposed"] else conv(r)


def _convolution_key(node: Node) -> str:
    transposed = node.args[6] if len(node.args) > 6 else node.kwargs.get("transposed")
    return "conv_transpose" if transposed else "conv"


KEYS[find_operator("aten.convolution.default")] = _convolution_key


def _pool_fields(r: Reading, spatial: int) -> dict[str, Any]:
    r.keeps_dtype(r["self"])
    r.require(r.rank(r["self"]) == spatial + 2, "the input has no batch axis")
    kernel = r.numbers("kernel_size", spatial)
    return {
        "kernel": kernel,
        "stride": r.numbers("stride", spatial) if r["stride"] else kernel,
        "pads": r.numbers("padding", spatial) * 2,
        "ceil": bool(r["ceil_mode"]),
    }


def _spatial_axes(r: Reading) -> int:
    """The number that the operator's name carries ("max_pool2d")."""
    name = r.node.target._schema.name
    return next(n for n in (1, 2, 3) if f"pool{n}d" in name)


@reads(
    "max_pool", "max_pool1d.default", "max_pool2d.default", "max_pool3d.default",
    "max_pool1d_with_indices.default", "max_pool2d_with_indices.default", "max_pool3d_with_indices.default",
)  # fmt: skip
def max_pool(r: Reading) -> Said:
    spatial = _spatial_axes(r)
    return Said((r["self"],), _pool_fields(r, spatial) | {"dilation": r.numbers("dilation", spatial)})


@reads("avg_pool", "avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def avg_pool(r: Reading) -> Said:
    r.require(r.args.get("divisor_override") is None, "divisor_override")
    spatial = _spatial_axes(r)
    fields = _pool_fields(r, spatial)
    fields |= {"dilation": (1,) * spatial, "count_include_pad": bool(r["count_include_pad"])}
    return Said((r["self"],), fields)


def _resize(r: Reading, mode: str, coordinates: str, nearest: str | None = None) -> Said:
    x = r.node.args[0]
    r.keeps_dtype(x)
    fields: dict[str, Any] = {"mode": mode, "coordinates": coordinates, "nearest": nearest}
    factors = _scale_factors(r)
    if factors is not None and r["output_size"] is None:
        return Said((x,), fields | {"sizes": None, "scales": (1.0, 1.0, *factors)})
    r.require(factors is None, "both sizes and scales")
    sizes = r.result().shape
    r.require(sizes is not None and all(isinstance(s, int) for s in sizes), "dynamic size")
    return Said((x,), fields | {"sizes": sizes, "scales": None})


def _scale_factors(r: Reading) -> tuple[float, ...] | None:
    names = [n for n in ("scale_factors", "scales", "scales_d", "scales_h", "scales_w") if n in r.args]
    given = [v for n in names for v in (r[n] if isinstance(r[n], (list, tuple)) else [r[n]]) if v is not None]
    return tuple(float(v) for v in given) or None


@reads("resize", *(f"upsample_nearest{n}d.{o}" for n in (1, 2, 3) for o in ("vec", "default")))
def upsample_nearest(r: Reading) -> Said:
    return _resize(r, "nearest", "asymmetric", "floor")


@reads("resize", *(f"_upsample_nearest_exact{n}d.{o}" for n in (1, 2, 3) for o in ("vec", "default")))
def upsample_nearest_exact(r: Reading) -> Said:
    return _resize(r, "nearest", "half_pixel", "round_prefer_ceil")


@reads(
    "resize", "upsample_linear1d.vec", "upsample_bilinear2d.vec", "upsample_trilinear3d.vec",
    "upsample_linear1d.default", "upsample_bilinear2d.default", "upsample_trilinear3d.default",
)  # fmt: skip
def upsample_linear(r: Reading) -> Said:
    return _resize(r, "linear", "align_corners" if r["align_corners"] else "half_pixel")


@reads("resize", "upsample_bicubic2d.vec", "upsample_bicubic2d.default")
def upsample_cubic(r: Reading) -> Said:
    return _resize(r, "cubic", "align_corners" if r["align_corners"] else "half_pixel")


@reads("depth_to_space", "pixel_shuffle.default")
def pixel_shuffle(r: Reading) -> Said:
    r.require(r.rank(r["self"]) == 4, "not four axes")
    return Said((r["self"],), {"block": r.number("upscale_factor"), "mode": "CRD"})
