"""Control flow of whole models: bodies are run as often as they are, where that does not depend on real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.graph import TensorType
from graphopt.verify.algebra.tensor import FieldTensor, Undecided

if TYPE_CHECKING:
    from graphopt.verify.algebra.running import Running

ROUNDS = 256
"""How often a loop is run."""


def run_bodies(run: Running, graph: Any, node: Any, depth: int) -> Sequence[Any]:
    """The results of an If, a Loop or a Scan. Raises Undecided for another node with bodies."""
    if node.domain == "" and node.op_type in _KINDS:
        return _KINDS[node.op_type](run, graph, node, depth)
    raise Undecided("it has bodies of its own")


def _body(graph: Any, node: Any, name: str) -> Any:
    return graph.shared_region(node.attributes[name].as_graph())


def _branch(run: Running, graph: Any, node: Any, depth: int) -> Sequence[Any]:
    """One body if the condition is known. Otherwise both, and a choice between what they give."""
    condition = run.known.env[node.inputs[0]]
    bodies = [_body(graph, node, name) for name in ("then_branch", "else_branch")]
    if isinstance(condition, FieldTensor):
        made = [_once(run, body, depth) for body in bodies]
        pairs = list(zip(*made, strict=True))
        if any(np.shape(a) != np.shape(b) for a, b in pairs):
            raise Undecided("which of its bodies runs depends on data, and their results differ in shape")
        _type_as(run, node, bodies[0])
        return [run.domain.where(np.reshape(condition, ()), a, b) for a, b in pairs]
    body = bodies[0] if bool(np.reshape(condition, ())) else bodies[1]
    results = _once(run, body, depth)
    _type_as(run, node, body)
    return results


def _loop(run: Running, graph: Any, node: Any, depth: int) -> Sequence[Any]:
    body = _body(graph, node, "body")
    most, going, *initial = node.inputs
    limit = ROUNDS + 1 if most is None else _known(run.known.env[most], "the number of rounds")
    alive = True if going is None else bool(_known(run.known.env[going], "whether it runs"))
    carried = [_Given(run, v) for v in initial]
    rows: list[list[Any]] = [[] for _ in range(len(body.outputs()) - 1 - len(carried))]
    counter, condition, *states = body.ir.inputs
    done = 0
    while alive and done < limit:
        if done == ROUNDS:
            raise Undecided(f"it runs more than {ROUNDS} times")
        _forget(run, body)
        run.give(counter, np.asarray(done, np.int64), TensorType("int64", ()), varying=False)
        run.give(condition, np.asarray(True), TensorType("bool", ()), varying=False)
        for state, given in zip(states, carried, strict=True):
            given.to(state)
        first, *others = run.run(body, depth)
        alive = bool(_known(first, "whether it goes on"))
        outputs = body.outputs()[1:]
        carried = [_Given(run, v) for v in outputs[: len(states)]]
        for row, made in zip(rows, others[len(states) :], strict=True):
            row.append(made)
        done += 1
    if rows and not done:
        raise Undecided("it does not run, and the shapes of its results are not known")
    for value, given in zip(node.outputs, carried, strict=False):
        run.known.types[value] = given.type
    _type_rows(run, node, body, len(carried), done)
    return [*(g.tensor for g in carried), *(np.stack(row) for row in rows)]


def _scan(run: Running, graph: Any, node: Any, depth: int) -> Sequence[Any]:
    body = _body(graph, node, "body")
    count = int(node.attributes["num_scan_inputs"].value)
    plain = all(not any(v.value) for k, v in node.attributes.items() if k not in ("body", "num_scan_inputs"))
    if not plain or graph.opset < 9:
        raise Undecided("it scans other axes than the first, or backwards")
    states = len(node.inputs) - count
    carried = [_Given(run, v) for v in node.inputs[:states]]
    scanned = [_Given(run, v) for v in node.inputs[states:]]
    rows: list[list[Any]] = [[] for _ in range(len(body.outputs()) - states)]
    length = int(np.shape(scanned[0].tensor)[0])
    if not 0 < length <= ROUNDS:
        raise Undecided(f"it runs {length} times")
    for i in range(length):
        _forget(run, body)
        for value, given in zip(body.ir.inputs, (*carried, *(g.row(i) for g in scanned)), strict=True):
            given.to(value)
        made = run.run(body, depth)
        carried = [_Given(run, v) for v in body.outputs()[:states]]
        for row, one in zip(rows, made[states:], strict=True):
            row.append(one)
    for value, given in zip(node.outputs, carried, strict=False):
        run.known.types[value] = given.type
    _type_rows(run, node, body, states, length)
    return [*(g.tensor for g in carried), *(np.stack(row) for row in rows)]


_KINDS = {"If": _branch, "Loop": _loop, "Scan": _scan}


class _Given:
    """A value with all that is known of it, to be given to a body."""

    def __init__(self, run: Running, value: Any) -> None:
        known = run.known
        self.run = run
        self.tensor, self.type = known.env[value], known.types[value]
        self.varying, self.token = value in known.varying, value in known.tokens

    def to(self, value: Any) -> None:
        self.run.give(value, self.tensor, self.type, varying=self.varying, token=self.token)

    def row(self, i: int) -> _Given:
        made = _Given.__new__(_Given)
        made.run, made.varying, made.token = self.run, self.varying, self.token
        made.tensor = self.tensor[i]
        made.type = TensorType(self.type.dtype, None if self.type.shape is None else self.type.shape[1:])
        return made


def _once(run: Running, body: Any, depth: int) -> list[Any]:
    _forget(run, body)
    return run.run(body, depth)


def _forget(run: Running, body: Any) -> None:
    """What values of `body` were in another round."""
    known = run.known
    for value in (*body.ir.inputs, *(o for node in body.nodes() for o in node.outputs)):
        for table in (known.env, known.types, known.numbers):
            table.pop(value, None)
        known.varying.discard(value)
        known.tokens.discard(value)


def _type_as(run: Running, node: Any, body: Any) -> None:
    for value, inner in zip(node.outputs, body.outputs(), strict=True):
        run.known.types[value] = run.known.types[inner]


def _type_rows(run: Running, node: Any, body: Any, states: int, count: int) -> None:
    inner = body.outputs()[len(body.outputs()) - (len(node.outputs) - states) :]
    for value, one in zip(node.outputs[states:], inner, strict=True):
        type_ = run.known.types.get(one)
        if type_ is not None and type_.shape is not None:
            run.known.types[value] = TensorType(type_.dtype, (count, *type_.shape))


def _known(value: Any, what: str) -> int:
    if isinstance(value, FieldTensor) or np.size(value) != 1:
        raise Undecided(f"{what} depends on data")
    return int(np.reshape(value, ()))
