"""Mixtures of experts that are nearly what lower-moe knows: the result equals the model, or the model is left and the
report says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import graphopt

Array = NDArray[Any]
Node = helper.make_node
EXPERTS, WIDE, OUT = 4, 6, 5
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IDS = np.array([3, 0, 0, 2, 0, 3])
ALONE = np.array([1])


def random(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


STACKS = {
    "w1": random(EXPERTS, WIDE, WIDE, seed=1), "w2": random(EXPERTS, WIDE, OUT, seed=2),
    "b": random(EXPERTS, WIDE, seed=3), "m": random(WIDE, OUT, seed=4),
    "first": np.array([0]), "second": np.array([1]),
}  # fmt: skip
X, ROWS = ("x", FLOAT, ["S", 1, WIDE]), ("ids", INT64, ["S"])
Y = ("y", FLOAT, ["S", 1, OUT])
PICKS = [Node("Gather", ["w1", "ids"], ["p1"], axis=0), Node("Gather", ["w2", "ids"], ["p2"], axis=0)]
FIRST, SECOND = Node("MatMul", ["x", "p1"], ["h"]), Node("MatMul", ["r", "p2"], ["y"])
PLAIN = [*PICKS, FIRST, Node("Relu", ["h"], ["r"]), SECOND]
FEED = {"x": random(6, 1, WIDE), "ids": IDS}
"""The expert 1 has no rows."""
FEEDS = [FEED, {"x": FEED["x"][:0], "ids": IDS[:0]}, {"x": FEED["x"][:1], "ids": IDS[:1]}, {**FEED, "ids": IDS - 4}]


def model(
    nodes: Sequence[Any], inputs: Sequence[Any] = (X, ROWS), outputs: Sequence[Any] = (Y,), *,
    constants: Mapping[str, Array] = STACKS, opset: int = 18, types: Sequence[Any] = (),
) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        list(nodes), "experts",
        [helper.make_tensor_value_info(*i) for i in inputs], [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[helper.make_tensor_value_info(*t) for t in types],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def run(proto: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    results: list[Array] = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, dict(feed))
    return results


def assert_close(found: Sequence[Array], expected: Sequence[Array], *, within: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        wide = other.astype(np.float64)
        scale = np.abs(wide).max(initial=0)
        assert np.abs(one.astype(np.float64) - wide).max(initial=0) <= within * scale


def lowered(proto: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]], *, within: float = 1e-5) -> Any:
    """What the pass makes of `proto`, which is run on `feeds` before and after; it has to be right even if nobody
    verifies it."""
    for verify in ("off", "match"):
        result = graphopt.optimize(proto, ["lower-moe"], target="onnxruntime", verify=verify)
        for feed in feeds:
            assert_close(run(result.model, feed), run(proto, feed), within=within)
    assert not result.report.undone, "what verification undid was wrong without it"
    return result


def is_lowered(result: Any) -> bool:
    return any(a.rule == "picked-experts" for a in result.report.kept)


def reasons(result: Any) -> str:
    """Why things were left as they are."""
    return "\n".join(result.report.passes[0].notes)


# ---- rows that pick matrices ---------------------------------------------------------------------------------


def test_experts_without_rows_no_rows_at_all_and_ids_from_the_end_are_computed() -> None:
    result = lowered(model(PLAIN), FEEDS)
    assert is_lowered(result) and all(
        node.op_type != "Gather" or "w1" not in node.input for node in result.model.graph.node
    )


def test_ids_beyond_the_experts_are_no_reason_to_refuse_and_an_error_before() -> None:
    with pytest.raises(Exception, match="out of data bounds"):
        run(model(PLAIN), {**FEED, "ids": IDS + 2})


@pytest.mark.parametrize("opset", [13, 14, 18, 20])
def test_every_opset_that_can_split_at_run_time_is_lowered(opset: int) -> None:
    assert is_lowered(lowered(model(PLAIN, opset=opset), FEEDS))


@pytest.mark.parametrize("opset", [9, 10, 11, 12])
def test_an_opset_that_cannot_split_at_run_time_is_left_and_the_reason_said(opset: int) -> None:
    result = lowered(model(PLAIN, opset=opset), FEEDS[:3])
    assert not is_lowered(result) and reasons(result)


@pytest.mark.parametrize("weights_first", [False, True])
@pytest.mark.parametrize("form", ["gather", "gather_nd"])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_both_orders_of_the_product_and_both_forms_of_the_gather_are_lowered(
    weights_first: bool, form: str, kind: str
) -> None:
    rows = ("ids", TensorProto.INT32 if kind == "int32" else INT64, ["S"])
    if form == "gather":
        pick = [Node("Gather", ["w1", "ids"], ["p1"], axis=0)]
    else:
        column = "wide" if kind == "int32" else "ids"
        widen = [Node("Cast", ["ids"], ["wide"], to=INT64)] if kind == "int32" else []
        pick = [*widen, Node("Unsqueeze", [column, "second"], ["i"]), Node("GatherND", ["w1", "i"], ["p1"])]
    x = ("x", FLOAT, ["S", WIDE, 1] if weights_first else ["S", 1, WIDE])
    product = Node("MatMul", ["p1", "x"] if weights_first else ["x", "p1"], ["y"])
    y = ("y", FLOAT, x[2])
    feeds = [{"x": f["x"].reshape(-1, *x[2][1:]), "ids": f["ids"].astype(kind)} for f in FEEDS]
    assert is_lowered(lowered(model([*pick, product], (x, rows), (y,)), feeds))


@pytest.mark.parametrize(
    "dtype, type_, within", [(np.float16, TensorProto.FLOAT16, 1e-3), (np.float64, TensorProto.DOUBLE, 1e-12)]
)
def test_other_precisions_are_computed_in_their_own(dtype: Any, type_: int, within: float) -> None:
    constants = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in STACKS.items()}
    proto = model(PLAIN, [("x", type_, X[2]), ROWS], [("y", type_, Y[2])], constants=constants)
    assert is_lowered(lowered(proto, [{**f, "x": f["x"].astype(dtype)} for f in FEEDS], within=within))


# ---- what must be left ----------------------------------------------------------------------------------------


def test_a_model_without_experts_is_left_even_if_it_has_weights_that_nothing_reads() -> None:
    proto = model([Node("Relu", ["x"], ["y"])], (X,), (("y", FLOAT, X[2]),))
    assert not lowered(proto, [{"x": FEED["x"]}]).report.applications


def test_a_plain_embedding_is_left_alone_without_a_word() -> None:
    proto = model([Node("Gather", ["b", "ids"], ["y"], axis=0)], (ROWS,), (("y", FLOAT, ["S", WIDE]),))
    result = lowered(proto, [{"ids": IDS}])
    assert not result.report.applications and not reasons(result)


def test_one_row_that_meets_many_experts_is_left() -> None:
    result = lowered(model(PLAIN, [("x", FLOAT, [1, 1, WIDE]), ROWS]), [{**FEED, "x": FEED["x"][:1]}])
    assert not is_lowered(result) and reasons(result)


def test_the_same_matrix_for_all_rows_is_left() -> None:
    proto = model(PLAIN, [("x", FLOAT, ["T", WIDE]), ROWS], [("y", FLOAT, ["S", "T", OUT])])
    result = lowered(proto, [{"x": FEED["x"][:3, 0], "ids": IDS}])
    assert not is_lowered(result) and reasons(result)


VECTOR = Node("Gather", ["b", "ids"], ["v"], axis=0)
FLAT = Node("Squeeze", ["h", "second"], ["f"])
VECTORS = {
    "times a matrix": ([VECTOR, FIRST, FLAT, Node("MatMul", ["f", "m"], ["l"]), Node("MatMul", ["v", "m"], ["q"]),
                        Node("Add", ["l", "q"], ["y"])], OUT),
    "beside rows": ([VECTOR, FIRST, FLAT, Node("Concat", ["f", "v"], ["y"], axis=1)], 2 * WIDE),
    "by itself": ([VECTOR, FIRST, FLAT, Node("Neg", ["v"], ["n"]), Node("MatMul", ["f", "m"], ["q"]),
                   Node("Neg", ["v"], ["y"])], WIDE),
}  # fmt: skip


@pytest.mark.parametrize("nodes, width", VECTORS.values(), ids=VECTORS)
def test_vectors_that_are_picked_beside_matrices_are_right_or_left(nodes: list[Any], width: int) -> None:
    outputs = [("y", FLOAT, ["S", width]), ("h", FLOAT, ["S", 1, WIDE])]
    result = lowered(model([PICKS[0], *nodes], outputs=outputs), FEEDS[:3])
    assert is_lowered(result) or reasons(result)


def test_a_value_as_long_as_there_are_rows_is_not_divided_among_the_experts() -> None:
    """b[S] gets an axis before it meets the rows, but it is not one number a row."""
    nodes = [
        PICKS[0], FIRST, Node("Transpose", ["h"], ["t"], perm=[0, 2, 1]), Node("Unsqueeze", ["c", "second"], ["u"]),
        Node("Add", ["t", "u"], ["s"]), Node("MatMul", ["p1", "s"], ["y"]),
    ]  # fmt: skip
    inputs = [("x", FLOAT, [WIDE, 1, WIDE]), ("c", FLOAT, [WIDE]), ("ids", INT64, [WIDE])]
    result = lowered(model(nodes, inputs, [("y", FLOAT, [WIDE, WIDE, 1])]), [{**FEED, "c": random(WIDE)}])
    assert is_lowered(result) or reasons(result)


def test_a_hidden_value_that_is_an_output_as_well_is_right_or_the_reason_is_said() -> None:
    result = lowered(model(PLAIN, outputs=[Y, ("h", FLOAT, ["S", 1, WIDE])]), FEEDS)
    assert is_lowered(result) or reasons(result)


def test_softmax_over_the_rows_in_between_is_computed_over_all_rows() -> None:
    nodes = [*PICKS, FIRST, Node("Softmax", ["h"], ["r"], axis=0), SECOND]
    result = lowered(model(nodes), FEEDS)
    assert is_lowered(result) or reasons(result)


# ---- what else reads the weights, the ids or the rows -----------------------------------------------------------


def test_weights_and_ids_that_something_else_reads_stay_for_it() -> None:
    more = [Node("ReduceSum", ["w1"], ["total"], keepdims=0), Node("Cast", ["ids"], ["c"], to=FLOAT)]
    outputs = [Y, ("total", FLOAT, []), ("c", FLOAT, ["S"])]
    assert is_lowered(lowered(model([*PLAIN, *more], outputs=outputs), FEEDS))


def test_weights_that_are_an_output_stay_one() -> None:
    result = lowered(model(PLAIN, outputs=[Y, ("w1", FLOAT, [EXPERTS, WIDE, WIDE])]), FEEDS)
    assert is_lowered(result) or reasons(result)


@pytest.mark.parametrize("default", [False, True], ids=["input", "input with a default"])
def test_weights_that_the_caller_gives_are_left(default: bool) -> None:
    constants = {k: v for k, v in STACKS.items() if default or k != "w1"}
    proto = model(PLAIN, [X, ROWS, ("w1", FLOAT, [EXPERTS, WIDE, WIDE])], constants=constants)
    result = lowered(proto, [{**FEED, "w1": random(EXPERTS, WIDE, WIDE, seed=9)}])
    assert any("w1" in node.input for node in result.model.graph.node) and "w1 is not constant" in reasons(result)


@pytest.mark.parametrize("choices", [2, "k"])
def test_ids_with_an_axis_for_each_choice_are_lowered_if_their_number_is_known(choices: int | str) -> None:
    nodes = [PICKS[0], Node("MatMul", ["x", "p1"], ["y"])]
    inputs = [("x", FLOAT, ["T", 1, 1, WIDE]), ("ids", INT64, ["T", choices])]
    proto = model(nodes, inputs, [("y", FLOAT, ["T", choices, 1, WIDE])])
    result = lowered(proto, [{"x": random(3, 1, 1, WIDE), "ids": IDS.reshape(3, 2)}])
    assert is_lowered(result) if choices == 2 else "one axis" in reasons(result)


def test_ids_whose_number_is_not_known_are_left_with_the_reason() -> None:
    found = [Node("NonZero", ["flags"], ["n"]), Node("Squeeze", ["n", "first"], ["ids"])]
    inputs = [X, ("flags", TensorProto.BOOL, [EXPERTS])]
    result = lowered(model([*found, *PLAIN], inputs), [{"x": FEED["x"][:2], "flags": np.array([1, 0, 1, 0], bool)}])
    assert not is_lowered(result) and "certain" in reasons(result)


def test_weights_of_different_numbers_of_experts_are_left_with_the_reason() -> None:
    result = lowered(model(PLAIN, constants={**STACKS, "w2": random(EXPERTS + 1, WIDE, OUT)}), FEEDS[:3])
    assert not is_lowered(result) and "numbers of experts" in reasons(result)


# ---- more layers, more places -----------------------------------------------------------------------------------

AGAIN = [
    Node("ReduceMean", ["y"], ["mean"], axes=[0], keepdims=1), Node("Sub", ["y", "mean"], ["centred"]),
    Node("Gather", ["w3", "ids2"], ["p3"], axis=0), Node("MatMul", ["centred", "p3"], ["z"]),
]  # fmt: skip
"""A second layer on rows that the first has mixed."""
Z = ("z", FLOAT, ["S", 1, WIDE])


@pytest.mark.parametrize("shared", [False, True], ids=["own router", "shared router"])
def test_two_layers_are_each_lowered_or_left(shared: bool) -> None:
    router = [Node("Identity" if shared else "Neg", ["ids"], ["ids2"])]
    proto = model(
        [*router, *PLAIN, *AGAIN], outputs=[Z], constants={**STACKS, "w3": random(EXPERTS, OUT, WIDE)}, opset=13
    )
    result = lowered(proto, [FEEDS[0], FEEDS[2]])
    assert len(result.report.kept) == 2 or (shared and reasons(result))


def test_two_layers_that_read_the_same_ids_are_lowered_or_left() -> None:
    again = [*AGAIN[:2], Node("Gather", ["w3", "ids"], ["p3"], axis=0), AGAIN[3]]
    proto = model([*PLAIN, *again], outputs=[Z], constants={**STACKS, "w3": random(EXPERTS, OUT, WIDE)}, opset=13)
    result = lowered(proto, [FEEDS[0], FEEDS[2]])
    assert is_lowered(result) or reasons(result)


MIXED = [Node("ReduceMean", ["first result"], ["mean"], axes=[0], keepdims=1)]
TWO: dict[str, tuple[list[Any], int, str]] = {
    "of their own": ([*PICKS, FIRST, Node("Neg", ["h"], ["first result"]), Node("MatMul", ["x", "p2"], ["y"])], 2, ""),
    "that share a hidden value": (
        [*PICKS, FIRST, Node("MatMul", ["h", "p1"], ["g"]), Node("Neg", ["g"], ["first result"]),
         Node("MatMul", ["h", "p2"], ["y"])], 1, ""),
    "of which one waits for the other": (
        [*PICKS, FIRST, Node("MatMul", ["h", "p1"], ["g"]), Node("Neg", ["g"], ["first result"]), *MIXED,
         Node("Mul", ["x", "mean"], ["xm"]), Node("Add", ["h", "xm"], ["hx"]), Node("MatMul", ["hx", "p2"], ["y"])],
        0, "is computed after a result of the experts is read"),
}  # fmt: skip


@pytest.mark.parametrize("nodes, regions, reason", TWO.values(), ids=TWO)
def test_layers_that_share_a_router_are_computed_where_nothing_waits(
    nodes: list[Any], regions: int, reason: str
) -> None:
    """The first result is read before the second is done."""
    result = lowered(model(nodes, outputs=[("first result", FLOAT, ["S", 1, WIDE]), Y], opset=17), FEEDS[::2])
    assert sum(a.rule == "picked-experts" for a in result.report.kept) == regions and reason in reasons(result)


def test_experts_in_a_branch_are_computed_in_the_branch() -> None:
    branch = helper.make_graph(PLAIN, "then", [], [helper.make_tensor_value_info(*Y)])
    zeros = [Node("MatMul", ["x", "m"], ["mm"]), Node("Neg", ["mm"], ["other"])]
    other = helper.make_graph(zeros, "else", [], [helper.make_tensor_value_info("other", FLOAT, ["S", 1, OUT])])
    proto = model(
        [Node("If", ["flag"], ["result"], then_branch=branch, else_branch=other)],
        [("flag", TensorProto.BOOL, []), X, ROWS], [("result", FLOAT, ["S", 1, OUT])],
    )  # fmt: skip
    result = lowered(proto, [{**FEED, "flag": np.array(flag)} for flag in (True, False)])
    assert is_lowered(result) or reasons(result)


# ---- odd experts -------------------------------------------------------------------------------------------------

HALVES = np.array([WIDE // 2, WIDE // 2])
ODD: dict[str, list[Any]] = {
    "weights divided after they are picked": [
        PICKS[0], Node("Split", ["p1", "halves"], ["left", "right"], axis=2), Node("MatMul", ["x", "left"], ["l"]),
        Node("MatMul", ["x", "right"], ["r"]), Node("Concat", ["r", "l"], ["y"], axis=2),
    ],
    "weights transposed after they are picked": [
        PICKS[0], Node("Transpose", ["p1"], ["t"], perm=[0, 2, 1]), Node("MatMul", ["x", "t"], ["y"]),
    ],
    "product of two weights": [
        PICKS[0], Node("MatMul", ["p1", "p1"], ["pp"]), Node("MatMul", ["x", "pp"], ["y"]),
    ],
    "softmax and layer norm of a row": [
        PICKS[0], FIRST, Node("Softmax", ["h"], ["s"], axis=-1), Node("LayerNormalization", ["s", "scale"], ["n"]),
        Node("Gather", ["w1", "ids"], ["q"], axis=0), Node("MatMul", ["n", "q"], ["y"]),
    ],
    "row cut and joined": [
        PICKS[0], FIRST, Node("Reshape", ["h", "heads"], ["hh"]), Node("Softmax", ["hh"], ["s"], axis=1),
        Node("Reshape", ["s", "joined"], ["n"]), Node("MatMul", ["n", "p1"], ["y"]),
    ],
    "bias of an expert": [
        PICKS[0], VECTOR, Node("Unsqueeze", ["v", "second"], ["vv"]), FIRST, Node("Add", ["h", "vv"], ["y"]),
    ],
    "weight scaled by the row": [
        PICKS[0], Node("Mul", ["p1", "x"], ["scaled"]), Node("MatMul", ["x", "scaled"], ["y"]),
    ],
    "number of the row": [
        PICKS[0], FIRST, Node("CumSum", ["h", "zero"], ["c"]), Node("MatMul", ["c", "p1"], ["y"]),
    ],
    "rows backwards": [
        PICKS[0], FIRST, Node("Slice", ["h", "last", "far", "first", "back"], ["c"]),
        Node("MatMul", ["c", "p1"], ["y"]),
    ],
}  # fmt: skip
EXTRA = {
    "halves": HALVES, "scale": random(WIDE, seed=7), "heads": np.array([-1, 2, WIDE // 2]),
    "joined": np.array([-1, 1, WIDE]), "zero": np.array(0), "last": np.array([-1]), "far": np.array([-(10**6)]),
    "back": np.array([-1]),
}  # fmt: skip


@pytest.mark.parametrize("nodes", ODD.values(), ids=ODD)
@pytest.mark.parametrize("experts", [EXPERTS, 1])
def test_odd_experts_are_right_or_left(nodes: list[Any], experts: int) -> None:
    stacks = {k: v[:experts] if k in ("w1", "w2", "b") else v for k, v in STACKS.items()}
    proto = model(nodes, outputs=[("y", FLOAT, X[2])], constants={**stacks, **EXTRA}, opset=17)
    feeds = [{**f, "ids": f["ids"] % experts} for f in FEEDS]
    result = lowered(proto, feeds[:1] + feeds[2:] if "Reshape" in str(nodes) else feeds)
    assert is_lowered(result) or reasons(result)


def test_one_row_of_a_static_model_is_the_row_of_its_expert() -> None:
    inputs = [("x", FLOAT, [1, 1, WIDE]), ("ids", INT64, [1])]
    feeds = [{"x": FEED["x"][:1], "ids": np.array([expert])} for expert in range(EXPERTS)]
    assert is_lowered(lowered(model(PLAIN, inputs, [("y", FLOAT, [1, 1, OUT])]), feeds))


def test_a_single_row_that_is_repeated_to_many_is_not_taken_for_as_many_rows() -> None:
    """Expanding makes n rows out of one, and k of each: i // k is no row of what was there."""
    nodes = [
        Node("Unsqueeze", ["x", "second"], ["u"]), Node("Expand", ["u", "sizes"], ["e"]),
        Node("Reshape", ["e", "rows"], ["r"]), Node("Gather", ["r", "ids"], ["g"], axis=0),
        PICKS[0], Node("Unsqueeze", ["g", "second"], ["gg"]), Node("MatMul", ["gg", "p1"], ["y"]),
    ]  # fmt: skip
    constants = {**STACKS, "sizes": np.array([3, 2, WIDE]), "rows": np.array([6, WIDE])}
    proto = model(nodes, [("x", FLOAT, [1, WIDE]), ROWS], [("y", FLOAT, X[2])], constants=constants)
    lowered(proto, [{"x": FEED["x"][0], "ids": IDS}])


@pytest.mark.parametrize("equation", ["ti,tkio", "ti,tkio->tko"])
def test_an_einsum_of_a_table_is_lowered_if_it_sums_each_row_alone(equation: str) -> None:
    einsum = Node("Einsum", ["x", "p1"], ["y"], equation=equation)
    inputs = [("x", FLOAT, ["T", WIDE]), ("ids", INT64, ["T", 2])]
    proto = model([PICKS[0], einsum], inputs, [("y", FLOAT, ["T", 2, WIDE] if "->" in equation else [2, WIDE])])
    result = lowered(proto, [{"x": random(3, WIDE), "ids": IDS.reshape(3, 2)}])
    assert is_lowered(result) if "->" in equation else reasons(result)
