"""Sizes on which onnx's shape inference and the runtimes disagree, or may: those are not known.

Each case was found by running the op in onnxruntime. The specification leaves the rounding of sizes open in some of
them; in others inference follows a version of the op that nobody implements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from graphopt.ir.graph import INVALID, Dim, TensorType
from graphopt.ir.onnx.reading import CannotRead, Facts, Reading


def certain(node: ir.Node, inferred: TensorType, facts: Facts) -> TensorType:
    """`inferred`, the type of the first result of `node`, without the sizes that are in doubt."""
    doubt = _DOUBTS.get(node.op_type) if node.domain == "" else None
    if doubt is None or inferred.shape is None or not node.inputs or node.inputs[0] is None:
        return inferred
    given = facts.type(node.inputs[0])
    sizes: Sequence[Dim] = [None] * len(inferred.shape) if given is None or given.shape is None else given.shape
    try:
        axes = doubt(Reading(node, 0, facts), sizes)
    except (CannotRead, *INVALID):
        axes = set(range(len(sizes)))
    return TensorType(inferred.dtype, tuple(None if i in axes else d for i, d in enumerate(inferred.shape)))


def _pool(node: Reading, sizes: Sequence[Dim]) -> set[int]:
    """With ceil_mode a window that begins in the padding is left out by some; SAME with dilations is counted twice."""
    spatial = set(range(2, len(sizes)))
    rank = len(spatial)
    dilations = node.attr_ints("dilations") or (1,) * rank
    padding = node.attr_string("auto_pad", "NOTSET")
    if padding.startswith("SAME"):
        return spatial if any(d != 1 for d in dilations) else set()
    if not node.attr_flag("ceil_mode"):
        return set()
    kernel, strides = node.attr_ints("kernel_shape") or (), node.attr_ints("strides") or (1,) * rank
    pads = node.attr_ints("pads") or (0,) * 2 * rank
    if padding != "NOTSET" or len(kernel) != rank or len(pads) != 2 * rank:
        return spatial
    doubtful = set()
    for i, axis in enumerate(sorted(spatial)):
        size = sizes[axis]
        reach = dilations[i] * (kernel[i] - 1) + 1
        if not isinstance(size, int) or (size + pads[i] + pads[i + rank] - reach) % strides[i]:
            doubtful.add(axis)
    return doubtful


def _transposed(node: Reading, sizes: Sequence[Dim]) -> set[int]:
    same = node.attr_string("auto_pad", "NOTSET").startswith("SAME")
    return set(range(2, len(sizes))) if same and any(node.attr_ints("output_padding") or ()) else set()


def _resize(node: Reading, sizes: Sequence[Dim]) -> set[int]:
    """floor(size * scale): 10 times 1.3 is 12 in one precision and 13 in the other."""
    crops = node.attr_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if crops or node.attr_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return set(range(len(sizes)))
    position = 1 if node.node.op_type == "Upsample" or len(node.node.inputs) == 2 else 2
    if not node.is_constant(position):
        return set()  # Sizes are given, or nothing is inferred.
    axes = node.attr_ints("axes") or range(len(sizes))
    return {
        axis % len(sizes)
        for axis, scale in zip(axes, node.constant(position, "scales").reshape(-1).tolist(), strict=False)
        if _is_close_to_another(sizes[axis], scale)
    }


def _is_close_to_another(size: Dim, scale: float) -> bool:
    """Whether rounding can make another whole number of `size` times `scale`."""
    if not isinstance(size, int):
        return False
    exact = Fraction(size) * Fraction(float(np.float32(scale)))
    return exact.denominator != 1 and abs(exact - round(exact)) * 100_000 <= abs(exact) + 1


def _slice(node: Reading, sizes: Sequence[Dim]) -> set[int]:
    """From the end to the front, an end that is no index: beyond the last element, or before the first?"""
    steps = node.constant_ints(4, "steps") if node.is_constant(4) else ()
    if all(step > 0 for step in steps):
        return set()
    axes = node.axes(node.constant_ints(3, "axes"), node.operand(0)) if node.has(3) else range(len(steps))
    ends = node.constant_ints(2, "ends")
    return {axis for axis, end, step in zip(axes, ends, steps, strict=False) if step < 0 and end >= 0}


_DOUBTS: Mapping[str, Callable[[Reading, Sequence[Dim]], set[int]]] = {
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "ConvTranspose": _transposed,
    "Resize": _resize,
    "Upsample": _resize,
    "Slice": _slice,
}
