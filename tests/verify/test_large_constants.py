"""Large weights are given to the runtime as inputs: same results, no copies."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.load import load_model
from graphopt.verify import execute
from graphopt.verify.execute import native_runner


def layer(elem_type: int) -> onnx.ModelProto:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    weight = np.random.default_rng(0).standard_normal((24, 16)).astype(dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["w"], ["z"])],
        "layer",
        [helper.make_tensor_value_info("x", elem_type, ["n", 24])],
        [helper.make_tensor_value_info(n, elem_type, None) for n in "yz"],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
@pytest.mark.parametrize("wide", [False, True])
def test_results_do_not_depend_on_where_a_weight_lies(elem_type: int, wide: bool, monkeypatch: pytest.MonkeyPatch):
    main = load_model(layer(elem_type)).main
    x = np.ones((3, 24), helper.tensor_dtype_to_np_dtype(elem_type))
    results = {}
    for limit in (1, 1 << 30):
        monkeypatch.setattr(execute, "LARGE", limit)
        run = native_runner(main, list(main.nodes()), list(main.inputs()), list(main.outputs()), wide=wide)
        results[limit] = [(r.dtype, r.tobytes()) for r in run([x])]
    assert results[1] == results[1 << 30]


def test_large_weights_are_not_in_the_session(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    real = execute._session
    monkeypatch.setattr(
        execute, "_session", lambda model, **options: sizes.append(len(model)) or real(model, **options)
    )
    main = load_model(layer(TensorProto.FLOAT)).main
    for limit in (1 << 30, 1):
        monkeypatch.setattr(execute, "LARGE", limit)
        native_runner(main, list(main.nodes()), list(main.inputs()), list(main.outputs()))
    assert sizes[0] - sizes[1] >= 24 * 16 * 4 - 64
