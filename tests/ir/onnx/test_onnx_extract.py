"""A part of an ONNX model is a model of its own: it runs, is saved, and shares the weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_helpers import parse, run

from graphopt.errors import UnsupportedError
from graphopt.ir.load import load_model
from graphopt.ir.onnx.model import OnnxModel

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def two_layers() -> onnx.ModelProto:
    model = parse("""
        agraph (float[2, 3] x, bool c) => (float[2, 3] y) <float[3, 3] w> {
            a = MatMul(x, w)
            b = Relu(a)
            one = Constant <value = float[1] {1.0}> ()
            d = MatMul(b, w)
            y = If (c) <
                then_branch = yes () => (float[2, 3] p) { p = Add(d, one) },
                else_branch = no () => (float[2, 3] q) { q = Neg(b) }
            >
        }
    """)
    weight = numpy_helper.from_array(np.arange(9, dtype=np.float32).reshape(3, 3) / 4, "w")
    del model.graph.initializer[:]
    model.graph.initializer.append(weight)
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def model() -> OnnxModel:
    return load_model(two_layers())


def named(model: OnnxModel, *names: str) -> list:
    found = {v.name: v for n in model.main.nodes() for v in model.main.results(n)}
    found |= {v.name: v for v in model.main.inputs()}
    return [found[name] for name in names]


def halves(model: OnnxModel) -> tuple[OnnxModel, OnnxModel]:
    nodes = [n for n in model.main.nodes() if n.op_type != "Constant"]
    (b,) = named(model, "b")
    first = model.extract(nodes[:2], named(model, "x"), [b])
    return first, model.extract(nodes[2:], [b, *named(model, "c")], model.main.outputs())


@pytest.mark.parametrize("flag", [True, False])
def test_two_halves_compute_what_the_whole_does_bodies_included(model: OnnxModel, flag: bool) -> None:
    first, second = halves(model)
    (b,) = run(first.export(), {"x": X})
    (got,) = run(second.export(), {"b": b, "c": np.array(flag)})
    (expected,) = run(two_layers(), {"x": X, "c": np.array(flag)})
    assert expected.tobytes() == got.tobytes()
    assert len(second.regions()) == 3


def test_names_types_and_the_kind_of_the_model_are_kept(model: OnnxModel) -> None:
    first, second = halves(model)
    assert isinstance(first.export(), onnx.ModelProto)
    onnx.checker.check_model(first.export(), full_check=True)
    assert [i.name for i in second.export().graph.input] == ["b", "c"]
    assert str(second.main.type(second.main.inputs()[0])) == "float32[2,3]"
    assert str(first.main.type(first.main.outputs()[0])) == "float32[2,3]"


def test_weights_are_shared_with_the_whole(model: OnnxModel) -> None:
    first, second = halves(model)

    def identity(part: OnnxModel) -> object:
        value = part.ir.graph.initializers["w"]
        return part.main.constant(value).identity

    assert identity(first) == identity(second) == identity(model)
    assert first.weights() == [("w", 9, 36)]
    assert second.weights()[0] == ("w", 9, 36) and len(second.weights()) == 2


def test_a_part_can_be_saved_refreshed_and_cut_again(model: OnnxModel, tmp_path) -> None:
    first, _ = halves(model)
    first.refresh()
    first.save(tmp_path / "part.onnx")
    again = first.extract(list(first.main.nodes()), first.main.inputs(), first.main.outputs())
    results = [run(p, {"x": X})[0] for p in (first.export(), onnx.load(tmp_path / "part.onnx"), again.export())]
    assert len({r.tobytes() for r in results}) == 1


def test_a_value_from_elsewhere_is_refused_by_name(model: OnnxModel) -> None:
    node = next(n for n in model.main.nodes() if n.op_type == "Relu")
    with pytest.raises(UnsupportedError, match="reads 'a', which is neither an input nor a constant"):
        model.extract([node], [], model.main.results(node))


def test_a_deferred_weight_stays_deferred(model: OnnxModel) -> None:
    graph = model.main
    node = next(n for n in graph.nodes() if n.op_type == "MatMul")
    data = graph.constant(node.inputs[1])
    value, _ = graph.add_constant(data + data, "doubled")
    graph.replace(node.inputs[1], value)
    first, _ = halves(model)
    (b,) = run(first.export(), {"x": X})
    weight = np.arange(9, dtype=np.float32).reshape(3, 3) / 2
    np.testing.assert_array_equal(b, np.maximum(X @ weight, 0))
