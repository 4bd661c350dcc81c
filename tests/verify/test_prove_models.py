"""Proof of two files: right pairs are proved, wrong ones never, and what differs in float64 is refuted with inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.verify import apart
from graphopt.verify.apart import prove_models
from graphopt.verify.prove_models import ModelProof, compare_models

RNG = np.random.default_rng(5)
WEIGHTS = {
    "w1": RNG.standard_normal((6, 8)),
    "b1": RNG.standard_normal(8),
    "w2": RNG.standard_normal((8, 6)),
    "gain": RNG.uniform(0.5, 1.5, 6),
    "shift": RNG.standard_normal(6),
}


def model(
    nodes: Sequence[Any],
    *,
    weights: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model of inputs "n, 4, 6" unless said otherwise; weights in float32 unless they are integers."""
    given = {"x": (dtype, ["n", 4, 6])} if inputs is None else inputs
    stored = [
        numpy_helper.from_array(a if (a := np.asarray(v)).dtype.kind in "iub" else a.astype(np.float32), k)
        for k, v in (weights or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "pair",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in given.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        stored,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto)


def n(op: str, operands: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, operands.split(), output.split(), **attributes)


def block(**changes: Any) -> onnx.ModelProto:
    """A transformer's block in small: a linear layer, GELU, another one, a residual and a normalisation. Shapes are
    computed, as exporters write them."""
    c: dict[str, Any] = {"axis": -1, "scale": 0.5, "order": "h x", "activation": "Erf", "swap": False, **changes}
    nodes = [
        n("Shape", "x", "size"),
        n("Gather", "size rows", "count", axis=0),
        n("Concat", "count rest", "flat", axis=0),
        n("Reshape", "x flat", "x2"),
        n("MatMul", "x2 w1", "m1"),
        n("Add", "m1 b1", "a1"),
        n("Div", "a1 root2", "e1"),
        n(c["activation"], "e1", "e2"),
        n("Add", "e2 one", "e3"),
        n("Mul", "a1 e3", "g1"),
        n("Mul", "g1 half", "g2"),
        n("MatMul", "g2 w2", "m2"),
        n("Reshape", "m2 size", "h"),
        n("Sub" if c["swap"] else "Add", c["order"], "r"),
        n("LayerNormalization", "r gain shift", "y", axis=c["axis"], epsilon=1e-5),
    ]
    weights = {
        **WEIGHTS,
        "rows": np.asarray([0]),
        "rest": np.asarray([4, 6]),
        "root2": np.asarray(2.0**0.5),
        "one": np.asarray(1.0),
        "half": np.asarray(c["scale"]),
    }
    if c["axis"] == -2:
        weights |= {"gain": np.ones((4, 6)), "shift": np.zeros((4, 6))}
    return model(nodes, weights=weights)


def decided(before: Any, after: Any, **options: Any) -> ModelProof:
    return compare_models(before, after, seconds=20, **options)


# ---- right pairs -------------------------------------------------------------------------------------------------


def test_what_clean_up_makes_of_a_block_is_proved_for_all_large_weights():
    before = block()
    after = graphopt.optimize(before, "clean-up").model
    assert len(after.graph.node) < len(before.graph.node)
    found = decided(before, after)
    assert found.level == "proof" and found.proof.weights == "large", found
    assert found.proof.log2_error is not None and found.proof.log2_error < -60
    assert found.sizes["x"][0] not in (4, 6) and "erf" in found.proof.functions


def test_what_another_tool_makes_of_a_block_is_proved():
    onnxsim = pytest.importorskip("onnxsim")
    after, _ = onnxsim.simplify(block())
    assert len(after.graph.node) < len(block().graph.node)
    found = decided(block(), after)
    assert found.proof.holds, found


def _one(op: str, before: str, after: Sequence[Any], weights: dict[str, Any], **attributes: Any) -> tuple[Any, Any]:
    return model([n(op, before, "y", **attributes)], weights=weights), model(after, weights=weights)


PROVED: dict[str, Callable[[], tuple[str, Any, Any]]] = {
    "a sum and its order": lambda: ("proof", *_one("Add", "x b", [n("Add", "b x", "y")], {"b": WEIGHTS["gain"]})),
    "a function of onnx and its body": lambda: (
        "proof",
        *_one("MeanVarianceNormalization", "x", [
            n("ReduceMean", "x axes", "m"), n("Sub", "x m", "d"), n("Mul", "d d", "q"),
            n("ReduceMean", "q axes", "v"), n("Sqrt", "v", "s"), n("Add", "s tiny", "t"), n("Div", "d t", "y"),
        ], {"axes": np.asarray([0, 2]), "tiny": np.float32(1e-9)}, axes=[0, 2]),
    ),
    "an op that nothing is known of": lambda: (
        "proof",
        model([n("Identity", "x", "i"), n("Celu", "i", "c"), n("Det", "c", "y")], inputs={"x": (1, [3, 3])}),
        model([n("Celu", "x", "c"), n("Det", "c", "y")], inputs={"x": (1, [3, 3])}),
    ),
    "a quotient as a product with a rounded number": lambda: (
        "proof~const", *_one("Div", "x three", [n("Mul", "x third", "y")], {"three": 3.0, "third": np.float32(1 / 3)})
    ),
    "a folded root": lambda: (
        "proof~const",
        model([n("Sqrt", "two", "r"), n("Mul", "x r", "y")], weights={"two": 2.0}),
        model([n("Mul", "x r", "y")], weights={"r": np.float32(2.0**0.5)}),
    ),
    "a folded exp": lambda: (
        "proof~const",
        model([n("Exp", "two", "r"), n("Mul", "x r", "y")], weights={"two": 2.0}),
        model([n("Mul", "x r", "y")], weights={"r": np.float32(np.exp(2.0))}),
    ),
    "integers that are looked up, left open": lambda: (
        "proof",
        model([n("Identity", "k", "i"), n("Gather", "w2 i", "y", axis=0)], weights={"w2": WEIGHTS["w2"]},
              inputs={"k": (TensorProto.INT64, ["n"])}),
        model([n("Gather", "w2 k", "y", axis=0)], weights={"w2": WEIGHTS["w2"]},
              inputs={"k": (TensorProto.INT64, ["n"])}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVED)
def test_right_pairs_are_proved(name: str):
    level, before, after = PROVED[name]()
    found = decided(before, after)
    assert found.level == level, found


def test_what_needs_numbers_of_integers_says_that_they_were_drawn():
    """A product with a selection is a selection of a product: only at known places can that be seen."""
    indices = {"k": (TensorProto.INT64, [5])}
    weights = {"w2": WEIGHTS["w2"], "twice": 2 * WEIGHTS["w2"].astype(np.float32), "two": 2.0}
    before = model([n("Gather", "w2 k", "g"), n("Mul", "g two", "y")], weights=weights, inputs=indices)
    after = model([n("Gather", "twice k", "y")], weights=weights, inputs=indices)
    found = decided(before, after, examples={"k": np.asarray([3, 1, 0, 7, 7])})
    assert found.level == "executed" or "integer and truth inputs" in found.proof.sampled, found


def test_outputs_of_constants_are_executed_and_not_called_proved():
    before = model([n("Exp", "c", "e"), n("Erf", "e", "y")], weights={"c": WEIGHTS["gain"]})
    after = graphopt.optimize(before, "clean-up").model
    found = decided(before, after)
    assert found.level == "executed" and found.executed == ("y",) and not found.proof.holds
    off = model([n("Identity", "c", "y")], weights={"c": WEIGHTS["gain"]})
    assert decided(before, off).level in ("undecided", "refuted")


# ---- wrong pairs -------------------------------------------------------------------------------------------------

WRONG = {
    "a constant that is 1 % off": {"scale": 0.505},
    "another axis": {"axis": -2},
    "another function": {"activation": "Tanh"},
    "a difference for a sum": {"swap": True},
    "operands of a difference swapped": {"swap": True, "order": "x h"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pairs_are_refuted_with_inputs(name: str):
    after = block(**WRONG[name])
    found = decided(block(swap=True) if "swapped" in name else block(), after)
    assert found.level == "refuted", found
    assert found.counterexample is not None and found.counterexample["x"].shape == found.sizes["x"]
    results = [_run(m, found.counterexample) for m in (block(swap="swapped" in name), after)]
    assert np.max(np.abs(results[0] - results[1])) > 1e-5


def _run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(proto.SerializeToString()).run(["y"], dict(feeds))[0]


@pytest.mark.parametrize("seed", range(12))
def test_numbers_that_are_sorted_are_not_proved_to_be_in_the_order_that_one_point_has(seed: int):
    """Of two numbers either order comes about by chance at every other point."""
    pair = {"inputs": {"x": (1, [2])}, "weights": {"k": np.asarray([2])}}
    unsorted = model([n("Identity", "x", "y")], **pair)
    down = model([n("TopK", "x k", "y i", axis=0)], **pair)
    up = model([n("TopK", "x k", "y i", axis=0, largest=0)], **pair)
    assert not decided(down, unsorted, seed=seed).proof.holds
    assert not decided(down, up, seed=seed).proof.holds
    renamed = model(
        [n("Identity", "x", "z"), n("Neg", "z", "w"), n("Neg", "w", "v"), n("TopK", "v k", "y i", axis=0)], **pair
    )
    assert decided(down, renamed, seed=seed).proof.holds


def test_a_dropped_node_is_refuted():
    before = model([n("Relu", "x", "r"), n("Mul", "r r", "y")])
    assert decided(before, model([n("Mul", "x x", "y")])).level == "refuted"


def test_swapped_outputs_are_refuted():
    nodes = [n("Relu", "x", "a"), n("Neg", "x", "b")], [n("Relu", "x", "b"), n("Neg", "x", "a")]
    before, after = (model(side, outputs=["a", "b"]) for side in nodes)
    assert decided(before, after).level == "refuted"


def test_a_shape_that_only_holds_for_one_batch_is_refuted():
    before = model([n("Reshape", "x s", "y")], weights={"s": np.asarray([0, 24])})
    after = model([n("Reshape", "x s", "y")], weights={"s": np.asarray([-1, 12])})
    assert not decided(before, after).proof.holds


def test_another_type_is_not_proved():
    before = model([n("Cast", "x", "y", to=TensorProto.FLOAT)])
    after = model([n("Cast", "x", "y", to=TensorProto.DOUBLE)])
    found = decided(before, after)
    assert not found.proof.holds and "float64" in found.proof.reason


def test_a_close_number_beyond_what_constants_are_read_within_is_not_proved():
    before, after = (model([n("Mul", "x c", "y")], weights={"c": c}) for c in (0.73194, 0.73195))
    assert decided(before, after).level == "refuted"


def test_random_numbers_are_undecided():
    pair = [model([n("RandomNormalLike", "x", "r"), n("Add", "x r", "y")]) for _ in range(2)]
    found = decided(*pair)
    assert found.level == "undecided" and "random" in found.proof.reason


# ---- interfaces and processes ------------------------------------------------------------------------------------


def test_interfaces_that_differ_are_errors_that_say_so():
    before = model([n("Relu", "x", "y")])
    other_input = model([n("Relu", "z", "y")], inputs={"z": (TensorProto.FLOAT, ["n", 4, 6])})
    more = model([n("Relu", "x", "y"), n("Neg", "x", "v")], outputs=["y", "v"])
    with pytest.raises(ModelError, match="has no input 'x'"):
        decided(before, other_input)
    with pytest.raises(ModelError, match="has no output 'v'"):
        decided(more, before)
    with pytest.raises(ModelError, match=r"sizes .* expected sizes that both accept"):
        decided(before, model([n("Relu", "x", "y")], inputs={"x": (TensorProto.FLOAT, [2, 5, 6])}))
    with pytest.raises(ModelError, match="float16 in the second"):
        decided(before, model([n("Relu", "x", "y")], dtype=TensorProto.FLOAT16))
    with pytest.raises(ModelError, match="example of 'x' is"):
        decided(before, before, examples={"x": np.zeros((2, 2), np.float32)})


def test_files_are_compared_in_a_process_of_their_own(tmp_path, monkeypatch):
    paths = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for path, proto in zip(paths, (block(), graphopt.optimize(block(), "clean-up").model), strict=True):
        onnx.save(proto, path)
    found = prove_models(*paths, seed=7)
    assert found.level == "proof" and found.proof.seed == 7
    with pytest.raises(ModelError, match="no such file"):
        prove_models(paths[0], tmp_path / "missing.onnx")
    late = prove_models(*paths, seconds=0.01)
    assert late.level == "undecided" and "seconds" in late.proof.reason
    monkeypatch.setattr(apart.sys, "executable", "/bin/false")
    died = prove_models(*paths)
    assert died.level == "undecided" and "ended with code 1" in died.proof.reason
