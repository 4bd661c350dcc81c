"""On how many rows fragments are run whose every op treats each row alike: on fewer than the model has where that saves
much memory, and on more where otherwise not every matrix of a stack would be picked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from graphopt.ir.graph import Call, Graph, Literal, TensorType, Value
from graphopt.ir.row_ops import mixes_rows
from graphopt.verify.fragment import Fragment

LEAST = 16
"""Rows that are run at the least."""
MOST_INDICES = 512
"""The longest axis of which every index has to occur; a table of words is longer."""
MOST_NUMBERS = 1 << 28
"""Numbers that may be gathered for the sake of that."""
MANY_NUMBERS = 1 << 24
"""Numbers that are gathered from where on fewer rows are run."""


def indexed(fragment: Fragment, calls: Sequence[Call]) -> Iterator[tuple[Value, int]]:
    """Integer inputs of the fragment that are used as indices, and of how many each should occur."""
    graph = fragment.graph
    for call in calls:
        if call.op == "gather" and call.operands[1] in fragment.inputs:
            table = graph.type(call.operands[0])
            if table is None or not table.is_static or table.shape is None:
                continue
            extent = int(table.shape[call.fields["axis"]] or 0)
            numbers = math.prod(int(d or 0) for d in table.shape)
            if extent <= MOST_INDICES and numbers <= MOST_NUMBERS:
                yield call.operands[1], extent
        elif call.op == "histogram" and call.fields["bins"] <= MOST_INDICES:
            yield from ((v, call.fields["bins"]) for v in fragment.inputs if _is_integer(graph, v))


def scored(fragment: Fragment, calls: Sequence[Call]) -> Iterator[tuple[Value, int]]:
    """Inputs of the fragment that are scores of experts, and of how many rows each expert is all but certain to be
    chosen."""
    graph, stacks = fragment.graph, any(_is_stack(fragment, call) for call in calls)
    for call in calls if stacks else ():
        known = graph.type(call.operands[{"moe": 1, "topk": 0}[call.op]]) if call.op in ("moe", "topk") else None
        experts = known.shape[-1] if known is not None and known.shape else None
        if isinstance(experts, int) and experts <= MOST_INDICES:
            types = [(v, graph.type(v)) for v in fragment.inputs]
            yield from ((v, 8 * experts) for v, t in types if t is not None and t.rank == 2 and t.shape[1] == experts)  # type: ignore[index]


def _is_integer(graph: Graph, value: Value) -> bool:
    type_ = graph.type(value)
    return type_ is not None and type_.dtype in ("int32", "int64")


def telling_rows(
    fragment: Fragment, shapes: Sequence[tuple[int, ...]], calls: Sequence[Call]
) -> list[tuple[int, ...]] | None:
    """`shapes` of the inputs with as many rows as let every index occur, where they have too many or too few; None if
    rows may depend on one another, or if their number does well."""
    found = {shape[0] if shape else 0 for shape in shapes}
    least = max([LEAST, *(count for _, count in (*indexed(fragment, calls), *scored(fragment, calls)))])
    rows, numbers = max(found, default=0), _gathered(fragment, calls)
    many = rows > least and rows * numbers >= MANY_NUMBERS
    few = rows < least and any(_is_stack(fragment, call) for call in calls)
    if len(found) != 1 or not (many or few):
        return None
    return [(least, *shape[1:]) for shape in shapes] if _alike(fragment, calls) else None


def _is_stack(fragment: Fragment, call: Call) -> bool:
    """Whether `call` picks matrices."""
    if call.op == "moe":
        return True
    table = _table(fragment, call)
    return table is not None and (table.rank or 0) > 2


def _gathered(fragment: Fragment, calls: Sequence[Call]) -> int:
    """Numbers that are gathered for each index."""
    total = 0
    for call in calls:
        table = _table(fragment, call)
        if table is not None and table.is_static and table.shape is not None:
            total += math.prod(int(d or 0) for d in table.shape[1:])
    return total


def _table(fragment: Fragment, call: Call) -> TensorType | None:
    """The type of what `call` picks slices of axis 0 of."""
    by_rows = call.op == "gather_nd" or (call.op == "gather" and call.fields["axis"] == 0)
    return fragment.graph.type(call.operands[0]) if by_rows else None


def _alike(fragment: Fragment, calls: Sequence[Call]) -> bool:
    """Whether every output has the rows of the inputs, each computed by itself."""
    graph, rows = fragment.graph, set(fragment.inputs)
    if len(calls) != len(fragment.before.nodes):
        return False
    for call in calls:
        if not any(o in rows for o in call.operands if o is not None and not isinstance(o, Literal)):
            continue
        if mixes_rows(graph, call, rows) is not None:
            return False
        rows.update(o for o in call.outputs if o is not None)
    return all(o in rows for o in fragment.before.outputs)
