"""Every batching rule gives, at every row, what the op gives for that row alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UnsupportedError
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import Literal, TensorType
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.passes.batch_rows import batched_graph
from graphopt.passes.batching_rules import ROWS, RULES
from graphopt.verify.execute import evaluate, model_runner

COUNT = 3


class OneRow:
    """A graph of one row, its types found by running it; inputs differ from row to row or are the same for all."""

    def __init__(self, seed: int = 0) -> None:
        self.graph = ScratchGraph()
        self.per_row: list[Any] = []
        self._feeds: list[np.ndarray] = []
        self._known: dict[Any, np.ndarray] = {}
        self._rng = np.random.default_rng(seed)

    def row(self, *shape: int, like: str = "float32", below: int = 2) -> Any:
        """An input that differs from row to row."""
        value = self._input((COUNT, *shape), shape, like, below)
        self.per_row.append(value)
        return value

    def shared(self, *shape: int, like: str = "float32", below: int = 2) -> Any:
        return self._input(shape, shape, like, below)

    def constant(self, *shape: int) -> ArrayRef:
        return ArrayRef(self._drawn(shape, "float32", 2))

    def _drawn(self, shape: tuple[int, ...], like: str, below: int) -> np.ndarray:
        if like == "float32":
            return np.asarray(np.abs(self._rng.standard_normal(shape)) + 0.1, np.float32)
        return np.asarray(self._rng.integers(0, below, shape), like)

    def _input(self, drawn: tuple[int, ...], shape: tuple[int, ...], like: str, below: int) -> Any:
        value = self.graph.add_input(TensorType(like, shape))
        self._feeds.append(self._drawn(drawn, like, below))
        self._known[value] = self._feeds[-1][0] if len(drawn) > len(shape) else self._feeds[-1]
        return value

    def add(self, op: str, *operands: Any, **fields: Any) -> Any:
        arrays = [None if o is None else self._array(o) for o in operands]
        results = OPS[op].meaning(Float64(), *arrays, **fields)
        several = results if isinstance(results, tuple | list) else (results,)
        found = [np.asarray(r) for r in several]
        types = [TensorType("float32" if r.dtype == np.float64 else r.dtype.name, r.shape) for r in found]
        values = self.graph.append(op, *operands, types=types, **fields)
        for value, result in zip(values if isinstance(values, tuple) else (values,), found, strict=True):
            self._known[value] = result
        return values

    def _array(self, operand: Any) -> np.ndarray:
        if isinstance(operand, ArrayRef):
            return operand.numpy().astype(np.float64)
        if isinstance(operand, Literal):
            return np.asarray(operand.value)
        array = self._known[operand]
        return array.astype(np.float64) if array.dtype == np.float32 else array

    def check(self, *outputs: Any, onnx: bool = True) -> ScratchGraph:
        for output in outputs:
            self.graph.add_output(output)
        batched = batched_graph(self.graph, self.per_row)
        inputs = self.graph.inputs()
        alone = [
            evaluate(self.graph, [f[r] if v in self.per_row else f for v, f in zip(inputs, self._feeds, strict=True)])
            for r in range(COUNT)
        ]
        expected = [np.stack(column) for column in zip(*alone, strict=True)]
        for got, want in zip(evaluate(batched, self._feeds), expected, strict=True):
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
        for old, new in zip(self.graph.outputs(), batched.outputs(), strict=True):
            was, type_ = self.graph.type(old), batched.type(new)
            assert type_ == TensorType(was.dtype, (ROWS, *was.shape)), "and the types say so"
        if onnx:
            native = model_runner(from_scratch(batched, "onnx", opset=23))(self._feeds)
            for got, want in zip(native, expected, strict=True):
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        return batched


Case = Callable[[OneRow], Any]
MOVES: dict[str, dict[str, Any]] = {
    "transpose": {"perm": (2, 0, 1)},
    "unsqueeze": {"axes": (0, 3)},
    "slice": {"starts": (-2, 0), "ends": (2**63 - 1, 4), "axes": (1, 2), "steps": (1, 2)},
    "split": {"sizes": (1, 3), "axis": 2},
    "tile": {"repeats": (1, 2, 3)},
    "pad": {"pads": (0, 1, 2, 1, 0, 3)},
    "trilu": {"k": 1, "upper": False},
    "softmax": {"axis": 1},
    "log_softmax": {"axis": 2},
    "arg_max": {"axis": 1, "keepdims": False},
    "arg_min": {"axis": 0, "keepdims": True},
    "cumsum": {"axis": 1},
    "topk": {"k": 2, "axis": 1},
    "reduce_sum": {"axes": (0, 2), "keepdims": False},
    "reduce_mean": {"axes": (2,), "keepdims": True},
    "reduce_prod": {"axes": (1,), "keepdims": False},
    "reduce_max": {"axes": (0, 1, 2), "keepdims": False},
    "reduce_min": {"axes": (1,), "keepdims": True},
    "reduce_l2": {"axes": (0,), "keepdims": False},
    "expand": {"shape": (5, 2, 3, 4)},
}
"""Ops of one operand, of shape [2, 3, 4]."""
IMAGES: dict[str, dict[str, Any]] = {
    "max_pool": {"kernel": (2, 2), "stride": (2, 2), "pads": (0,) * 4, "dilation": (1, 1)},
    "avg_pool": {"kernel": (2, 2), "stride": (2, 2), "pads": (0,) * 4, "dilation": (1, 1)},
    "depth_to_space": {"block": 2},
    "space_to_depth": {"block": 2},
}
CONV = {"stride": (1, 1), "pads": (0,) * 4, "dilation": (1, 1)}


def _conv_transpose(g: OneRow) -> Any:
    return g.add("conv_transpose", g.row(2, 4, 5, 5), g.constant(4, 2, 3, 3), None, output_padding=(0, 0), **CONV)


CASES: dict[str, Case] = {
    "squeeze": lambda g: g.add("squeeze", g.row(2, 1, 4), axes=(1,)),
    "reshape": lambda g: g.add("reshape", g.row(2, 3, 4), shape=(4, -1)),
    "concat": lambda g: g.add("concat", g.row(2, 3), g.shared(2, 1), g.constant(2, 2), axis=1),
    "shape": lambda g: g.add("mul", g.add("shape", g.row(2, 3, 4), start=1), g.row(2, like="int64")),
    "gather": lambda g: g.add("gather", g.row(2, 3, 4), g.shared(5, like="int64", below=3), axis=1),
    "gather_elements": lambda g: g.add("gather_elements", g.shared(2, 3), g.row(2, 2, like="int64", below=3), axis=1),
    "linear": lambda g: g.add("linear", g.row(2, 4), g.constant(5, 4), g.constant(5)),
    "matmul": lambda g: g.add("matmul", g.row(2, 3, 4), g.constant(4, 5)),
    "einsum": lambda g: g.add("einsum", g.row(2, 3), g.shared(3, 4), equation="ab,bc->ca"),
    "layer_norm": lambda g: g.add("layer_norm", g.row(2, 3, 4), g.constant(3, 4), g.constant(3, 4), axis=-2, eps=1e-5),
    "rms_norm": lambda g: g.add("rms_norm", g.row(2, 3, 4), g.constant(4), axis=-1, eps=1e-5),
    "group_norm": lambda g: g.add("group_norm", g.row(2, 4, 5), g.constant(4), g.constant(4), groups=2, eps=1e-5),
    "instance_norm": lambda g: g.add("instance_norm", g.row(2, 4, 5), g.constant(4), g.constant(4), eps=1e-5),
    "batch_norm": lambda g: g.add("batch_norm", g.row(2, 4, 5), *(g.constant(4) for _ in range(4)), eps=1e-5),
    "conv": lambda g: g.add("conv", g.row(2, 4, 5, 5), g.constant(6, 4, 3, 3), g.constant(6), **CONV),
    "fused_conv": lambda g: g.add(
        "fused_conv", g.row(2, 4, 5, 5), g.constant(6, 4, 3, 3), g.constant(6), activation="relu", **CONV
    ),
    "conv_transpose": _conv_transpose,
    "attention": lambda g: g.add("attention", g.row(2, 2, 3, 4), g.shared(2, 2, 5, 4), g.row(2, 2, 5, 4), scale=0.5),
    "clamp": lambda g: g.add("clamp", g.row(2, 3), Literal(0.3, "float32"), Literal(0.8, "float32")),
    "prelu": lambda g: g.add("prelu", g.add("neg", g.shared(2, 3, 4)), g.row(4)),
    "where": lambda g: g.add("where", g.row(3, like="bool"), g.shared(2, 3), g.row(2, 1)),
    "cast": lambda g: g.add("cast", g.row(2, like="int64", below=9), dtype="float32"),
    "mod": lambda g: g.add("mod", g.row(3, like="int64", below=9), Literal(4, "int64")),
    "leaky_relu": lambda g: g.add("leaky_relu", g.add("neg", g.row(3)), slope=0.2),
    "hard_sigmoid": lambda g: g.add("hard_sigmoid", g.row(3), alpha=0.3, beta=0.4),
}
LOGICAL = ("logical_and", "logical_or", "logical_xor", "logical_not")
WITHOUT_WRITER = ("rsqrt", "silu", "fused_conv", "softsign")


def case(op: str) -> Case:
    if op in CASES:
        return CASES[op]
    if op in MOVES:
        return lambda g: g.add(op, g.row(2, 3, 4) if op != "expand" else g.row(3, 1), **MOVES[op])
    if op in IMAGES:
        return lambda g: g.add(op, g.row(2, 4, 6, 6), **IMAGES[op])
    like = "bool" if op in LOGICAL else "float32"
    count = len([o for o in OPS[op].operands if o not in OPS[op].optional])
    return lambda g: g.add(op, *[g.row(3, like=like), g.shared(2, 1, 3, like=like)][:count])


@pytest.mark.parametrize("op", sorted(RULES))
def test_every_op_gives_for_all_rows_what_it_gives_for_each(op: str) -> None:
    graph = OneRow()
    outputs = case(op)(graph)
    graph.check(*(outputs if isinstance(outputs, tuple) else (outputs,)), onnx=op not in WITHOUT_WRITER)


Shape = tuple[int, ...]


@st.composite
def broadcastable(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes of different ranks that numpy broadcasts to one."""
    full = draw(st.lists(st.integers(1, 3), max_size=4))

    def part() -> Shape:
        kept = full[draw(st.integers(0, len(full))) :]
        return tuple(size if draw(st.booleans()) else 1 for size in kept)

    return part(), part()


@settings(max_examples=60, deadline=None)
@given(broadcastable(), st.booleans(), st.booleans(), st.integers(0, 9))
def test_broadcasting_aligns_ranks_of_rows(shapes: tuple[Shape, Shape], both: bool, swapped: bool, seed: int) -> None:
    graph = OneRow(seed)
    operands = [graph.row(*shapes[0]), graph.row(*shapes[1]) if both else graph.shared(*shapes[1])]
    graph.check(graph.add("sub", *(operands[::-1] if swapped else operands)))


@st.composite
def products(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Shapes of a matrix product, vectors and batches of other ranks included."""
    sizes = st.integers(1, 3)
    m, k, n = draw(sizes), draw(sizes), draw(sizes)
    a, b = draw(broadcastable())
    left = (k,) if draw(st.booleans()) and not a else (*a, m, k)
    right = (k,) if draw(st.booleans()) and not b else (*b, k, n)
    return left, right


@settings(max_examples=60, deadline=None)
@given(products(), st.sampled_from(["left", "right", "both"]), st.integers(0, 9))
def test_matrix_products_of_any_ranks(shapes: tuple[Shape, Shape], per_row: str, seed: int) -> None:
    graph = OneRow(seed)
    a = graph.shared(*shapes[0]) if per_row == "right" else graph.row(*shapes[0])
    b = graph.shared(*shapes[1]) if per_row == "left" else graph.row(*shapes[1])
    graph.check(graph.add("matmul", a, b))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("indices", [(), (2,), (2, 2)])
def test_rows_look_up_their_own_entries_of_a_shared_tensor(axis: int, indices: Shape) -> None:
    graph = OneRow()
    places = graph.row(*indices, like="int64", below=2)
    graph.check(graph.add("gather", graph.constant(2, 3, 4), places, axis=axis))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
def test_linear_layers_of_any_rank_become_one_product_of_two_axes(shape: Shape) -> None:
    graph = OneRow()
    batched = graph.check(graph.add("linear", graph.row(*shape), graph.constant(5, 3), None, trans_w=True))
    (product,) = [n for n in batched.nodes() if batched.key(n) == "linear"]
    assert len(batched.type(product.call.operands[0]).shape) == 2


@pytest.mark.parametrize("mask", [(1, 1, 3, 5), (2, 1, 3, 5), (3, 5)])
@pytest.mark.parametrize("per_row", [False, True])
def test_attention_takes_masks_of_rows_and_of_all(mask: Shape, per_row: bool) -> None:
    graph = OneRow()
    q, k, v = graph.row(2, 2, 3, 4), graph.row(2, 2, 5, 4), graph.shared(2, 2, 5, 4)
    bias = graph.row(*mask) if per_row else graph.shared(*mask)
    graph.check(graph.add("attention", q, k, v, bias, scale=0.5))


def test_what_does_not_differ_is_computed_once_and_repeated_at_the_end() -> None:
    graph = OneRow()
    row, shared = graph.row(), graph.shared(2, 3)
    once = graph.add("exp", shared)
    batched = graph.check(once, graph.add("mul", row, once), graph.add("exp", graph.shared()))
    types = {batched.type(n.call.outputs[0]).shape for n in batched.nodes() if batched.key(n) == "exp"}
    assert types == {(2, 3), ()}


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g: g.add("range", g.row(like="int64"), g.shared(like="int64"), Literal(1, "int64")), "range, which"),
        (lambda g: g.add("linear", g.row(2, 3), g.row(4, 3), None), "linear whose w depends on the timestep"),
        (lambda g: g.add("linear", g.shared(2, 3), g.row(4, 3), None), "linear whose x does not depend"),
        (lambda g: g.add("clamp", g.row(3), g.row(), None), "clamp whose low depends"),
        (lambda g: g.add("gather", g.row(3), g.row(2, like="int64"), axis=0), "both depend"),
        (lambda g: g.add("reshape", g.row(0, 2), shape=(2, 0)), "holds nothing"),
        (lambda g: g.add("einsum", g.row(2, 3), equation="...a->a..."), "not spelled out"),
        (
            lambda g: g.add("batch_norm", g.row(2, 4, 5), *(g.constant(4) for _ in range(4)), eps=1e-5, training=True),
            "training mode",
        ),
    ],
)  # fmt: skip
def test_what_no_rule_can_say_is_refused_with_the_node(build: Case, reason: str) -> None:
    graph = OneRow()
    graph.graph.add_output(build(graph))
    with pytest.raises(UnsupportedError, match=reason) as caught:
        batched_graph(graph.graph, graph.per_row)
    assert str(caught.value).startswith("node ")


def test_unknown_sizes_and_tables_without_timestep_are_refused() -> None:
    graph = ScratchGraph()
    value = graph.add_input(TensorType("float32", ("n",)), "late")
    graph.add_output(value)
    with pytest.raises(UnsupportedError, match=r"late is float32\[n\]: give static sizes"):
        batched_graph(graph, [value])
    fixed = OneRow()
    fixed.graph.add_output(fixed.shared(2))
    with pytest.raises(UnsupportedError, match="does not read the timestep"):
        batched_graph(fixed.graph, [])
