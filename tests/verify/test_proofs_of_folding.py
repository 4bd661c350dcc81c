"""Batch norms that a tool folded into convolutions: rounded right they are proved, folded wrongly never."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from test_prove_models import decided, model, n

IMAGE = {"x": (TensorProto.FLOAT, [2, 20, 9, 11])}
C = 20
RNG = np.random.default_rng(3)
NUMBERS: dict[str, Any] = {
    "w": RNG.standard_normal((C, C, 3, 3)),
    "b": RNG.standard_normal(C),
    "scale": RNG.uniform(0.5, 1.5, C),
    "shift": RNG.standard_normal(C),
    "mean": RNG.standard_normal(C),
    "var": RNG.uniform(0.1, 2.0, C),
    "gain": RNG.uniform(0.5, 1.5, (C, 1, 1)),
    "lift": RNG.standard_normal((1, C, 1, 1)),
}
NUMBERS = {k: v.astype(np.float32) for k, v in NUMBERS.items()}
CONV = {"pads": [1, 1, 1, 1]}
WITHOUT = n("Conv", "x w b", "c", **CONV)
NORM = n("BatchNormalization", "c scale shift mean var", "d", epsilon=1e-5)


def normed(*after: onnx.NodeProto, first: onnx.NodeProto = WITHOUT, **changes: Any) -> onnx.ModelProto:
    return model([first, NORM, *after, n("Relu", after[-1].output[0] if after else "d", "y")],
                 weights=NUMBERS | changes, inputs=IMAGE)  # fmt: skip


def folded(
    *,
    eps: float = 1e-5,
    sign: float = -1.0,
    beta: float = 1.0,
    root: float = 0.5,
    scaled: bool = False,
    transposed: bool = False,
    off: float = 0.0,
    offset_off: float = 0.0,
    attributes: dict[str, Any] | None = None,
    dtype: Any = np.float32,
) -> onnx.ModelProto:
    """The same with all numbers in the convolution, computed in float32 as tools do it, and perhaps wrongly."""
    c = {k: v.astype(dtype) for k, v in NUMBERS.items()}
    factor = c["scale"] / (c["var"] + dtype(eps)) ** dtype(root)
    w, b = c["w"] * factor[:, None, None, None], (c["b"] + dtype(sign) * c["mean"]) * factor + dtype(beta) * c["shift"]
    if scaled:
        gain = c["gain"].reshape(-1)
        w, b = w * gain[:, None, None, None], b * gain + c["lift"].reshape(-1)
    if transposed:
        w = w.transpose(1, 0, 2, 3)
    w[7] *= 1.0 + off
    b[7] += offset_off * abs(b[7])
    nodes = [n("Conv", "x w b", "c", **(CONV if attributes is None else attributes)), n("Relu", "c", "y")]
    return model(nodes, weights={"w": w, "b": b}, inputs=IMAGE)


BEHIND = (n("Mul", "d gain", "e"), n("Add", "lift e", "f"))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_folded_batch_norm_is_proved_and_the_deviation_of_its_numbers_told(scaled: bool):
    found = decided(normed(*BEHIND) if scaled else normed(), folded(scaled=scaled))
    assert found.level == "proof~const" and found.folded == 1
    assert 0.1 < found.units < 6.0


def test_what_is_folded_in_part_is_proved():
    halfway = folded()
    nodes = [n("Conv", "x w b", "d", **CONV), *BEHIND, n("Relu", "f", "y")]
    halfway.graph.ClearField("node")
    halfway.graph.node.extend(nodes)
    given = model([], weights={k: NUMBERS[k] for k in ("gain", "lift")}, outputs=()).graph.initializer
    halfway.graph.initializer.extend(given)
    found = decided(normed(*BEHIND), halfway)
    assert found.level == "proof~const" and found.folded == 1


def test_a_convolution_without_a_bias_and_one_in_groups_are_proved():
    first = n("Conv", "x w", "c", group=5, **CONV)
    w = NUMBERS["w"][:, :4]
    factor = NUMBERS["scale"] / np.sqrt(NUMBERS["var"] + np.float32(1e-5))
    b = NUMBERS["shift"] - NUMBERS["mean"] * factor
    nodes = [n("Conv", "x w b", "c", group=5, **CONV), n("Relu", "c", "y")]
    after = model(nodes, weights={"w": w * factor[:, None, None, None], "b": b}, inputs=IMAGE)
    assert decided(normed(first=first, w=w), after).level == "proof~const"


WRONG: dict[str, dict[str, Any]] = {
    "eps tenfold": {"eps": 1e-4},
    "mean added": {"sign": 1.0},
    "shift dropped": {"beta": 0.0},
    "root forgotten": {"root": 1.0},
    "one channel off by 1e-5": {"off": 1e-5},
    "one offset off by 1e-4": {"offset_off": 1e-4},
    "weights transposed": {"transposed": True},
    "other padding": {"attributes": {"pads": [0, 0, 2, 2]}},
    "padding left to sizes that the file states": {"attributes": {"auto_pad": "SAME_UPPER"}},
    "computed in half precision": {"dtype": np.float16},
    "a scale that is not there": {"scaled": True},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_folded_wrongly_is_never_proved(what: str):
    assert decided(normed(), folded(**WRONG[what])).level in ("undecided", "refuted")


@pytest.mark.parametrize("what", ["gain for rows", "norm behind relu", "training"])
def test_what_cannot_be_folded_is_never_proved(what: str):
    before = normed()
    if what == "gain for rows":  # 9 rows, one of which could be taken for a channel
        gain = np.ones((1, 1, 9, 1), np.float32) * 1.5
        before = normed(n("Mul", "d gain", "e"), gain=gain)
    elif what == "norm behind relu":
        nodes = [WITHOUT, n("Relu", "c", "r"), n("BatchNormalization", "r scale shift mean var", "y", epsilon=1e-5)]
        before = model(nodes, weights=NUMBERS, inputs=IMAGE)
    else:
        before.graph.node[1].CopyFrom(
            n("BatchNormalization", "c scale shift mean var", "d m v", epsilon=1e-5, training_mode=1)
        )
    assert decided(before, folded()).level in ("undecided", "refuted")


@pytest.mark.parametrize("differing", ["before", "after"])
def test_two_convolutions_that_differ_by_less_than_rounding_stay_two(differing: str):
    """Their difference is not zero."""
    other = {"v": NUMBERS["w"] * np.float32(1.0000002)}
    assert np.any(other["v"] != NUMBERS["w"])
    nodes = [WITHOUT, n("Conv", "x v b", "e", **CONV), n("Sub", "c e", "y")]
    two = model(nodes, weights=NUMBERS | other, inputs=IMAGE)
    one = model([WITHOUT, n("Sub", "c c", "y")], weights=NUMBERS, inputs=IMAGE)
    assert not decided(*((two, one) if differing == "before" else (one, two))).proof.holds


# ---- linear layers ---------------------------------------------------------------------------------------------------

ROWS = {"x": (TensorProto.FLOAT, [5, 24])}
LAYER: dict[str, Any] = {
    "w": RNG.standard_normal((C, 24)),
    "wt": np.zeros(0),
    "gain": RNG.uniform(0.5, 1.5, C),
    "lift": RNG.standard_normal((1, C)),
} | {k: NUMBERS[k] for k in ("b", "scale", "shift", "mean", "var")}
LAYER["wt"] = LAYER["w"].T
LAYER = {k: v.astype(np.float32) for k, v in LAYER.items()}
FIRSTS = {
    "Gemm": [n("Gemm", "x w b", "c", transB=1)],
    "Gemm of a turned weight": [n("Gemm", "x wt b", "c")],
    "MatMul": [n("MatMul", "x wt", "m"), n("Add", "m b", "c")],
}


def layer(first: list[onnx.NodeProto], *after: onnx.NodeProto, **options: Any) -> onnx.ModelProto:
    last = after[-1].output[0] if after else "c"
    return model([*first, *after, n("Relu", last, "y")], weights=LAYER, **({"inputs": ROWS} | options))


def layer_folded(eps: float = 1e-5, sign: float = -1.0, off: float = 0.0, gain: bool = True) -> onnx.ModelProto:
    c = LAYER
    factor = c["scale"] / np.sqrt(c["var"] + np.float32(eps))
    w, b = c["w"] * factor[:, None], (c["b"] + np.float32(sign) * c["mean"]) * factor + c["shift"]
    if gain:
        w, b = w * c["gain"][:, None], b * c["gain"] + c["lift"].reshape(-1)
    w[3] *= 1.0 + off
    return model([n("Gemm", "x w b", "c", transB=1), n("Relu", "c", "y")], weights={"w": w, "b": b}, inputs=ROWS)


BEHIND_LAYER = (NORM, n("Mul", "d gain", "e"), n("Add", "lift e", "f"))


@pytest.mark.parametrize("first", FIRSTS)
def test_a_batch_norm_that_was_folded_into_a_linear_layer_is_proved(first: str):
    found = decided(layer(FIRSTS[first], *BEHIND_LAYER), layer_folded())
    assert found.level == "proof~const" and found.folded == 1 and 0.1 < found.units < 6.0


@pytest.mark.parametrize("wrong", [{"eps": 1e-4}, {"sign": 1.0}, {"off": 1e-5}, {"gain": False}])
def test_what_is_folded_wrongly_into_a_linear_layer_is_never_proved(wrong: dict[str, Any]):
    for first in FIRSTS.values():
        assert not decided(layer(first, *BEHIND_LAYER), layer_folded(**wrong)).proof.holds


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_what_else_a_gemm_does_is_not_left_out(options: dict[str, Any]):
    inputs = {"x": (TensorProto.FLOAT, [24, 24])}
    given = {"w": LAYER["w"], "b": LAYER["b"]}
    pair = [
        model([n("Gemm", "x w b", "c", transB=1, **o), n("Relu", "c", "y")], weights=given, inputs=inputs)
        for o in (options, {})
    ]
    assert not decided(*pair).proof.holds
    assert not decided(*reversed(pair)).proof.holds


def test_a_norm_of_another_axis_than_that_of_the_channels_is_not_folded():
    """Of three axes a batch norm has its channels on the second, a product on the last."""
    inputs = {"x": (TensorProto.FLOAT, [5, C, 24])}
    before = layer(FIRSTS["MatMul"], *BEHIND_LAYER, inputs=inputs)
    c = LAYER
    factor = c["scale"] / np.sqrt(c["var"] + np.float32(1e-5))
    w = c["w"] * (factor * c["gain"])[:, None]
    b = ((c["b"] - c["mean"]) * factor + c["shift"]) * c["gain"] + c["lift"].reshape(-1)
    nodes = [n("MatMul", "x w", "m"), n("Add", "m b", "c"), n("Relu", "c", "y")]
    after = model(nodes, weights={"w": w.T.copy(), "b": b}, inputs=inputs)
    assert not decided(before, after).proof.holds
