"""Rows that pick weights by a table of ids, an axis of tokens and one of choices:

    matrices = gather(weights[E, out, in], ids[T, k]);  y[T, k, out] = einsum("ti,tkoi->tko", x[T, in], matrices) ...

Both axes count rows, and whatever treats each row by itself may be computed with one axis of T k rows in their place:
then `picked` knows them. Products are einsum, as gpt-fast writes experts, or matmul with two axes of batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.ir.graph import Call, Dim, Graph, Literal, Node, TensorType, Value
from graphopt.ir.ops import ELEMENTWISE
from graphopt.passes.lower_moe.stacks import stack_of
from graphopt.rewrite.journal import Journal

MOVED = {"unsqueeze": "axes", "squeeze": "axes", "split": "axis", "concat": "axis", "softmax": "axis", "slice": "axes"}
"""Ops whose axes are one less without the axis of choices, by the field that names them."""


@dataclass
class Table:
    """Everything that is computed with the weights that one table of ids picks, as far as rows stay rows."""

    graph: Graph
    ids: Value
    picks: list[Call] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    rows: set[Value] = field(default_factory=set)
    """Values with the axes of the table in front."""

    @property
    def sizes(self) -> tuple[Dim, int]:
        type_ = self.graph.type(self.ids)
        assert type_ is not None and type_.shape is not None
        tokens, choices = type_.shape
        assert isinstance(choices, int)
        return tokens, choices

    @property
    def nodes(self) -> list[Node]:
        chosen = {c.node for c in (*self.picks, *self.calls)}
        return [n for n in self.graph.nodes() if n in chosen]

    @property
    def outputs(self) -> list[Value]:
        inside = {c.node for c in self.calls}
        made = [o for c in self.calls for o in c.outputs if o is not None]
        graph = self.graph
        return [o for o in made if graph.is_output(o) or any(u not in inside for u in graph.users(o))]


def tables_of(graph: Graph) -> list[Table]:
    """Tables that pick matrices which are only multiplied, each with all that can be computed in flat rows."""
    found: dict[Value, Table] = {}
    for node in graph.nodes():
        call = graph.call(node)
        if not isinstance(call, Call):
            continue
        if call.op == "gather" and call.fields["axis"] == 0 and _is_table(graph, call.operands[1]):
            if stack_of(graph, call.operands[0]) is not None:
                table = found.setdefault(call.operands[1], Table(graph, call.operands[1]))
                table.picks.append(call)
                table.rows.update(call.outputs)
            continue
        for table in found.values():
            if any(o in table.rows for o in call.operands if not isinstance(o, Literal | None)) and _fits(table, call):
                table.calls.append(call)
                table.rows.update(o for o in call.outputs if o is not None)
    return [table for table in found.values() if _trimmed(table)]


def _is_table(graph: Graph, ids: Value) -> bool:
    type_ = None if isinstance(ids, Literal) else graph.type(ids)
    if type_ is None or type_.shape is None or type_.rank != 2:
        return False
    return isinstance(type_.shape[0], int | str) and isinstance(type_.shape[1], int) and type_.shape[1] > 0


def _trimmed(table: Table) -> bool:
    """Leave out what follows the last product. Whether there is a product, all matrices are read here alone, and no
    result is read here too."""
    while table.calls and table.calls[-1].op not in ("matmul", "einsum"):
        table.rows.difference_update(table.calls.pop().outputs)
    inside, graph = {c.node for c in table.calls}, table.graph
    picked = [c.outputs[0] for c in table.picks if (graph.type(c.outputs[0]) or TensorType("", ())).rank == 4]
    alone = all(u in inside for value in picked for u in graph.users(value))
    shared = [o for o in table.outputs if any(u in inside for u in graph.users(o))]
    return bool(table.calls and picked) and alone and not shared


def _fits(table: Table, call: Call) -> bool:
    """Whether `call` treats the rows of `table` by themselves, in a way that is known to be said of flat rows."""
    operands = [o for o in call.operands if o is not None and not isinstance(o, Literal)]
    outputs = [table.graph.type(o) for o in call.outputs if o is not None]
    if any(t is None or not _has_rows(table, t) for t in outputs):
        return False
    if call.op == "einsum":
        return len(operands) == 2 and _equation(table, call) is not None
    ranks = {t.rank for o in operands if (t := table.graph.type(o)) is not None}
    if call.op == "matmul" or call.op in ELEMENTWISE - {"prelu"}:
        rank = outputs[0].rank  # type: ignore[union-attr]
        rows = [o in table.rows and _rank(table, o) == rank for o in operands]
        return all(
            row or (o not in table.rows and (_enters(table, o, rank) or _is_inner(table, o, rank)))
            for row, o in zip(rows, operands, strict=True)
        )
    if call.op == "transpose":
        return bool(call.fields["perm"][:2] == (0, 1))
    if call.op in MOVED and len(ranks) == 1:
        axes = call.fields[MOVED[call.op]]
        return all(o in table.rows for o in operands) and min(axes if isinstance(axes, tuple) else (axes,)) >= 2
    return False


def _has_rows(table: Table, type_: TensorType) -> bool:
    """Whether the axes of the table are in front, and all others have known sizes."""
    shape = type_.shape
    return shape is not None and shape[:2] == table.sizes and all(isinstance(d, int) for d in shape[2:])


def _enters(table: Table, value: Value, rank: int | None) -> bool:
    """Whether `value` has these axes too, or the same for all choices of a token."""
    type_ = table.graph.type(value)
    if type_ is None or type_.shape is None or type_.rank != rank or len(type_.shape) < 2:
        return False
    tokens, choices = table.sizes
    inner = all(isinstance(d, int) for d in type_.shape[2:])
    return inner and type_.shape[0] == tokens and type_.shape[1] in (1, choices)


def _is_inner(table: Table, value: Value, rank: int | None) -> bool:
    """Whether `value` is the same for all rows because it has fewer axes."""
    type_ = table.graph.type(value)
    return type_ is not None and type_.rank is not None and rank is not None and type_.rank <= rank - 2


def _equation(table: Table, call: Call) -> tuple[Value, Value, bool] | None:
    """Rows, matrices, and whether the rows are on the right, if an einsum multiplies each row and its matrix."""
    left, right = call.operands
    letters, arrow, result = call.fields["equation"].replace(" ", "").partition("->")
    first, second = letters.split(",")
    if left in table.rows and _rank(table, left) == 4:
        left, right, first, second = right, left, second, first
    if not arrow or right not in table.rows or _rank(table, right) != 4 or len({*second}) != 4:
        return None
    t, k, a, b = second
    sides = {a + b: (b, False), b + a: (a, True)}
    for kept, (summed, transposed) in {a: sides[a + b], b: sides[b + a]}.items():
        known = left in table.rows or _enters(table, left, 3) if first == t + k + summed else _is_tokens(table, left)
        if first in (t + summed, t + k + summed) and result == t + k + kept and known:
            return left, right, not transposed
    return None


def _is_tokens(table: Table, value: Value) -> bool:
    type_ = table.graph.type(value)
    shape = None if type_ is None else type_.shape
    return shape is not None and len(shape) == 2 and shape[0] == table.sizes[0] and isinstance(shape[1], int)


def _rank(table: Table, value: Value) -> int | None:
    type_ = table.graph.type(value)
    return None if type_ is None else type_.rank


# ---- writing -----------------------------------------------------------------------------------------------


def write_flat(table: Table, journal: Journal) -> None:
    """The same with one axis of rows, and the results in the axes that they had."""
    writer = _Writer(table, journal)
    for call in table.picks:
        writer.pick(call)
    for call in table.calls:
        writer.write(call)
    for output in table.outputs:
        writer.leave(output)
    journal.doom(table.nodes)


class _Writer:
    def __init__(self, table: Table, journal: Journal) -> None:
        self.table = table
        self.graph = table.graph
        self.journal = journal
        self.values: dict[Value, Value] = {}
        tokens, choices = table.sizes
        self.count: Dim = tokens * choices if isinstance(tokens, int) else f"{choices}*{tokens}"
        self.before: Node = table.nodes[0]
        type_ = TensorType(self.graph.type(table.ids).dtype, (self.count,))  # type: ignore[union-attr]
        self.ids = self.insert("reshape", [table.ids, None], {"shape": (-1,)}, type_)

    def pick(self, call: Call) -> None:
        self.before = call.node
        flat = self._flat(call.outputs[0])
        self.values[call.outputs[0]] = self.insert("gather", [call.operands[0], self.ids], {"axis": 0}, flat)

    def write(self, call: Call) -> None:
        self.before = call.node
        if call.op == "einsum":
            self.values[call.outputs[0]] = self._einsum(call)
            return
        fields = dict(call.fields)
        if call.op in MOVED:
            axes = fields[MOVED[call.op]]
            fields[MOVED[call.op]] = tuple(a - 1 for a in axes) if isinstance(axes, tuple) else axes - 1
        elif call.op == "transpose":
            fields["perm"] = (0, *(axis - 1 for axis in fields["perm"][2:]))
        rank = _rank(self.table, next(o for o in call.outputs if o is not None))
        operands = [self._operand(o, rank, call) for o in call.operands]
        types = [None if o is None else self._flat(o) for o in call.outputs]
        written = self.journal.insert(call.op, operands, fields, before=self.before, types=types)
        self.values.update({o: w for o, w in zip(call.outputs, written, strict=True) if o is not None})

    def leave(self, output: Value) -> None:
        type_ = self.graph.type(output)
        assert type_ is not None and type_.shape is not None
        users = [*self.graph.users(output)]
        producer = self.graph.producer(output)
        places = {node: place for place, node in enumerate(self.graph.nodes())}
        self.before = min((u for u in users if u in places), key=places.__getitem__, default=producer)
        made = self.insert("reshape", [self.values[output], None], {"shape": (-1, *type_.shape[1:])}, type_)
        self.journal.replace(output, made)

    def _operand(self, value: Value | None, rank: int | None, call: Call) -> Value | None:
        if value is None or isinstance(value, Literal) or value in self.values:
            return None if value is None else self.values.get(value, value)
        if call.op not in MOVED and call.op != "transpose" and _enters(self.table, value, rank):
            return self._entered(value)
        return value

    def _entered(self, value: Value) -> Value:
        """A value of other origin with the axes of the table, or with one row for all choices of a token."""
        type_ = self.graph.type(value)
        assert type_ is not None and type_.shape is not None
        choices, inner = self.table.sizes[1], type_.shape[2:]
        if type_.shape[1] != choices:
            wide = TensorType(type_.dtype, (type_.shape[0], choices, *inner))
            fields = {"shape": (1, choices, *(1 for _ in inner))}
            value = self.insert("expand", [value, None], fields, wide)
        flat = TensorType(type_.dtype, (self.count, *inner))
        return self.insert("reshape", [value, None], {"shape": (-1, *inner)}, flat)

    def _einsum(self, call: Call) -> Value:
        found = _equation(self.table, call)
        assert found is not None
        rows, matrices, right = found
        type_ = self.graph.type(rows)
        assert type_ is not None and type_.shape is not None
        width, dtype = type_.shape[-1], type_.dtype
        if len(type_.shape) == 2:
            token = TensorType(dtype, (type_.shape[0], 1, width))
            rows = self.insert("unsqueeze", [rows], {"axes": (1,)}, token)
        flat = self.values[rows] if rows in self.values else self._entered(rows)
        axis = 2 if right else 1
        column = TensorType(dtype, (self.count, width, 1) if right else (self.count, 1, width))
        row = self.insert("unsqueeze", [flat], {"axes": (axis,)}, column)
        result = self._flat(call.outputs[0])
        kept = result.shape[1]  # type: ignore[index]
        full = TensorType(dtype, (self.count, kept, 1) if right else (self.count, 1, kept))
        factors = [self.values[matrices], row] if right else [row, self.values[matrices]]
        product = self.insert("matmul", factors, {}, full)
        return self.insert("squeeze", [product], {"axes": (axis,)}, result)

    def _flat(self, value: Value) -> TensorType:
        type_ = self.graph.type(value)
        assert type_ is not None and type_.shape is not None
        return TensorType(type_.dtype, (self.count, *type_.shape[2:]))

    def insert(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, object], type_: TensorType
    ) -> Value:
        return self.journal.insert(op, operands, fields, before=self.before, types=[type_])[0]
