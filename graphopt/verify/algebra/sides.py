"""Running one side of a fragment over a finite field, with weights as numbers or as variables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphopt.ir.graph import Branches, Call, Graph, Literal, Node, Value
from graphopt.ir.ops import OPS
from graphopt.ir.weights import FLOATS, Array, Deferred, SlicedRef, TensorRef
from graphopt.verify.algebra.body_text import bodies_said, captured_by, plain_fields
from graphopt.verify.algebra.domain import Field
from graphopt.verify.algebra.tensor import FieldTensor, Point, Undecided, lift, open_facts, random
from graphopt.verify.algebra.tokens import depends
from graphopt.verify.algebra.unknown import scrambled
from graphopt.verify.fragment import Side

Symbolic = Callable[[TensorRef], bool]
"""Whether a weight stands for every tensor of its shape."""


@dataclass
class Constants:
    """The weights of both sides over one point: variables are the same for the same stored tensor."""

    point: Point
    symbolic: Symbolic
    weights: frozenset[object]
    """Identities of what the side before the change reads: all else is a number that the rule has chosen."""
    variables: dict[object, TensorRef] = field(default_factory=dict)
    """The weights that are variables, in order of first use."""
    _made: dict[object, Any] = field(default_factory=dict)

    def leaf(self, data: TensorRef) -> Any:
        if data.dtype not in FLOATS:
            return data.numpy()
        variable = data.identity in self.weights and self.symbolic(data)
        key = (variable, data.identity)
        if key not in self._made:
            self._made[key] = (data, self._variable(data) if variable else self._number(data))
        return self._made[key][1]

    def evaluate(self, data: TensorRef, domain: Field) -> Any:
        """The tensor over the domain. A weight that is an expression is one variable all the same, where the side
        before the change reads it."""
        if data.identity in self.weights and data.dtype in FLOATS and self.symbolic(data):
            return self.leaf(data)
        if isinstance(data, Deferred):
            operands = [self.evaluate(o, domain) for o in data.operands]
            return OPS[data.op].meaning(domain, *operands, **data.fields)
        return data.evaluate(self.leaf, domain)

    def label(self, data: TensorRef) -> str:
        """What a constant is called within a body of which nothing else is known."""
        if data.identity in self.weights:
            self._made.setdefault(("label", data.identity), (data, len(self._made)))
            return f"weight {self._made['label', data.identity][1]}"
        array = data.numpy()
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"

    def _variable(self, data: TensorRef) -> FieldTensor:
        self.variables[data.identity] = data
        return random(self.point, data.shape, f"weight {len(self.variables)}", open_facts(data.dtype))

    def _number(self, data: TensorRef) -> FieldTensor:
        return lift(self.point, data.numpy(), data.dtype)


def weights_of(graph: Graph, side: Side) -> frozenset[object]:
    """The identities of the stored weights that `side` reads; Python numbers inside of nodes are none."""
    values = [o for node in side.nodes for o in graph.raw_call(node).operands if o is not None]
    values = [v for v in (*values, *side.outputs) if not isinstance(v, Literal)]
    found = [side.declared.get(v) or graph.constant(v) for v in values]
    stored = frozenset(data.identity for one in found if one is not None for data in (one, *_stored(one)))
    bodies = [body for node in side.nodes for body in graph.subgraphs(node)]
    return stored.union(*(weights_of(body, _whole(body)) for body in bodies))


def _stored(data: TensorRef) -> Iterator[TensorRef]:
    """What a weight is computed from."""
    if not isinstance(data, Deferred | SlicedRef):
        yield data
        return
    for operand in data.operands:
        yield from _stored(operand)


def _whole(body: Graph) -> Side:
    return Side(tuple(body.nodes()), tuple(body.outputs()))


def input_tensors(point: Point, feeds: Sequence[Array], tokens: Collection[int]) -> list[Any]:
    """Variables for the real inputs and those that are `tokens`; other integers and truth values are what they are in
    `feeds`."""
    found: list[Any] = []
    for i, feed in enumerate(feeds):
        is_open = i in tokens or feed.dtype.name in FLOATS
        found.append(random(point, feed.shape, f"input {i}", open_facts(feed.dtype.name)) if is_open else feed)
    return found


def structure(graph: Graph, side: Side, inputs: Sequence[Value], numbers: dict[object, int]) -> tuple[object, ...]:
    """What each output is made of: equal for equal expressions. `numbers` numbers the ones that were met."""
    known: dict[Value, object] = {v: ("input", i) for i, v in enumerate(inputs)}

    def name(value: Value | None) -> object:
        if value is None or value in known:
            return known.get(value)
        data = side.declared.get(value) or graph.constant(value)
        if isinstance(value, Literal):
            return "literal", repr(value)
        if data is None:
            return "outer", value
        numbers.setdefault(data, -1)  # it stays alive, so that no other gets its identity
        return "constant", data.identity

    def label(data: TensorRef) -> str:
        numbers.setdefault(data, -1)
        return f"constant {numbers.setdefault(('identity', data.identity), len(numbers))}"

    for node in side.nodes:
        read = graph.call(node)
        call = read if isinstance(read, Call) else graph.raw_call(node)
        count = None if isinstance(read, Call) else len(call.outputs)  # it may say how something is split
        bodies: str | None = ""
        if graph.subgraphs(node):  # weights that are declared to be others may be read within
            bodies = None if side.declared else bodies_said(graph, node, _spell, label)
        known_by = node if bodies is None or not graph.is_pure(node) else bodies
        what = (call.op, spelled(plain_fields(call.fields)), count, known_by)
        operands = (*call.operands, *(captured_by(graph, node) if bodies else ()))
        made = numbers.setdefault((what, tuple(name(o) for o in operands)), len(numbers))
        for i, output in enumerate(call.outputs):
            if output is not None:
                known[output] = name(call.operands[0]) if call.op == "identity" else (made, i)
    return tuple(name(o) for o in side.outputs)


def _spell(graph: Graph, node: Node) -> str:
    """A node within a body, but for what it reads."""
    call = graph.raw_call(node)
    return f"{call.op}{spelled(plain_fields(call.fields))}{len(call.outputs)}"


def spelled(fields: Mapping[str, Any]) -> str:
    """The attributes of an op in words that are equal for equal ones alone: tensors are not abridged."""

    def one(value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"[{', '.join(one(v) for v in value)}]"
        if isinstance(value, np.ndarray) or callable(getattr(value, "numpy", None)):
            array = np.asarray(value if isinstance(value, np.ndarray) else value.numpy())
            return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
        return repr(value)

    return str(sorted((k, one(v)) for k, v in fields.items()))


def run_side(graph: Graph, side: Side, inputs: Mapping[Value, Any], domain: Field, constants: Constants) -> list[Any]:
    """The outputs of `side` over the domain. Raises Undecided, with the name of the op if an op is the reason.

    Integers and truth values that follow from those of the inputs are no result of a proof, but of a run.
    """
    drawn = {v for v, given in inputs.items() if not isinstance(given, FieldTensor)}
    outputs = _run(graph, side, dict(inputs), drawn, domain, constants)
    if any(o in drawn and not domain.is_real(r) for o, r in zip(side.outputs, outputs, strict=True)):
        raise Undecided("integers or truth values follow from drawn ones")
    return outputs


def _run(
    graph: Graph, side: Side, env: dict[Value, Any], drawn: set[Value], domain: Field, constants: Constants
) -> list[Any]:
    """The outputs of `side`, or of a control-flow body. `env` holds what it reads from elsewhere, `drawn` what of that
    follows from drawn integers and truth values; both are added to."""
    fetch = _fetcher(graph, side, env, domain, constants)
    for node in side.nodes:
        if all(o is None or graph.constant(o) is not None for o in graph.results(node)):
            continue
        try:
            branches = graph.branches(node)
            # Where an open truth value decides, the node is an unknown function of its bodies and of what they read.
            if branches is not None and not isinstance(fetch(branches.condition), FieldTensor):
                results: Sequence[Any] = _run_branch(branches, env, fetch, drawn, domain, constants)
            else:
                call = graph.call(node)
                read = call if isinstance(call, Call) else graph.raw_call(node)
                operands = [None if o is None else fetch(o) for o in read.operands]
                if graph.subgraphs(node):
                    if side.declared:
                        raise Undecided("weights that its bodies may read are declared to be others")
                    operands += [fetch(v) for v in captured_by(graph, node)]
                results = _results(graph, node, call, operands, domain, constants)
        except Undecided as error:
            raise Undecided(f"{graph.key(node)}: {error}") from error
        if depends(graph, node, drawn):
            drawn.update(o for o in graph.results(node) if o is not None)
        env.update((o, r) for o, r in zip(graph.results(node), results, strict=True) if o is not None)
    return [fetch(o) for o in side.outputs]


def _run_branch(
    branches: Branches,
    env: Mapping[Value, Any],
    fetch: Callable[[Value], Any],
    drawn: set[Value],
    domain: Field,
    constants: Constants,
) -> list[Any]:
    """What the body gives that runs whatever the inputs are; one drawn condition would not speak for the other."""
    condition = fetch(branches.condition)
    if branches.condition in drawn or isinstance(condition, FieldTensor) or np.size(condition) != 1:
        raise Undecided("which of its bodies runs depends on data")
    body = branches.body(bool(np.reshape(condition, ())))
    pairs = list(zip(body.inputs(), branches.operands, strict=True))
    env = {**env, **{v: fetch(o) for v, o in pairs}}
    drawn = drawn | {v for v, o in pairs if o in drawn}
    return _run(body, _whole(body), env, drawn, domain, constants)


def _fetcher(
    graph: Graph, side: Side, env: dict[Value, Any], domain: Field, constants: Constants
) -> Callable[[Value], Any]:
    def fetch(value: Value) -> Any:
        if value in env:
            return env[value]
        data = side.declared.get(value) or graph.constant(value)
        if data is None:
            raise Undecided(f"{graph.name(value)} is neither computed nor constant")
        if isinstance(value, Literal) and data.dtype in FLOATS:
            env[value] = domain.number(float(value.value))
        else:
            env[value] = _in_dtype(constants.evaluate(data, domain), data.dtype)
        return env[value]

    return fetch


def _in_dtype(x: Any, dtype: str) -> Any:
    """A weight as it is stored: what a rule computes of other weights is rounded once, to their dtype."""
    if not isinstance(x, FieldTensor) or x.facts.dtype == dtype:
        return x
    return FieldTensor(x.point, x.channels, replace(x.facts, dtype=dtype, fits=dtype))


def _results(
    graph: Graph, node: Node, call: Any, operands: Sequence[Any], domain: Field, constants: Constants
) -> Sequence[Any]:
    if not isinstance(call, Call):
        return _opaque(graph, node, operands, constants)
    try:
        results = OPS[call.op].meaning(domain, *operands, **call.fields)
    except Undecided:
        raise
    except Exception as error:
        raise Undecided(f"its meaning fails over the field: {type(error).__name__}: {error}") from error
    return results if isinstance(results, tuple | list) else (results,)


def _opaque(graph: Graph, node: Node, operands: Sequence[Any], constants: Constants) -> Sequence[Any]:
    """An op without a meaning: unknown tensors that follow from its name, attributes, bodies and all that is read."""
    raw, point = graph.raw_call(node), constants.point
    bodies = bodies_said(graph, node, _spell, constants.label) if graph.subgraphs(node) else ""
    if bodies is None or not graph.is_pure(node):
        raise Undecided("it has effects, or bodies of which nothing is known")
    label = f"{raw.op} {spelled(plain_fields(raw.fields))} of {len(raw.outputs)} {bodies}"
    point.functions.add(raw.op)
    results: list[Any] = []
    for i, output in enumerate(raw.outputs):
        type_ = None if output is None else graph.type(output)
        if output is None:
            results.append(None)
            continue
        if type_ is None or not type_.is_static or type_.shape is None or type_.dtype not in FLOATS:
            raise Undecided("it has no meaning, and its result no known shape of floats")
        shape = tuple(int(d) for d in type_.shape if d is not None)
        tensors = [_known(point, o) for o in operands]
        results.append(scrambled(point, tensors, f"{label} {i}", shape, open_facts(type_.dtype)))
    return results


def _known(point: Point, operand: Any) -> FieldTensor | None:
    if operand is None or isinstance(operand, FieldTensor):
        return operand
    return lift(point, np.asarray(operand))


def equal(before: Any, after: Any, point: Point) -> str | None:
    """None if two results agree at the point, else how they differ."""
    if not isinstance(before, FieldTensor) and not isinstance(after, FieldTensor):
        a, b = np.asarray(before), np.asarray(after)
        if a.dtype != b.dtype:
            return f"the dtype was {a.dtype} and becomes {b.dtype}"
        return None if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") else "integers differ"
    return _differing(*(x if isinstance(x, FieldTensor) else lift(point, np.asarray(x)) for x in (before, after)))


def _differing(a: FieldTensor, b: FieldTensor) -> str | None:
    if a.shape != b.shape:
        return f"the shape was {list(a.shape)} and becomes {list(b.shape)}"
    if a.facts.kind != b.facts.kind:
        return f"{a.facts.kind} becomes {b.facts.kind}"
    if None not in (a.facts.dtype, b.facts.dtype) and a.facts.dtype != b.facts.dtype:
        return f"the dtype was {a.facts.dtype} and becomes {b.facts.dtype}"
    pairs = [(x, y) for x, y in zip(a.channels, b.channels, strict=True) if x is not None and y is not None]
    if not pairs:
        return "nothing is known of both"
    differs = np.any([x != y for x, y in pairs], axis=0)
    if not np.any(differs):
        return None
    place = [int(i) for i in np.argwhere(differs)[0]] if differs.ndim else []
    return f"{int(np.sum(differs))} of {differs.size} elements differ, the first at {place}"
