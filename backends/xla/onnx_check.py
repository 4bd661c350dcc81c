"""Every call of an ONNX model on XLA against onnxruntime, in isolation and on numbers.

The model is run once by onnxruntime, its optimisations off; each call that has other operand types or fields than those
before is run in JAX too, on the very operands that it had there. So a wrong reader is seen as well as a wrong kernel.
The bound is that of `bound`. onnxruntime's sigmoid and tanh are right to 1e-7 or so, which is much of a result that is
small everywhere. So a result that differs from onnxruntime's is right, too, if it is within the bound of the op's
meaning in float64, and onnxruntime's is within that of results of size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.calls import run_call
from graphopt.backends.xla.onnx_function import OnnxFunction, Step
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType, Value
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.verify.execute import CannotRun, native_runner

PORTION = 1 << 28
"""Bytes of operands and results that are held at a time; the calls that they belong to are compiled together."""


class CannotCheck(Exception):
    """onnxruntime cannot run the model, or not on these inputs. Carries its reason."""


def check_calls(function: OnnxFunction, feeds: Sequence[Array]) -> int:
    """Compare; how many calls were, of distinct types and fields.

    Raises:
        CannotCheck: there is nothing to compare with.
        UnsupportedError: a call differs, naming it, its operands and by how much.
    """
    steps = list({_key(function, step): step for step in reversed(function.steps)}.values())[::-1]
    for portion in _portions(function, steps):
        _compare(function, portion, feeds)
    return len(steps)


def _key(function: OnnxFunction, step: Step) -> Any:
    """Equal for two calls whose kernels are the same."""
    operands = [None if v is None else _operand_key(function, v) for v in step.call.operands]
    return (step.call.op, repr(sorted(step.call.fields.items())), *operands, *map(str, step.types))


def _operand_key(function: OnnxFunction, value: Value) -> Any:
    known = function.known(value)
    return str(function.graph.type(value)) if known is None else (known.dtype.name, known.shape, known.tobytes())


def _portions(function: OnnxFunction, steps: Sequence[Step]) -> Iterator[list[Step]]:
    portion: list[Step] = []
    held = 0
    for step in steps:
        values = [v for v in (*step.call.operands, *step.call.outputs) if v is not None]
        size = sum(_nbytes(function.graph.type(v)) for v in values)
        if portion and held + size > PORTION:
            yield portion
            portion, held = [], 0
        portion.append(step)
        held += size
    if portion:
        yield portion


def _nbytes(type_: TensorType | None) -> int:
    if type_ is None or type_.shape is None:
        return 0
    sizes = [d if isinstance(d, int) else 1 for d in type_.shape]
    return int(np.prod(sizes, dtype=np.int64)) * numpy_dtype(type_.dtype).itemsize


@dataclass(frozen=True)
class _Values:
    """The values of a run in onnxruntime, and the constants."""

    function: OnnxFunction
    computed: dict[Value, Array]

    def of(self, value: Value | None) -> Any:
        if value is None or (known := self.function.known(value)) is not None:
            return None if value is None else known
        data = self.function.weights.get(value)
        return self.computed[value] if data is None else data.numpy()


def _compare(function: OnnxFunction, steps: Sequence[Step], feeds: Sequence[Array]) -> None:
    values = _Values(function, _run(function, steps, feeds))
    operands = [[values.of(v) for v in step.call.operands] for step in steps]
    told = [[v is None or function.known(v) is not None for v in step.call.operands] for step in steps]

    def run(given: Sequence[Sequence[Any]]) -> list[list[Any]]:
        results = []
        for step, own, known, arrays in zip(steps, operands, told, given, strict=True):
            remaining = iter(arrays)
            results.append(step.run([o if k else next(remaining) for o, k in zip(own, known, strict=True)]))
        return results

    open_ = zip(operands, told, strict=True)
    given = [[o for o, k in zip(own, known, strict=True) if not k] for own, known in open_]
    with exact_types(), jax.default_device(jax.devices("cpu")[0]):
        found = jax.jit(run)(given)
    for step, own, results in zip(steps, operands, found, strict=True):
        expected = [None if v is None else values.of(v) for v in step.call.outputs]
        reason = _differences(expected, results)
        if reason is not None and not _agrees_with_meaning(step, own, expected, results):
            sizes = ", ".join(str(o.shape) for o in own if o is not None)
            raise UnsupportedError(
                f"{step} of operands {sizes} differs from onnxruntime: {reason}; run the model on another backend"
            )


def _differences(expected: Sequence[Any], results: Sequence[Any], least: float = 0.0) -> str | None:
    """In what the first result that differs does so."""
    pairs = [(e, np.asarray(r)) for e, r in zip(expected, results, strict=True) if e is not None]
    return next((why for e, r in pairs if (why := difference(e, r, least)) is not None), None)


def _agrees_with_meaning(step: Step, operands: Sequence[Any], reference: Sequence[Any], results: Sequence[Any]) -> bool:
    dtypes = [None if t is None else t.dtype for t in step.types]
    exact = run_call(step.call.op, operands, step.call.fields, dtypes)
    return _differences(exact, results) is None and _differences(exact, reference, 1.0) is None


def _run(function: OnnxFunction, steps: Sequence[Step], feeds: Sequence[Array]) -> dict[Value, Array]:
    """What the operands and results of `steps` are in onnxruntime."""
    graph = function.graph
    inputs = list(graph.inputs())
    read = [v for step in steps for v in (*step.call.operands, *step.call.outputs) if v is not None]
    found = dict(zip(inputs, feeds, strict=True))
    wanted = [v for v in dict.fromkeys(read) if v not in found and graph.constant(v) is None]
    try:
        results = native_runner(graph, [step.call.node for step in function.steps], inputs, wanted)(feeds)
    except CannotRun as error:
        raise CannotCheck(str(error)) from error
    return {**found, **dict(zip(wanted, results, strict=True))}
