"""Computing every value once: nodes that say the same of the same operands are merged, and so are equal
constants.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.weights import TensorRef
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

SMALL = 1024
"""Constants of at most this many bytes are compared by value, larger ones by being the same stored tensor."""


class NotComparable(Exception):
    """The node holds something whose equality is not defined: a control-flow body, a tensor attribute."""


def merge_equal_nodes(editor: Editor, settled: set[Hashable]) -> bool:
    """Let the readers of a node read an earlier one that computes the same; returns whether any were merged.

    Nodes are visited in topological order, so that what reads merged values is seen to be equal itself.
    `settled` holds the nodes whose merger was refused before; it is added to.
    """
    graph, kept = editor.graph, False
    numbering = Numbering(graph)
    first: dict[Hashable, Node] = {}
    for node in graph.nodes():
        if editor.ledger.exhausted:
            break
        key = numbering.key(node)
        if key is None:
            continue
        original = first.setdefault(key, node)
        if original is node or node in settled or not _may_merge(graph, original, node):
            continue
        application, _ = editor.apply("merge-equal-nodes", Exact(), [node], _redirect(graph, original, node))
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


def _redirect(graph: Graph, original: Node, duplicate: Node) -> Callable[[Journal], None]:
    def write(journal: Journal) -> None:
        for old, new in _read_pairs(graph, original, duplicate):
            journal.replace(old, new)
        journal.doom([duplicate])

    return write


def _read_pairs(graph: Graph, original: Node, duplicate: Node) -> list[tuple[Value, Value]]:
    """The outputs of `duplicate` that somebody reads, beside those of `original`."""
    pairs = zip(graph.raw_call(duplicate).outputs, graph.raw_call(original).outputs, strict=True)
    return [
        (old, new) for old, new in pairs if old is not None and (graph.users(old) or graph.is_output(old))
    ]


def _may_merge(graph: Graph, original: Node, duplicate: Node) -> bool:
    """Whether every read output has a counterpart, no value would have to bear two output names, and no two
    outputs of a torch graph would share memory."""
    pairs = _read_pairs(graph, original, duplicate)
    return bool(pairs) and not any(
        new is None or (graph.is_output(old) and graph.is_output(new)) or graph.would_share(old, new)
        for old, new in pairs
    )


class Numbering:
    """Keys that are equal only for nodes that compute the same."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._constants: dict[Value, Hashable] = {}

    def key(self, node: Node) -> Hashable | None:
        """What `node` computes, or None if it may not be merged with anything."""
        graph = self._graph
        call = graph.raw_call(node)
        if not call.operands or graph.subgraphs(node) or not graph.is_pure(node):
            return None
        try:
            operands = tuple(None if o is None else self._operand(o) for o in call.operands)
            return call.op, operands, attribute_key(call.fields), _arity(call)
        except NotComparable:
            return None

    def _operand(self, value: Value) -> Hashable:
        if isinstance(value, Literal):
            # Literals are equal by value, which does not tell 0.0 from -0.0.
            return Literal, value.dtype, attribute_key(value.value)
        if value not in self._constants:
            data = self._graph.constant(value)
            self._constants[value] = ("value", id(value)) if data is None else constant_key(data)
        return self._constants[value]


def _arity(call: Call) -> tuple[bool, ...]:
    return tuple(o is not None for o in call.outputs)


def constant_key(data: TensorRef) -> Hashable:
    """Equal only for constants of one dtype, shape and content; large ones are told apart without reading
    them.
    """
    if data.nbytes <= SMALL:
        return "bytes", data.dtype, data.shape, data.numpy().tobytes()
    return "stored", data.dtype, data.shape, data.identity


def attribute_key(value: Any) -> Hashable:
    """`value` of an attribute, such that equal keys mean equal attributes: 1, 1.0 and True differ, 0.0 and
    -0.0 too.
    """
    match value:
        case None | bool() | int() | str() | bytes():
            return type(value), value
        case float():
            return float, value.hex()
        case Mapping():
            return tuple(sorted((str(k), attribute_key(v)) for k, v in value.items()))
        case Literal():
            return Literal, value.dtype, attribute_key(value.value)
        case Sequence():
            return "sequence", tuple(attribute_key(v) for v in value)
    try:
        hash(value)
    except TypeError as error:
        raise NotComparable from error
    return type(value), value


def merge_equal_constants(editor: Editor, settled: set[Hashable]) -> bool:
    """Let equal constants of the region be one, as one application; returns whether there were any.

    Only for a region without an outer one: there, whatever a node reads belongs to the region. `settled`
    holds the constants whose merger was refused before; it is added to.
    """
    graph = editor.graph
    pairs = _equal_constants(graph, settled)
    if not pairs or editor.ledger.exhausted:
        return False

    def write(journal: Journal) -> None:
        for old, new in pairs.items():
            journal.replace(old, new)

    application, _ = editor.apply("merge-equal-constants", Exact(), [], write)
    if application.status != "kept":
        settled.update(pairs)
    return application.status == "kept"


def _equal_constants(graph: Graph, settled: set[Hashable]) -> dict[Value, Value]:
    """Constants that the nodes of the region read, each with an equal one that is read before it."""
    first: dict[Hashable, Value] = {}
    pairs: dict[Value, Value] = {}
    read = dict.fromkeys(o for n in graph.nodes() for o in graph.raw_call(n).operands)
    for value in read:
        if value is None or isinstance(value, Literal) or value in settled:
            continue
        data = graph.constant(value)
        if data is None or graph.producer(value) is not None or graph.may_be_returned(value):
            continue
        # Parameters that are equal by chance go on being several: each has a gradient of its own, and what a statistic
        # becomes must have none.
        key = ("trainable", data.identity) if data.trainable else constant_key(data)
        original = first.setdefault(key, value)
        if original is not value:
            pairs[value] = original
    return pairs
