"""Fragments of images of a fixed size run on smaller images, and on few where their number is free."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Exact, rule
from graphopt.ir.load import load_model
from graphopt.rewrite.change import Change, Editor
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.execute import onnx_runner
from graphopt.verify.fragment import cut
from graphopt.verify.inputs import IMAGES, size_choices


def test_a_fragment_takes_smaller_images_than_its_model_declares() -> None:
    weight = numpy_helper.from_array(np.ones((6, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 640, 640])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 6, 638, 638])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    main = load_model(model).main
    run = onnx_runner(main.cut(list(main.nodes()), list(main.inputs()), list(main.outputs())))
    (result,) = run([np.ones((1, 4, 9, 9), np.float32)])
    np.testing.assert_array_equal(result, np.full((1, 6, 7, 7), 36.0, np.float32))


class FirstSizes:
    """Notes the sizes that are tried first for each change."""

    def __init__(self) -> None:
        self.sizes: list[list[tuple[int, ...]]] = []

    def verify(self, change: Change) -> Evidence:
        fragment = cut(change)
        calls: list[Any] = [change.graph.call(n) for n in fragment.before.nodes]
        self.sizes.append(list(next(size_choices(fragment, calls)).values()))
        return Evidence("none")


@rule(contract=Exact())
class RootOfProduct:
    "abs(x * y) becomes abs(y * x)."

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        return op.abs(op.mul(x, y))

    def rewrite(self, m: Any, build: Any) -> Any:
        return build.abs(build.mul(m.y, m.x))


def first_sizes(*shapes: list[Any]) -> list[tuple[int, ...]]:
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x0", "x1"], ["p"]), helper.make_node("Abs", ["p"], ["y"])],
        "product", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    noted = FirstSizes()
    driver = Driver([RootOfProduct], Editor(load_model(model).main, Ledger(limit=1), noted))
    driver.run()
    return noted.sizes[0]


def test_few_images_are_drawn_where_their_number_is_free() -> None:
    assert first_sizes(["N", 4, 64, 64], ["N", 4, 64, 64]) == [(IMAGES, 4, 8, 8)] * 2


def test_a_multiple_of_a_free_number_stays_one() -> None:
    assert first_sizes(["3*N", 4, 64, 64], ["N", 1, 1, 1])[0][0] == 3 * IMAGES


@pytest.mark.parametrize("shapes", [(["N", 4, "N"], ["N", 4, "N"]), (["N", 4, 8], ["N"]), (["N", 4], ["N", 4])])
def test_a_number_that_is_more_than_how_many_images_there_are_is_drawn_large(shapes: Any) -> None:
    assert first_sizes(*shapes)[0][0] > IMAGES
