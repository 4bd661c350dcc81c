"""Loops that fail where they would go on for ever.

How often a loop runs may depend on numbers, and for inputs that are drawn it may have no end. So a fragment that is run
to learn something of it counts its iterations: an index out of bounds is an error, which can be caught.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.onnx.bodies import bodies_of

LONGEST = 10_000
"""Iterations of one loop, from which it is taken to be endless."""
GUARD = "graphopt.endless"
"""How the names of the nodes that count begin."""
REASON = f"a loop does not end within {LONGEST} iterations"
_BROADCASTS = 7
"""The first opset in which comparisons broadcast as they do today."""


def bound_loops(model: onnx.ModelProto) -> None:
    """Let every Loop of `model`, in bodies and functions too, fail in a node named after GUARD once it has run
    `LONGEST` times. A loop whose number of iterations is stored and no larger is left as it is."""
    count = 0
    for part in (model, *model.functions):
        versions = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in part.opset_import}
        if versions.get("", 1) < _BROADCASTS:
            continue
        graph = part.graph if isinstance(part, onnx.ModelProto) else part
        stored = {t.name: t for t in graph.initializer} if isinstance(graph, onnx.GraphProto) else {}
        for loop in _loops(graph.node):
            if not _is_short(stored.get(loop.input[0])):
                count += 1
                _bound(next(a.g for a in loop.attribute if a.name == "body"), f"{GUARD}.{count}")


def _loops(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The loops among `nodes` and in their bodies."""
    for node in nodes:
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx"):
            yield node
        for body in bodies_of(node):
            yield from _loops(body.node)


def _is_short(times: onnx.TensorProto | None) -> bool:
    """Whether the number of iterations is known to be no larger than is allowed."""
    if times is None or times.data_location == TensorProto.EXTERNAL:
        return False
    return bool(np.all(numpy_helper.to_array(times) <= LONGEST))


def _bound(body: onnx.GraphProto, name: str) -> None:
    """Let `body` fail in the iteration after the last that is allowed; the question is part of its condition."""

    def write(op: str, *operands: str, **attributes: object) -> str:
        result = f"{name}.{len(body.node)}"
        body.node.append(helper.make_node(op, operands, [result], result, **attributes))
        return result

    def number(value: object, dtype: type) -> str:
        return write("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    iteration, condition = body.input[0].name, body.output[0]
    late = write("Less", number(LONGEST - 1, np.float32), write("Cast", iteration, to=TensorProto.FLOAT))
    # Of the one number there is the next is asked for where it is late.
    one = write("Gather", number([1], np.int64), write("Cast", late, to=TensorProto.INT64), axis=0)
    condition.name = write("And", condition.name, write("Cast", one, to=TensorProto.BOOL))
