"""Experts on tokens that are sorted by expert, as `torch.nn.functional.grouped_mm` wants them.

    expert of each row, order = sort(ids), or order = argsort(ids), expert of each row = ids[order]
    x = tokens[order // k];  ends = cumsum(histogram(expert of each row))
    y = ... grouped_matmul(x, weights, ends) ...;  result = y[inverse of order]

Whatever happens between the sort and its inverse happens to each row by itself, so that it may as well be done in the
order in which the rows came: then each row picks the matrix of its expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from graphopt.ir.graph import Call, Dim, Graph, Literal, Node, TensorType, Value
from graphopt.ir.row_ops import mixes_rows
from graphopt.passes.lower_moe.stacks import are_experts
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal


class NotGrouped(Exception):
    """A sort that is not one of tokens by expert, or something that happens between it and its inverse; the reason."""


@dataclass
class Grouped:
    """Everything between a sort by expert and the places where that is undone."""

    graph: Graph
    sort: Call
    experts: set[Value] = field(default_factory=set)
    """Ids in the sorted order."""
    rows: dict[Value, Call] = field(default_factory=dict)
    """Values in the sorted order, by what computes them."""
    tokens: dict[Value, int] = field(default_factory=dict)
    """Numbers of the token of each row, order // k, by k."""
    counts: dict[Value, int] = field(default_factory=dict)
    """Numbers of rows of each expert, by the number of experts."""
    ends: dict[Value, int] = field(default_factory=dict)
    """Their running sums, likewise."""
    inverses: set[Value] = field(default_factory=set)
    exits: list[Call] = field(default_factory=list)
    """The calls that put rows back in their places."""
    calls: list[Call] = field(default_factory=list)
    """All of it, in order."""

    @property
    def ids(self) -> Value:
        return self.sort.operands[0]

    @property
    def order(self) -> Value:
        return self.sort.outputs[1]

    def knows(self, value: Value | None) -> bool:
        tables = (self.experts, self.rows, self.tokens, self.counts, self.ends, self.inverses)
        return value is not None and (value == self.order or any(value in t for t in tables))


def sorts_of(graph: Graph) -> Iterator[Call]:
    """Sorts of one axis of integers, in which order of tokens by expert may be meant."""
    if not any(graph.key(node) == "grouped_matmul" for node in graph.nodes()):
        return
    for node in graph.nodes():
        call = graph.call(node) if graph.key(node) == "sort" else None
        if not isinstance(call, Call) or call.outputs[1] is None or _key_of(graph, call.operands[0]) == "sort":
            continue
        type_ = graph.type(call.operands[0])
        if type_ is not None and type_.rank == 1 and type_.dtype in ("int32", "int64"):
            yield call


def _key_of(graph: Graph, value: Value | None) -> str | None:
    node = None if value is None else graph.producer(value)
    return None if node is None else graph.key(node)


def grouped_by(graph: Graph, sort: Call) -> Grouped:
    """What `sort` sorts for. Raises NotGrouped."""
    if sort.fields["descending"]:
        raise NotGrouped("it puts the last expert first")
    found = Grouped(graph, sort, {o for o in sort.outputs[:1] if o is not None})
    for node in graph.nodes():
        if any(found.knows(o) for o in graph.raw_call(node).operands if not isinstance(o, Literal | None)):
            call = graph.call(node)
            if not isinstance(call, Call):
                raise NotGrouped(f"{graph.node_name(node)}: {call.reason}")
            _place(found, call)
            found.calls.append(call)
    _check(found)
    return found


def _check(found: Grouped) -> None:
    graph, groups = found.graph, {*found.counts.values()}
    if not found.exits or not any(c.op == "grouped_matmul" for c in found.calls):
        raise NotGrouped("no product of groups is put back in the order of the tokens")
    kept = [o for c in found.calls if c not in found.exits for o in c.outputs if o is not None and graph.is_output(o)]
    if kept or any(graph.is_output(o) for o in found.sort.outputs if o is not None):
        raise NotGrouped("an output of the graph is in the order of the experts")
    if not all(are_experts(graph, found.ids, count) for count in groups):
        raise NotGrouped(f"{graph.name(found.ids)} are not certain to be numbers of {groups} experts")


def _place(found: Grouped, call: Call) -> None:
    """Say what `call` is in the sorted order. Raises NotGrouped if it is nothing that is known."""
    graph, first = found.graph, call.operands[0]
    second = call.operands[1] if len(call.operands) > 1 else None
    match call.op:
        case "div" if first == found.order and isinstance(second, Literal) and call.fields["rounding"] == "floor":
            found.tokens[call.outputs[0]] = int(second.value)
        case "sort" if first == found.order and not call.fields["descending"] and call.outputs[0] is None:
            found.inverses.add(call.outputs[1])
        case "gather" if call.fields["axis"] == 0 and (second in found.tokens or second == found.order):
            _enter(found, call)
        case "gather" if call.fields["axis"] == 0 and second in found.inverses and first in found.rows:
            found.exits.append(call)
        case "histogram" if _counts(found, call):
            found.counts[call.outputs[0]] = call.fields["bins"]
        case "cumsum" if first in found.counts and not (call.fields["exclusive"] or call.fields["reverse"]):
            found.ends[call.outputs[0]] = found.counts[first]
        case "grouped_matmul" if first in found.rows and call.operands[2] in found.ends:
            if found.knows(second) or _size(graph, second) != found.ends[call.operands[2]]:
                raise NotGrouped(f"{graph.node_name(call.node)}: there are not as many matrices as experts")
            found.rows[call.outputs[0]] = call
        case _:
            _by_rows(found, call)


def _enter(found: Grouped, call: Call) -> None:
    """Rows that are put into the sorted order: one for each, or tokens that stand for k rows each."""
    graph, (x, order) = found.graph, call.operands[:2]
    repeats = found.tokens.get(order, 1)
    if found.knows(x) or not _holds(_size(graph, x), repeats, _size(graph, found.ids)):
        raise NotGrouped(f"{graph.node_name(call.node)}: not {repeats} rows for each of {graph.name(x)}")
    found.rows[call.outputs[0]] = call
    if x == found.ids and repeats == 1:
        found.experts.add(call.outputs[0])


def _counts(found: Grouped, call: Call) -> bool:
    """Whether `call` counts the rows of every expert."""
    call_of = found.rows.get(call.operands[0])
    counted = call.operands[0] in found.experts or (
        call_of is not None and call_of.op == "cast" and call_of.operands[0] in found.experts
    )
    bins, ends = call.fields["bins"], (call.fields["low"], call.fields["high"])
    return counted and (ends == (0, bins - 1) or (ends == (None, None) and bins == 1))


def _by_rows(found: Grouped, call: Call) -> None:
    graph, known = found.graph, {*found.rows, *found.experts}
    strange = [o for o in call.operands if found.knows(o) and o not in known]
    reason = "it reads more than rows" if strange else mixes_rows(graph, call, known)
    if reason is not None:
        raise NotGrouped(f"{graph.node_name(call.node)}: {reason}")
    for output in call.outputs:
        if output is not None:
            found.rows[output] = call


def _size(graph: Graph, value: Value | None) -> int | str | None:
    type_ = None if value is None else graph.type(value)
    return type_.shape[0] if type_ is not None and type_.shape else None


def _holds(tokens: int | str | None, repeats: int, rows: int | str | None) -> bool:
    """Whether there are certainly `repeats` rows for each token."""
    if isinstance(tokens, int) and isinstance(rows, int):
        return tokens * repeats == rows
    return isinstance(tokens, str) and rows == (tokens if repeats == 1 else f"{repeats}*{tokens}")


# ---- writing -----------------------------------------------------------------------------------------------


def write_unsorted(found: Grouped, journal: Journal) -> None:
    """The same rows in the order of the tokens, each with the matrix that it picks."""
    writer = _Writer(found, journal)
    for call in found.calls:
        if call in found.exits:
            journal.replace(call.outputs[0], writer.values[call.operands[0]])
        elif any(o in found.rows for o in call.outputs):
            writer.write(call)
    journal.doom([found.sort.node, *(c.node for c in found.calls)])


class _Writer:
    def __init__(self, found: Grouped, journal: Journal) -> None:
        self.found = found
        self.journal = journal
        self.values: dict[Value, Value] = dict.fromkeys(found.experts, found.ids)

    def write(self, call: Call) -> None:
        found, operands = self.found, call.operands
        if call.op == "gather" and operands[1] == found.order:
            self.values[call.outputs[0]] = operands[0]
        elif call.op == "gather" and operands[1] in found.tokens:
            fields = {"repeats": found.tokens[operands[1]], "axis": 0}
            repeated = self._insert("repeat_interleave", [operands[0]], fields, call.outputs[0], call.node)
            self.values[call.outputs[0]] = repeated
        elif call.op == "grouped_matmul":
            self.values[call.outputs[0]] = self._product(call)
        else:
            self._again(call)

    def _again(self, call: Call) -> None:
        operands = [self.values.get(o, o) if not isinstance(o, Literal | None) else o for o in call.operands]
        types = [None if o is None else self.found.graph.type(o) for o in call.outputs]
        written = self.journal.insert(call.op, operands, call.fields, before=call.node, types=types)
        self.values.update({o: w for o, w in zip(call.outputs, written, strict=True) if o is not None})

    def _product(self, call: Call) -> Value:
        """x[S, 1, in] @ w[S, in, out], with the matrix of its expert for each row."""
        graph, (x, weights) = self.found.graph, call.operands[:2]
        result, stack = graph.type(call.outputs[0]), graph.type(weights)
        if result is None or result.shape is None or stack is None or stack.shape is None:
            raise Rejected("the type of the product is not known", Evidence("none"))
        (rows, out), (_, wide, _) = result.shape, stack.shape

        def typed(*sizes: Dim) -> TensorType:
            return TensorType(result.dtype, (rows, *sizes))

        matrices = self._insert("gather", [weights, self.found.ids], {"axis": 0}, typed(wide, out), call.node)
        row = self._insert("unsqueeze", [self.values[x]], {"axes": (1,)}, typed(1, wide), call.node)
        product = self._insert("matmul", [row, matrices], {}, typed(1, out), call.node)
        return self._insert("squeeze", [product], {"axes": (1,)}, result, call.node)

    def _insert(
        self, op: str, operands: list[Value], fields: Mapping[str, object], like: Value | TensorType, before: Node
    ) -> Value:
        type_ = like if isinstance(like, TensorType) else self.found.graph.type(like)
        return self.journal.insert(op, operands, fields, before=before, types=[type_])[0]


def nodes_of(found: Grouped) -> list[Node]:
    """What is replaced, in order."""
    return [found.sort.node, *(c.node for c in found.calls)]
