"""Sizes on which onnx's shape inference and the runtimes disagree, or may: those are not known.

Each case was found by running the op in onnxruntime. The specification leaves the rounding of sizes open in some of
them; in others inference follows a version of the op that nobody implements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir.graph import Dim, TensorType
from graphopt.ir.weights import Array

Content: TypeAlias = Callable[[ir.Value | None], Array | None]
"""The numbers of a constant; None for whatever is computed."""
Types: TypeAlias = Callable[[ir.Value | None], TensorType | None]


def certain(node: ir.Node, inferred: TensorType, types: Types, content: Content) -> TensorType:
    """`inferred`, the type of the first result of `node`, without the sizes that are in doubt."""
    doubt = _DOUBTS.get(node.op_type) if node.domain == "" else None
    if doubt is None or inferred.shape is None or not node.inputs or node.inputs[0] is None:
        return inferred
    given = types(node.inputs[0])
    sizes: Sequence[Dim] = [None] * len(inferred.shape) if given is None or given.shape is None else given.shape
    axes = doubt(node, sizes, content)
    return TensorType(inferred.dtype, tuple(None if i in axes else d for i, d in enumerate(inferred.shape)))


def _pool(node: ir.Node, sizes: Sequence[Dim], content: Content) -> set[int]:
    """With ceil_mode a window that begins in the padding is left out by some; SAME with dilations is counted twice."""
    spatial = set(range(2, len(sizes)))
    if _text(node, "auto_pad", "NOTSET").startswith("SAME"):
        return spatial if any(d != 1 for d in _ints(node, "dilations")) else set()
    if not _int(node, "ceil_mode"):
        return set()
    rank = len(spatial)
    kernel, strides = _ints(node, "kernel_shape"), _ints(node, "strides") or [1] * rank
    dilations, pads = _ints(node, "dilations") or [1] * rank, _ints(node, "pads") or [0] * 2 * rank
    if _text(node, "auto_pad", "NOTSET") != "NOTSET" or len(kernel) != rank or len(pads) != 2 * rank:
        return spatial
    doubtful = set()
    for i, axis in enumerate(sorted(spatial)):
        size = sizes[axis]
        reach = dilations[i] * (kernel[i] - 1) + 1
        if not isinstance(size, int) or (size + pads[i] + pads[i + rank] - reach) % strides[i]:
            doubtful.add(axis)
    return doubtful


def _transposed(node: ir.Node, sizes: Sequence[Dim], content: Content) -> set[int]:
    same = _text(node, "auto_pad", "NOTSET").startswith("SAME")
    return set(range(2, len(sizes))) if same and any(_ints(node, "output_padding")) else set()


def _resize(node: ir.Node, sizes: Sequence[Dim], content: Content) -> set[int]:
    """floor(size * scale): 10 times 1.3 is 12 in one precision and 13 in the other."""
    every = set(range(len(sizes)))
    crops = _text(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if crops or _text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return every
    position = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    scales = content(node.inputs[position]) if len(node.inputs) > position else None
    if scales is None or scales.size == 0:
        return set()  # Sizes are given, or nothing is inferred.
    axes = _ints(node, "axes") or range(len(sizes))
    return {
        axis % len(sizes)
        for axis, scale in zip(axes, scales.reshape(-1).tolist(), strict=False)
        if _is_close_to_another(sizes[axis], scale)
    }


def _is_close_to_another(size: Dim, scale: float) -> bool:
    """Whether rounding can make another whole number of `size` times `scale`."""
    if not isinstance(size, int):
        return False
    exact = Fraction(size) * Fraction(float(np.float32(scale)))
    return exact.denominator != 1 and abs(exact - round(exact)) * 100_000 <= abs(exact) + 1


def _slice(node: ir.Node, sizes: Sequence[Dim], content: Content) -> set[int]:
    """From the end to the front, an end that is no index: beyond the last element, or before the first?"""
    steps = content(node.inputs[4]) if len(node.inputs) > 4 else None
    if steps is None or not (steps < 0).any():
        return set()
    ends, axes = content(node.inputs[2]), content(node.inputs[3])
    if ends is None or axes is None and node.inputs[3] is not None:
        return set(range(len(sizes)))
    on = range(len(steps)) if axes is None else [int(a) % len(sizes) for a in axes]
    return {axis for axis, end, step in zip(on, ends, steps, strict=False) if step < 0 and end >= 0}


_DOUBTS: Mapping[str, Callable[[ir.Node, Sequence[Dim], Content], set[int]]] = {
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "ConvTranspose": _transposed,
    "Resize": _resize,
    "Upsample": _resize,
    "Slice": _slice,
}


# ---- attributes, of a type that the file may have got wrong ----------------------------------------------------


def _ints(node: ir.Node, name: str) -> list[int]:
    attribute = node.attributes.get(name)
    known = attribute is not None and attribute.type == ir.AttributeType.INTS and not attribute.is_ref()
    return list(attribute.as_ints()) if attribute is not None and known else []


def _int(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    if attribute is None:
        return 0
    # A parameter of a function may be anything.
    return 1 if attribute.is_ref() or attribute.type != ir.AttributeType.INT else attribute.as_int()


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    known = attribute is not None and attribute.type == ir.AttributeType.STRING and not attribute.is_ref()
    return attribute.as_string() if attribute is not None and known else default
