"""An ONNX model of fixed sizes as a function of JAX arrays, call by call through the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.backends.xla.calls import run_call
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Call, Graph, Literal, TensorType, Value
from graphopt.ir.weights import TensorRef

KNOWN = 4096
"""Bytes up to which constants of integers are told to XLA as they are: shapes, axes, indices. Larger ones, and real
numbers, are operands of the compiled program."""


@dataclass(frozen=True)
class Step:
    """One node of the model, read."""

    name: str
    raw: str
    call: Call
    types: tuple[TensorType | None, ...]
    """Those of the results; None for a result that nothing can refer to."""

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The results, of the dtypes and sizes that they have in the model.

        Raises:
            UnsupportedError: they have others, or XLA cannot compute them.
        """
        dtypes = [None if t is None else t.dtype for t in self.types]
        try:
            results = run_call(self.call.op, operands, self.call.fields, dtypes)
        except Exception as error:  # kernels raise whatever JAX does
            raise UnsupportedError(f"{self} cannot be run: {error}") from error
        for result, type_ in zip(results, self.types, strict=True):
            if type_ is not None and not _fits(result.shape, type_):
                raise UnsupportedError(f"{self} gives sizes {tuple(result.shape)}, and {type_} in the model")
        return results

    def __str__(self) -> str:
        return f"backend 'xla': {self.name} ({self.raw}, read as {self.call.op})"


def _fits(shape: Sequence[int], type_: TensorType) -> bool:
    if type_.shape is None:
        return True
    sizes = zip(shape, type_.shape, strict=False)
    return len(shape) == len(type_.shape) and all(s == d for s, d in sizes if isinstance(d, int))


class OnnxFunction:
    """f(weights, inputs): the tensors that `graph` returns, of arrays in the order of its inputs."""

    def __init__(self, graph: Graph) -> None:
        """Reads every node of `graph`.

        Raises:
            UnsupportedError: ops outside of the vocabulary, or nodes that it cannot say, naming all of them.
        """
        self.graph = graph
        self.steps = read_steps(graph)
        self._inputs = list(graph.inputs())
        self._outputs = list(graph.outputs())
        self._known: dict[Value, Any] = {}
        self.weights: dict[Value, TensorRef] = {}
        """The constants that are operands of the compiled program, in the order in which it takes them."""
        read = [v for step in self.steps for v in step.call.operands if v is not None]
        for value in dict.fromkeys([*read, *self._outputs]):
            if (data := graph.constant(value)) is not None:
                self._keep(value, data)

    def _keep(self, value: Value, data: TensorRef) -> None:
        is_integer = data.dtype.startswith(("int", "uint", "bool"))
        if isinstance(value, Literal) or data.size == 1 or (is_integer and data.nbytes <= KNOWN):
            self._known[value] = data.numpy()
        else:
            self.weights[value] = data

    def __call__(self, weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        env = {**self._known, **dict(zip(self.weights, weights, strict=True))}
        env.update(zip(self._inputs, inputs, strict=True))
        for step in self.steps:
            results = step.run([None if v is None else env[v] for v in step.call.operands])
            env.update({v: r for v, r in zip(step.call.outputs, results, strict=True) if v is not None})
        return [env[v] for v in self._outputs]

    def known(self, value: Value) -> Any:
        """The numbers of a constant that XLA is told; None if `value` is none."""
        return self._known.get(value)


def read_steps(graph: Graph) -> list[Step]:
    """The nodes of `graph` in order.

    Raises:
        UnsupportedError: as in OnnxFunction.
    """
    steps: list[Step] = []
    problems: dict[str, list[str]] = {}
    for node in graph.nodes():
        call = graph.call(node)
        reason = "" if isinstance(call, Call) else call.reason
        if isinstance(call, Call):
            types = tuple(None if v is None else graph.type(v) for v in call.outputs)
            if all(t is not None for t, v in zip(types, call.outputs, strict=True) if v is not None):
                steps.append(Step(graph.node_name(node), graph.raw_name(node), call, types))
                continue
            reason = "the type of its result is not known"
        problems.setdefault(f"{graph.raw_name(node)}: {reason}", []).append(graph.node_name(node))
    _refuse(problems)
    return steps


SIZES = frozenset({"shape", "ai.onnx::Size"})
"""Ops whose results depend on the sizes of their operand alone."""
BRANCH = "ai.onnx::If"


def require_vocabulary(graph: Graph) -> None:
    """Refuse what cannot be read at any size of the inputs: what is computed from sizes and constants may still become
    a constant.

    Raises:
        UnsupportedError: ops outside of the vocabulary, naming all of them.
    """
    sized: set[Value] = set()
    problems: dict[str, list[str]] = {}
    for node in graph.nodes():
        key, raw = graph.key(node), graph.raw_name(node)
        operands = [v for v in graph.raw_call(node).operands if v is not None]
        if key in SIZES or all(v in sized or graph.constant(v) is not None for v in operands):
            sized.update(v for v in graph.results(node) if v is not None)
        elif key == raw != BRANCH:
            problems.setdefault(f"{raw}: not in the vocabulary", []).append(graph.node_name(node))
    _refuse(problems)


def _refuse(problems: Mapping[str, list[str]]) -> None:
    if problems:
        raise UnsupportedError(f"backend 'xla' cannot say {'; '.join(_listed(problems))}")


def _listed(problems: Mapping[str, list[str]]) -> Iterator[str]:
    """Each reason with the nodes that it holds for, the first three by name."""
    for reason, names in sorted(problems.items()):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{reason} ({', '.join(names[:3])}{more})"


