"""Readers of convolution, pooling and resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.ir.graph import Value
from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said
from graphopt.ir.onnx.write_convolution import FUSED_ACTIVATIONS


def _tuple(n: Reading, name: str, length: int, default: int) -> tuple[int, ...]:
    value = n.attr_ints(name)
    if value is None:
        return (default,) * length
    if len(value) != length:
        raise CannotRead(f"attribute {name} has {len(value)} elements for {length} spatial axes")
    return value


def _kernel(n: Reading, weight: Value) -> tuple[int, ...]:
    """Spatial size of the kernel: the attribute, which has to agree with the weight where both are known."""
    given = n.attr_ints("kernel_shape")
    known = n.type(weight)
    if known is None or known.shape is None:
        if given is None:
            raise CannotRead("the rank of the weight is not known")
        return given
    sizes = known.shape[2:]
    if given is None:
        if not all(isinstance(s, int) for s in sizes):
            raise CannotRead("the kernel size is not known")
        return tuple(s for s in sizes if isinstance(s, int))
    if len(sizes) != len(given) or any(
        isinstance(s, int) and s != g for s, g in zip(sizes, given, strict=True)
    ):
        raise CannotRead("kernel_shape contradicts the weight")
    return given


def _pads(
    n: Reading, x: Value, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Explicit pads (begin..., end...), computed where auto_pad asks for it."""
    auto, rank = n.attr_string("auto_pad", "NOTSET"), len(kernel)
    if auto == "NOTSET":
        pads = n.attr_ints("pads")
        if pads is not None and len(pads) != 2 * rank:
            raise CannotRead(f"pads has {len(pads)} elements for {rank} spatial axes")
        return (0,) * (2 * rank) if pads is None else pads
    n.ignore("pads")
    if auto == "VALID":
        return (0,) * (2 * rank)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise CannotRead(f"auto_pad is {auto!r}")
    totals = [_same(n, x, i, kernel[i], stride[i], dilation[i]) for i in range(rank)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (*small, *large) if auto == "SAME_UPPER" else (*large, *small)


def _same(n: Reading, x: Value, axis: int, kernel: int, stride: int, dilation: int) -> int:
    reach = (kernel - 1) * dilation + 1
    if stride == 1:
        return reach - 1
    size = n.shape(x)[2 + axis]
    if not isinstance(size, int):
        raise CannotRead("auto_pad with stride needs the spatial size")
    return max((-(-size // stride) - 1) * stride + reach - size, 0)


def conv(n: Reading) -> Said:
    x, w, b = n.operand(0), n.operand(1), n.optional(2)
    kernel = _kernel(n, w)
    stride, dilation = _tuple(n, "strides", len(kernel), 1), _tuple(n, "dilations", len(kernel), 1)
    pads = _pads(n, x, kernel, stride, dilation)
    return (x, w, b), {"stride": stride, "pads": pads, "dilation": dilation, "groups": n.attr_int("group", 1)}


def fused_conv(n: Reading) -> Said:
    """onnxruntime's FusedConv without the sum that it can add before the activation."""
    if n.has(3):
        raise CannotRead("FusedConv with a fourth operand")
    operands, fields = conv(n)
    given = n.attr_string("activation", "")
    activation = next((ours for ours, theirs in FUSED_ACTIVATIONS.items() if theirs == given), None)
    if activation is None:
        raise CannotRead(f"activation {given!r}")
    return operands, {
        **fields,
        "activation": activation,
        "parameters": n.attr_floats("activation_params") or (),
    }


def conv_transpose(n: Reading) -> Said:
    x, w, b = n.operand(0), n.operand(1), n.optional(2)
    kernel = _kernel(n, w)
    n.only("auto_pad", "NOTSET", "VALID")
    pads = _pads(n, x, kernel, kernel, kernel)
    return (x, w, b), {
        "stride": _tuple(n, "strides", len(kernel), 1),
        "pads": pads,
        "dilation": _tuple(n, "dilations", len(kernel), 1),
        "output_padding": _tuple(n, "output_padding", len(kernel), 0),
        "groups": n.attr_int("group", 1),
    }


def _pool(n: Reading) -> tuple[Value, dict[str, object]]:
    x, kernel = n.operand(0), n.attr_ints("kernel_shape")
    if kernel is None:
        raise CannotRead("attribute kernel_shape is missing")
    stride, dilation = _tuple(n, "strides", len(kernel), 1), _tuple(n, "dilations", len(kernel), 1)
    pads = _pads(n, x, kernel, stride, dilation)
    ceil = n.attr_flag("ceil_mode")
    if ceil and n.attr_string("auto_pad", "NOTSET") != "NOTSET":
        raise CannotRead("ceil_mode together with auto_pad")
    return x, {"kernel": kernel, "stride": stride, "pads": pads, "dilation": dilation, "ceil": ceil}


def max_pool(n: Reading) -> Said:
    x, fields = _pool(n)
    n.ignore("storage_order")
    return (x,), fields


def avg_pool(n: Reading) -> Said:
    x, fields = _pool(n)
    return (x,), fields | {"count_include_pad": n.attr_flag("count_include_pad")}


def global_pool(n: Reading) -> Said:
    x = n.operand(0)
    rank = n.rank(x)
    if rank < 3:
        raise CannotRead("no spatial axis")
    return (x,), {"axes": tuple(range(2, rank)), "keepdims": True}


def depth_to_space(n: Reading) -> Said:
    return (n.operand(0),), {"block": n.attr_int("blocksize"), "mode": n.attr_string("mode", "DCR")}


def space_to_depth(n: Reading) -> Said:
    return (n.operand(0),), {"block": n.attr_int("blocksize")}


# ---- resize
# -------------------------------------------------------------------------------------------------

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")


def resize(n: Reading) -> Said:
    return _resize_10(n) if n.opset < 11 else _resize_11(n)


def _resize_10(n: Reading) -> Said:
    x, mode = n.operand(0), n.attr_string("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise CannotRead(f"mode is {mode!r}")
    return (x,), {
        "sizes": None,
        "scales": _scales(n, 1),
        "mode": mode,
        "coordinates": "asymmetric",
        "nearest": "floor" if mode == "nearest" else None,
    }


def _scales(n: Reading, index: int) -> tuple[float, ...]:
    return tuple(float(v) for v in n.constant(index, "scales").reshape(-1))


def _resize_11(n: Reading) -> Said:
    x, mode = n.operand(0), n.attr_string("mode", "nearest")
    coordinates = n.attr_string("coordinate_transformation_mode", "half_pixel")
    if mode not in _MODES or coordinates not in _COORDINATES:
        raise CannotRead(f"mode {mode!r} with coordinates {coordinates!r}")
    _plain_resize(n, mode)
    nearest = n.attr_string("nearest_mode", "round_prefer_floor")
    sizes, scales = _targets(n, x)
    return (x,), {
        "sizes": sizes,
        "scales": scales,
        "mode": mode,
        "coordinates": coordinates,
        "nearest": nearest if mode == "nearest" else None,
    }


def _plain_resize(n: Reading, mode: str) -> None:
    """Refuse what the vocabulary's resize does not have. The region of interest and the extrapolation value
    only speak to tf_crop_and_resize."""
    n.optional(1)
    n.ignore("extrapolation_value")
    n.only("antialias", 0)
    n.only("keep_aspect_ratio_policy", "stretch")
    if mode == "cubic":
        n.only("cubic_coeff_a", -0.75)
        n.only("exclude_outside", 0)
    n.ignore("cubic_coeff_a", "exclude_outside")


def _targets(n: Reading, x: Value) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    axes = n.attr_ints("axes")
    n.optional(2)
    if n.has(3):
        sizes = n.constant_ints(3, "sizes")
        if n.has(2) and n.constant(2, "scales").size:
            raise CannotRead("both sizes and scales")
        return (sizes if axes is None else _spread_sizes(n, x, axes, sizes)), None
    if not n.has(2):
        raise CannotRead("neither sizes nor scales")
    scales = _scales(n, 2)
    if axes is not None:
        given = dict(zip(n.axes(axes, x), scales, strict=True))
        scales = tuple(given.get(i, 1.0) for i in range(n.rank(x)))
    return None, scales


def _spread_sizes(n: Reading, x: Value, axes: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    given = dict(zip(n.axes(axes, x), sizes, strict=True))
    full = [given.get(i, size) for i, size in enumerate(n.shape(x))]
    if not all(isinstance(size, int) for size in full):
        raise CannotRead("sizes of some axes are not known")
    return tuple(size for size in full if isinstance(size, int))


READERS: Mapping[tuple[str, str], Reader] = {
    ("", "Conv"): Reader("conv", conv),
    ("", "ConvTranspose"): Reader("conv_transpose", conv_transpose),
    ("com.microsoft", "FusedConv"): Reader("fused_conv", fused_conv),
    ("", "MaxPool"): Reader("max_pool", max_pool),
    ("", "AveragePool"): Reader("avg_pool", avg_pool),
    ("", "GlobalAveragePool"): Reader("reduce_mean", global_pool),
    ("", "GlobalMaxPool"): Reader("reduce_max", global_pool),
    ("", "DepthToSpace"): Reader("depth_to_space", depth_to_space),
    ("", "SpaceToDepth"): Reader("space_to_depth", space_to_depth),
    ("", "Resize"): Reader("resize", resize),
}
