"""What is picked by number stays; every other dimension can be shortened."""

from __future__ import annotations

import re

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import free_axes
from graphopt.ir.model import Model
from graphopt.rewrite.journal import Journal

SHAPES = {"a": (4, 8), "b": (8, 3), "c": (4, 8), "short": (2, 8), "table": (5, 8)}
BODIES = {
    "gather_nd": "h = MatMul(x, a) p = GatherND<batch_dims=1>(h, rows)",
    "gather_nd of a short table": "p = GatherND(short, rows)",
    "gather_elements": "h = MatMul(x, a) i = Expand(rows, size) p = GatherElements<axis=1>(h, i)",
    "scatter_elements": """h = MatMul(x, a) i = Expand(rows, size) part = Slice(x, first, third, one)
        u = MatMul(part, c) p = ScatterElements<axis=1>(h, i, u)""",
    "scatter_nd": """h = MatMul(x, a) part = Slice(x, first, third, one) u = MatMul(part, c)
        p = ScatterND(h, pairs, u)""",
    "one_hot": "flat = Squeeze(rows, two) hot = OneHot(flat, five, ends) p = MatMul(hot, table)",
}


def built(body: str, last: str = "y = MatMul(p, b)", **given: np.ndarray) -> Model:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays |= {
        "size": np.array([2, 3, 8]), "first": np.array([0]), "third": np.array([3]), "one": np.array([1]),
        "two": np.array([2]), "five": np.array(5), "ends": np.array([0, 1], np.float32),
        "pairs": np.array([[[0, 1], [0, 3], [0, 5]], [[1, 0], [1, 2], [1, 4]]]),
    }  # fmt: skip
    arrays |= given
    text = f"g (float[2,6,4] x, int64[2,3,1] rows) => (float[2,N,3] y) {{ {body} {last} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    read = [n for n in arrays if re.search(rf"\b{n}\b", text)]
    proto.graph.initializer.extend(numpy_helper.from_array(arrays[n], n) for n in read)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    return graphopt.load(proto)


@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
def test_the_width_of_what_is_picked_can_go(body: str) -> None:
    model = built(body)
    axes = Axes(model.main)
    (axis,) = free_axes(axes)
    assert (axis.size, axis.coupled) == (8, ())
    shorten_checked(axes, axis, np.arange(8) % 3 == 0, Journal(model.main))
    shapes = {model.main.name(m.value): model.main.constant(m.value).shape for m in axis.members}
    assert shapes == {name: tuple(3 if n == 8 else n for n in SHAPES[name]) for name in shapes}


@pytest.mark.parametrize(
    ("numbers", "sizes"),
    [
        (np.arange(8).reshape(2, 4).T.reshape(-1), [2, 4]),
        (np.arange(8).reshape(4, 2), [2, 4]),
        (np.repeat(np.arange(4), 2), [2, 4, 4]),
        (np.arange(0, 8, 2), [4]),
        (np.arange(8) - 8, [8]),
    ],
    ids=["permutation", "reshape", "part, repeated", "every other", "from behind"],
)
def test_what_is_picked_by_known_numbers_can_go_with_where_it_is_picked_from(
    numbers: np.ndarray, sizes: list[int]
) -> None:
    """Axes are shortened one after the other, so that numbers follow numbers."""
    other = np.random.default_rng(1).standard_normal((numbers.size, 3)).astype(np.float32)
    body = "h = MatMul(x, a) q = Gather<axis=2>(h, numbers) p = Reshape(q, joined)"
    model = built(body, "y = MatMul(p, other)", numbers=numbers, other=other, joined=np.array([2, 6, numbers.size]))
    axes = Axes(model.main)
    found = free_axes(axes)
    assert sorted(axis.size for axis in found) == sizes
    for axis in found:
        shorten_checked(axes, axis, np.arange(axis.size) % 3 != 1, Journal(model.main))
    session = onnxruntime.InferenceSession(model.export().SerializeToString())
    feeds = {"x": np.ones((2, 6, 4), np.float32), "rows": np.zeros((2, 3, 1), np.int64)}
    assert session.run(None, feeds)[0].shape == (2, 6, 3)


@pytest.mark.parametrize("numbers", [np.array([3, 0, 1, 2, 7, 6, 5, 4]), np.arange(8)[::-1], np.zeros(8, np.int64)])
def test_what_is_picked_by_other_numbers_stays(numbers: np.ndarray) -> None:
    model = built("h = MatMul(x, a) p = Gather<axis=2>(h, numbers)", numbers=numbers)
    assert [axis for axis in free_axes(Axes(model.main)) if "a" in [m.weight for m in axis.members]] == []


def test_what_is_only_left_out_is_no_axis() -> None:
    # Rows 3 and 4 of the table are read by nothing else.
    body = "few = Gather<axis=0>(table, numbers) h = MatMul(x, a) p = Transpose(few)"
    model = built(body, "y = MatMul(h, p)", numbers=np.array([0, 1, 2]))
    assert [axis.size for axis in free_axes(Axes(model.main))] == [8]


@pytest.mark.parametrize(
    ("start", "step", "sizes"), [(0, 2, [4]), (1, 2, [4]), (3, 4, [2]), (5, 2, [2, 2]), (0, 3, [])]
)
def test_of_every_step_one_can_be_taken(start: int, step: int, sizes: list[int]) -> None:
    other = np.random.default_rng(1).standard_normal((len(range(start, 8, step)), 3)).astype(np.float32)
    given = {"start": np.array([start]), "end": np.array([100]), "step": np.array([step]), "other": other}
    model = built("h = MatMul(x, a) p = Slice(h, start, end, two, step)", "y = MatMul(p, other)", **given)
    axes = Axes(model.main)
    found = free_axes(axes)
    assert sorted(axis.size for axis in found) == sizes
    for axis in found:
        shorten_checked(axes, axis, np.arange(axis.size) != 0, Journal(model.main))
    onnxruntime.InferenceSession(model.export().SerializeToString())


def test_elements_beside_which_indices_are_missing_stay() -> None:
    # The first 3 of 8 channels are read: no shorter axis has both.
    body = """h = MatMul(x, a) i = Expand(rows, size) few = Slice(i, first, third, two)
        p = GatherElements<axis=1>(h, few)"""
    assert free_axes(Axes(built(body.replace("p =", "y ="), last="").main)) == []
