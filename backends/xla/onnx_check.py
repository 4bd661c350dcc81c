"""Every call of an ONNX model on XLA against onnxruntime, in isolation and on numbers.

Each region of the model is run once by onnxruntime, its optimisations off; each call that has other operand types or
fields than those before is run in JAX too, on the very operands that it had there. So a wrong reader is seen as well as
a wrong kernel.

The bound is that of `bound`. onnxruntime's sigmoid and tanh are right to 1e-7 or so, which is much of a result that is
small everywhere. So a result that differs from onnxruntime's is right, too, if it is within the bound of the op's
meaning in float64, and onnxruntime's is within that of results of size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.backends.xla.arrays import run_once
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.calls import run_call
from graphopt.backends.xla.onnx_function import OnnxFunction
from graphopt.backends.xla.onnx_steps import Branch, Env, Region, Step
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Graph, TensorType, Value
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.verify.execute import CannotRun, native_runner

PORTION = 1 << 28
"""Bytes of operands and results that are held at a time; the calls that they belong to are compiled together."""


class CannotCheck(Exception):
    """onnxruntime cannot run the model, or not on these inputs. Carries its reason."""


def check_calls(function: OnnxFunction, feeds: Sequence[Array], seen: set[Any] | None = None) -> int:
    """Compare; how many calls were, of distinct types and fields. Those in `seen` are not again, and others are added.

    Raises:
        CannotCheck: there is nothing to compare with.
        UnsupportedError: a call differs, naming it, its operands and by how much.
    """
    checker = _Checker(function, set() if seen is None else seen)
    checker.check(function.region, dict(zip(function.region.graph.inputs(), feeds, strict=True)))
    return len(checker.seen)


class _Checker:
    def __init__(self, function: OnnxFunction, seen: set[Any]) -> None:
        self.known = function.known
        self.weights = function.weights
        self.seen = seen

    def check(self, region: Region, feeds: Mapping[Value, Array]) -> None:
        """Compare the calls of `region`, of which `feeds` are the inputs or what it reads from around it."""
        new = []
        for step in region.steps:
            if isinstance(step, Step) and (key := self._key(region.graph, step)) not in self.seen:
                self.seen.add(key)
                new.append(step)
        for portion in _portions(region.graph, new):
            self._compare(portion, self._run(region, portion, feeds))
        branches = [step for step in region.steps if isinstance(step, Branch)]
        env = self._run(region, branches, feeds) if branches else {}
        for branch in branches:
            for body in branch.bodies:
                self.check(body, {v: env[v] for v in dict.fromkeys(body.reads) if v in env})

    def _key(self, graph: Graph, step: Step) -> Any:
        """Equal for two calls whose kernels are the same."""
        operands = [None if v is None else self._operand_key(graph, v) for v in step.call.operands]
        return (step.call.op, repr(sorted(step.call.fields.items())), *operands, *map(str, step.types))

    def _operand_key(self, graph: Graph, value: Value) -> Any:
        known = self.known.get(value)
        return str(graph.type(value)) if known is None else (known.dtype.name, known.shape, known.tobytes())

    def _run(self, region: Region, steps: Sequence[Step | Branch], feeds: Mapping[Value, Array]) -> Env:
        """What `steps` read and compute, as onnxruntime does; constants are left out."""
        graph = region.graph
        made = {v for node in graph.nodes() for v in graph.results(node) if v is not None}
        results = [v for step in steps for v in graph.results(step.node) if v is not None]
        wanted = [v for v in dict.fromkeys([*(v for s in steps for v in s.reads), *results]) if v in made]
        try:
            found = native_runner(graph, list(graph.nodes()), list(feeds), wanted)(list(feeds.values()))
        except CannotRun as error:
            raise CannotCheck(str(error)) from error
        return {**feeds, **dict(zip(wanted, found, strict=True))}

    def _fetch(self, value: Value | None, env: Env) -> Any:
        if value is None:
            return None
        if value in self.known:
            return self.known[value]
        return self.weights[value].numpy() if value in self.weights else env[value]

    def _compare(self, steps: Sequence[Step], env: Env) -> None:
        operands = [[self._fetch(v, env) for v in step.call.operands] for step in steps]
        told = [[v is None or v in self.known for v in step.call.operands] for step in steps]

        def run(given: Sequence[Sequence[Any]]) -> list[list[Any]]:
            results = []
            for step, own, known, arrays in zip(steps, operands, told, given, strict=True):
                remaining = iter(arrays)
                results.append(step.run([o if k else next(remaining) for o, k in zip(own, known, strict=True)]))
            return results

        pairs = zip(operands, told, strict=True)
        given = [[o for o, k in zip(own, known, strict=True) if not k] for own, known in pairs]
        found = run_once(run, given)
        for step, own, results in zip(steps, operands, found, strict=True):
            _require_equal(step, own, [self._fetch(v, env) for v in step.call.outputs], results)


def _portions(graph: Graph, steps: Sequence[Step]) -> Iterator[list[Step]]:
    portion: list[Step] = []
    held = 0
    for step in steps:
        size = sum(_nbytes(t) for t in (*map(graph.type, step.reads), *step.types))
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


def _require_equal(step: Step, operands: Sequence[Any], expected: Sequence[Any], results: Sequence[Any]) -> None:
    reason = _differences(expected, results)
    if reason is None:
        return
    dtypes = [None if t is None else t.dtype for t in step.types]
    exact = run_call(step.call.op, operands, step.call.fields, dtypes)
    if _differences(exact, results) is not None or _differences(exact, expected, 1.0) is not None:
        sizes = ", ".join(str(o.shape) for o in operands if o is not None)
        raise UnsupportedError(
            f"{step} of operands {sizes} differs from onnxruntime: {reason}; run the model on another backend"
        )


def _differences(expected: Sequence[Any], results: Sequence[Any], least: float = 0.0) -> str | None:
    """In what the first result that differs does so."""
    pairs = [(e, np.asarray(r)) for e, r in zip(expected, results, strict=True) if e is not None]
    return next((why for e, r in pairs if (why := difference(e, r, least)) is not None), None)
