"""Layout rules on scratch graphs: moves that lead back disappear, moves in a row become one, all others
stay.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clean_up_graphs import Sketch

import graphopt
from graphopt.ir.graph import TensorType
from graphopt.passes import layout_identities
from graphopt.passes.layout_identities import same_shape, target_shape


def apply(sketch: Sketch, *values: Any) -> list[str]:
    """Ops that are left; every application was kept with bit-equal results."""
    for value in values:
        sketch.result(value)
    applied = sketch.run_rules(layout_identities.RULES)
    assert all(a.status == "kept" and a.evidence.kind == "bit-equal" for a in applied), applied
    return sketch.ops()


def typed(*shape: Any) -> tuple[str, tuple[Any, ...]]:
    return "float64", shape


def test_transpose_that_moves_nothing_disappears() -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add("transpose", sketch.x, perm=(0, 1, 2))) == []


def test_transposes_that_undo_each_other_disappear() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    assert apply(sketch, sketch.add("transpose", inner, perm=(2, 0, 1))) == []


def test_transposes_in_a_row_become_one_with_the_composed_permutation() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    outer = sketch.add("transpose", inner, perm=(1, 0, 2), type=typed(4, 3, 2))
    assert apply(sketch, outer) == ["transpose"]
    assert next(sketch.graph.nodes()).call.fields["perm"] == (2, 1, 0)


def test_shared_inner_transpose_is_kept_for_its_other_reader() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    outer = sketch.add("transpose", inner, perm=(2, 0, 1))
    assert apply(sketch, outer, inner) == ["transpose"]


def test_transposes_around_an_elementwise_op_disappear() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    between = sketch.add("leaky_relu", inner, slope=0.2, type=typed(3, 4, 2))
    assert apply(sketch, sketch.add("transpose", between, perm=(2, 0, 1))) == ["leaky_relu"]
    assert next(sketch.graph.nodes()).call.fields["slope"] == 0.2


def test_transposes_around_an_op_that_is_read_elsewhere_stay() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    between = sketch.add("relu", inner, type=typed(3, 4, 2))
    outer = sketch.add("transpose", between, perm=(2, 0, 1))
    assert apply(sketch, outer, between) == ["transpose", "relu", "transpose"]


def test_transposes_around_an_op_along_an_axis_stay() -> None:
    sketch = Sketch()
    inner = sketch.add("transpose", sketch.x, perm=(1, 2, 0), type=typed(3, 4, 2))
    between = sketch.add("softmax", inner, axis=0, type=typed(3, 4, 2))
    outer = sketch.add("transpose", between, perm=(2, 0, 1))
    assert apply(sketch, outer) == ["transpose", "softmax", "transpose"]


def test_reshape_to_own_shape_disappears() -> None:
    sketch = Sketch(shape=("N", 3, 4))
    assert apply(sketch, sketch.add("reshape", sketch.x, shape=(-1, 3, 4), type=typed(None, 3, 4))) == []


def test_reshape_beside_two_unknown_sizes_stays() -> None:
    sketch = Sketch(shape=("N", "M", 4))
    value = sketch.add("reshape", sketch.x, shape=(-1, 3, 4), type=typed(None, 3, 4))
    assert apply(sketch, value) == ["reshape"]


@pytest.mark.parametrize(
    ("first", "fields", "shape"),
    [
        ("reshape", {"shape": (6, 4)}, (6, 4)),
        ("unsqueeze", {"axes": (1,)}, (2, 1, 3, 4)),
        ("squeeze", {"axes": (1,)}, (2, 12)),
    ],
)
def test_flat_move_before_a_reshape_disappears(
    first: str, fields: dict[str, Any], shape: tuple[int, ...]
) -> None:
    sketch = Sketch(shape=(2, 1, 12) if first == "squeeze" else (2, 3, 4))
    inner = sketch.add(first, sketch.x, type=typed(*shape), **fields)
    assert apply(sketch, sketch.add("reshape", inner, shape=(24,), type=typed(24))) == ["reshape"]


def test_reshape_and_squeeze_become_one_reshape() -> None:
    sketch = Sketch(shape=("N", 12))
    inner = sketch.add("reshape", sketch.x, shape=(-1, 1, 3, 4), type=typed("N", 1, 3, 4))
    assert apply(sketch, sketch.add("squeeze", inner, axes=(1,), type=typed("N", 3, 4))) == ["reshape"]
    assert next(sketch.graph.nodes()).call.fields["shape"] == (-1, 3, 4)


def test_squeeze_of_unsqueeze_disappears_without_a_known_shape() -> None:
    sketch = Sketch(shape=("N", "M", "K"))
    inner = sketch.add("unsqueeze", sketch.x, axes=(1,), type=typed("N", 1, "M", "K"))
    assert apply(sketch, sketch.add("squeeze", inner, axes=(1,), type=typed("N", "M", "K"))) == []


def test_squeeze_of_another_axis_with_unknown_sizes_stays() -> None:
    sketch = Sketch(shape=("N", 1, "K"))
    inner = sketch.add("unsqueeze", sketch.x, axes=(0,), type=typed(1, "N", 1, "K"))
    outer = sketch.add("squeeze", inner, axes=(2,), type=typed(1, "N", "K"))
    assert apply(sketch, outer) == ["unsqueeze", "squeeze"]


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("slice", {"starts": (0, 0), "ends": (3, 2**63 - 1), "axes": (1, 2), "steps": (1, 1)}),
        ("pad", {"pads": (0, 0, 0, 0, 0, 0)}),
        ("tile", {"repeats": (1, 1, 1)}),
        ("expand", {"shape": (1, 1)}),
        ("expand", {"shape": (2, 3, 4)}),
        ("concat", {"axis": 1}),
        ("split", {"sizes": (3,), "axis": 1}),
    ],
)
def test_the_whole_is_no_part(op: str, fields: dict[str, Any]) -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add(op, sketch.x, **fields)) == []


@pytest.mark.parametrize(
    ("op", "fields", "shape"),
    [
        ("slice", {"starts": (1,), "ends": (9,), "axes": (1,), "steps": (1,)}, (2, 2, 4)),
        ("slice", {"starts": (0,), "ends": (9,), "axes": (1,), "steps": (2,)}, (2, 2, 4)),
        ("slice", {"starts": (0,), "ends": (2,), "axes": (1,), "steps": (1,)}, (2, 2, 4)),
        ("pad", {"pads": (0, 0, 0, 0, 0, 1)}, (2, 3, 5)),
        ("tile", {"repeats": (1, 2, 1)}, (2, 6, 4)),
        ("expand", {"shape": (1, 1, 1, 1)}, (1, 2, 3, 4)),
    ],
)
def test_parts_and_copies_stay(op: str, fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add(op, sketch.x, type=typed(*shape), **fields)) == [op]


def test_slice_of_an_unknown_size_up_to_a_large_number_stays() -> None:
    sketch = Sketch(shape=("N", 4))
    value = sketch.add("slice", sketch.x, starts=(0,), ends=(10**9,), axes=(0,), steps=(1,))
    assert apply(sketch, value) == ["slice"]


def test_slices_of_two_axes_become_one() -> None:
    sketch = Sketch()
    rows = sketch.add("slice", sketch.x, starts=(1,), ends=(3,), axes=(1,), steps=(1,), type=typed(2, 2, 4))
    both = sketch.add("slice", rows, starts=(0,), ends=(4,), axes=(2,), steps=(2,), type=typed(2, 2, 2))
    assert apply(sketch, both) == ["slice"]


def test_slices_of_two_axes_are_left_alone_where_an_op_slices_one() -> None:
    class Sliced(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 1:3, ::2] + 1

    report = graphopt.optimize(Sliced(), "clean-up", example_inputs=torch.ones(2, 5, 6)).report
    assert report.undone == []
    assert list(report.passes[0].rules["slice-after-slice"].refused) == [
        "slice: torch slices one axis at a time"
    ]


def test_slices_of_one_axis_stay() -> None:
    sketch = Sketch()
    first = sketch.add("slice", sketch.x, starts=(1,), ends=(3,), axes=(1,), steps=(1,), type=typed(2, 2, 4))
    second = sketch.add("slice", first, starts=(1,), ends=(2,), axes=(1,), steps=(1,), type=typed(2, 1, 4))
    assert apply(sketch, second) == ["slice", "slice"]


def test_when_shapes_are_the_same() -> None:
    def known(*shape: Any) -> TensorType:
        return TensorType("float64", shape)

    assert same_shape(known("N", 3), known("N", 3))
    assert same_shape(known(None, 3), known("N", 3))
    assert not same_shape(known(None, 0), known("N", 0))
    assert not same_shape(known(None, None), known(None, None))
    assert not same_shape(known(2, 3), known(3, 2))
    assert not same_shape(known(2, 3), known(2, 3, 1))
    assert target_shape(("N", 3)) == (-1, 3)
    assert target_shape((None, "N")) is None
    assert target_shape((0, 3)) is None
