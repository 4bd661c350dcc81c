"""The nodes of an ONNX graph of fixed sizes as steps on JAX arrays: calls of the vocabulary, and branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from graphopt.backends.xla.calls import run_call
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Call, Graph, Node, TensorType, Value

BRANCH = "ai.onnx::If"
Env: TypeAlias = dict[Value, Any]
"""Arrays by value: JAX's, or numpy's if they are known before the model runs."""
Problems: TypeAlias = dict[str, list[str]]
"""Nodes that cannot be said, by the reason."""


@dataclass(frozen=True)
class Step:
    """A node that was read in the vocabulary."""

    name: str
    raw: str
    call: Call
    types: tuple[TensorType | None, ...]
    """Those of the results; None for a result that nothing can refer to."""

    @property
    def node(self) -> Node:
        return self.call.node

    @property
    def reads(self) -> list[Value]:
        return [v for v in self.call.operands if v is not None]

    def results(self, env: Env) -> Env:
        found = self.run([None if v is None else env[v] for v in self.call.operands])
        return {v: r for v, r in zip(self.call.outputs, found, strict=True) if v is not None}

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The results, of the dtypes and sizes that they have in the model.

        Raises:
            UnsupportedError: they have others, or XLA cannot compute them.
        """
        dtypes = [None if t is None else t.dtype for t in self.types]
        try:
            with jax.named_scope(self.name.strip("/").replace("/", ".")):
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


@dataclass(frozen=True)
class Branch:
    """A node that runs one of two regions, as a truth value says that is computed."""

    node: Node
    name: str
    condition: Value
    bodies: tuple[Region, Region]
    """The one for True first."""
    outputs: tuple[Value | None, ...]

    @property
    def reads(self) -> list[Value]:
        return [self.condition, *(v for body in self.bodies for v in body.reads)]

    def results(self, env: Env) -> Env:
        """
        Raises:
            UnsupportedError: the regions give other sizes or dtypes.
        """
        chosen = env[self.condition]
        if isinstance(chosen, np.ndarray):
            found = self.bodies[0 if chosen.reshape(()) else 1].run(env)
        else:
            ways = [lambda body=body: [jnp.asarray(r) for r in body.run(env)] for body in self.bodies]
            try:
                found = jax.lax.cond(jnp.reshape(chosen, ()), *ways)
            except TypeError as error:
                raise UnsupportedError(f"backend 'xla': the branches of {self.name} differ: {error}") from error
        return {v: r for v, r in zip(self.outputs, found, strict=True) if v is not None}


@dataclass(frozen=True)
class Region:
    """A graph as steps in order."""

    graph: Graph
    steps: tuple[Step | Branch, ...]

    @property
    def reads(self) -> list[Value]:
        """What its steps and its outputs read, what it computes itself included."""
        return [*(v for step in self.steps for v in step.reads), *self.graph.outputs()]

    def run(self, env: Env) -> list[Any]:
        """Its outputs; `env` holds what is around it."""
        env = dict(env)
        for step in self.steps:
            env.update(step.results(env))
        return [env[v] for v in self.graph.outputs()]


def read_region(graph: Graph) -> Region:
    """Reads every node of `graph` and of the regions in it.

    Raises:
        UnsupportedError: ops outside of the vocabulary, or nodes that it cannot say, naming all of them.
    """
    problems: Problems = {}
    region = _region(graph, problems)
    refuse(problems)
    return region


def _region(graph: Graph, problems: Problems) -> Region:
    steps = []
    for node in graph.nodes():
        step = _branch(graph, node, problems) if graph.raw_name(node) == BRANCH else _step(graph, node)
        if isinstance(step, str):
            problems.setdefault(f"{graph.raw_name(node)}: {step}", []).append(graph.node_name(node))
        else:
            steps.append(step)
    return Region(graph, tuple(steps))


def _branch(graph: Graph, node: Node, problems: Problems) -> Branch:
    (condition,) = graph.raw_call(node).operands
    bodies = dict(zip(graph.raw_call(node).fields, graph.subgraphs(node), strict=True))
    regions = (_region(bodies["then_branch"], problems), _region(bodies["else_branch"], problems))
    return Branch(node, graph.node_name(node), condition, regions, tuple(graph.results(node)))


def _step(graph: Graph, node: Node) -> Step | str:
    """`node` read, or why it cannot be."""
    call = graph.call(node)
    if not isinstance(call, Call):
        return call.reason
    types = tuple(None if v is None else graph.type(v) for v in call.outputs)
    if any(t is None for t, v in zip(types, call.outputs, strict=True) if v is not None):
        return "the type of its result is not known"
    return Step(graph.node_name(node), graph.raw_name(node), call, types)


SIZES = frozenset({"shape", "ai.onnx::Size"})
"""Ops whose results depend on the sizes of their operand alone."""


def require_vocabulary(graph: Graph) -> None:
    """Refuse what cannot be read at any size of the inputs: what is computed from sizes and constants alone may still
    become a constant.

    Raises:
        UnsupportedError: ops outside of the vocabulary, naming all of them.
    """
    problems: Problems = {}
    _collect_unknown(graph, set(), problems)
    refuse(problems)


def _collect_unknown(graph: Graph, sized: set[Value], problems: Problems) -> None:
    """`sized`: the values that are computed from sizes and constants alone."""
    for node in graph.nodes():
        key, raw = graph.key(node), graph.raw_name(node)
        operands = [v for v in graph.raw_call(node).operands if v is not None]
        if key in SIZES or all(v in sized or graph.constant(v) is not None for v in operands):
            sized.update(v for v in graph.results(node) if v is not None)
        elif raw == BRANCH:
            for body in graph.subgraphs(node):
                _collect_unknown(body, sized, problems)
        elif key == raw:
            problems.setdefault(f"{raw}: {raw} is not in the vocabulary", []).append(graph.node_name(node))


def refuse(problems: Mapping[str, list[str]]) -> None:
    if problems:
        raise UnsupportedError(f"backend 'xla' cannot say {'; '.join(_listed(problems))}")


def _listed(problems: Mapping[str, list[str]]) -> Iterator[str]:
    """Each reason with the nodes that it holds for, the first three by name."""
    for reason, names in sorted(problems.items()):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{reason} ({', '.join(names[:3])}{more})"
