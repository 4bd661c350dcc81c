"""Rows that pick the weights of their expert: weights[ids] makes a copy of a matrix for every row.

    matrices = gather(weights[E, in, out], ids[S]);  y = act(x[S, 1, in] @ matrices) @ ...

The region of one `ids` is everything from the first use of what is picked to the last, as long as every op treats each
row by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from graphopt.ir.graph import Call, Dim, Graph, Literal, Node, Value
from graphopt.ir.row_ops import mixes_rows
from graphopt.passes.lower_moe.stacks import Stack, stack_of

WRAPPING = frozenset({"unsqueeze", "squeeze"})
"""Ops that only give rows another form: they are taken in at either end."""


class NotPicked(Exception):
    """Rows that pick weights and something besides; the reason."""


@dataclass(frozen=True)
class Picked:
    """What is computed of each row with the weights of the expert that `ids` names."""

    graph: Graph
    ids: Value
    stacks: dict[Value, Stack]
    """The values that hold a weight for each row, and where these come from."""
    picks: tuple[Call, ...]
    calls: tuple[Call, ...]
    """What is computed of them, in order."""
    inputs: tuple[Value, ...]
    """Values with a row for each id, computed elsewhere."""
    outputs: tuple[Value, ...]
    """Values that are read elsewhere."""
    anchor: Node
    """Before it everything that is read here is computed, and nothing of `outputs` is read elsewhere."""

    @property
    def experts(self) -> int:
        return next(iter(self.stacks.values())).experts

    @property
    def nodes(self) -> list[Node]:
        """What is replaced, in order."""
        chosen = {c.node for c in (*self.picks, *self.calls)}
        return [n for n in self.graph.nodes() if n in chosen]


def picked_rows(graph: Graph) -> Iterator[Picked | tuple[Call, str]]:
    """Every region of `graph`; where weights are picked and the region is none, the first pick and the reason. Each is
    looked at when it is asked for, so that the one before may have been rewritten."""
    for ids, picks in _picks(graph).items():
        for part in _parts(graph, ids, picks):
            stacks = {call.outputs[0]: stack for call, stack in part}
            calls = [call for call, _ in part]
            try:
                yield _region(graph, ids, calls, stacks)
            except NotPicked as error:
                yield calls[0], str(error)
    yield from _overlooked(graph)


Picks: TypeAlias = list[tuple[Call, Stack]]


def _parts(graph: Graph, ids: Value, picks: Picks) -> list[Picks]:
    """`picks` by the regions that they are of: layers that share a router have nothing else in common. A value that
    something else reads too ends one region and is read by the next."""
    roots: dict[Value, Value] = {call.outputs[0]: call.outputs[0] for call, _ in picks}

    def root(value: Value) -> Value:
        while roots[value] != value:
            value = roots[value]
        return value

    stacks = {call.outputs[0]: stack for call, stack in picks}
    try:
        calls = _used(graph, stacks, _rows(graph, ids))
    except NotPicked:
        return [picks]  # the reason is found again and said
    inside = {c.node for c in calls}
    for call in calls:
        joined = [root(o) for o in _values(call) if o in roots]
        kept = [o for o in call.outputs if o is not None and not _leaves(graph, o, inside)]
        roots.update(dict.fromkeys(joined[1:] + kept, joined[0]) if joined else {})
    parts: dict[Value, Picks] = {}
    for pick in picks:
        parts.setdefault(root(pick[0].outputs[0]), []).append(pick)
    return list(parts.values())


def _used(graph: Graph, stacks: dict[Value, Stack], count: Dim) -> list[Call]:
    """What is computed row by row of what was picked, as far as weights are used. Raises NotPicked."""
    reached = _reached(graph, stacks, count)
    return _between(graph, reached, {c.node for c in reached if any(o in stacks for o in c.operands)})


def _reads(graph: Graph) -> Iterator[Call]:
    """Reads of slices of axis 0 at indices that are computed."""
    for node in graph.nodes():
        call = graph.call(node) if graph.key(node) == "gather" else None
        if isinstance(call, Call) and call.fields["axis"] == 0 and not isinstance(call.operands[1], Literal):
            yield call


def _overlooked(graph: Graph) -> Iterator[tuple[Call, str]]:
    """Matrices that are picked and multiplied in a way that is not known here, and what is in the way."""
    for call in _reads(graph):
        table, ids = graph.type(call.operands[0]), graph.type(call.operands[1])
        multiplied = any(graph.key(user) in ("matmul", "einsum") for user in graph.users(call.outputs[0]))
        if table is None or table.rank != 3 or not multiplied:
            continue
        if ids is None or ids.rank != 1:
            yield call, f"{graph.name(call.operands[1])} is not certain to have one axis, or what follows mixes rows"
        elif stack_of(graph, call.operands[0]) is None:
            yield call, f"{graph.name(call.operands[0])} is not constant"


def _picks(graph: Graph) -> dict[Value, Picks]:
    """Reads of matrices, and of vectors beside them, that are stacked by expert; by the ids that they are read at."""
    found: dict[Value, Picks] = {}
    for call in _reads(graph):
        ids = graph.type(call.operands[1])
        stack = stack_of(graph, call.operands[0]) if ids is not None and ids.rank == 1 else None
        if stack is not None:
            found.setdefault(call.operands[1], []).extend(_turned(graph, call, stack))
    return {ids: picks for ids, picks in found.items() if any(len(s.shape) == 3 for _, s in picks)}


def _turned(graph: Graph, pick: Call, stack: Stack) -> Picks:
    """`pick`, or what transposes each of its matrices if nothing else reads it."""
    value = pick.outputs[0]
    users = [graph.call(user) for user in graph.users(value)]
    turned = [c for c in users if isinstance(c, Call) and c.op == "transpose" and c.fields["perm"][0] == 0]
    if not turned or len(turned) < len(users) or graph.is_output(value):
        return [(pick, stack)]
    return [(c, Stack(stack.data, tuple(stack.perm[axis] for axis in c.fields["perm"]))) for c in turned]


def _region(graph: Graph, ids: Value, picks: list[Call], stacks: dict[Value, Stack]) -> Picked:
    if len({stack.experts for stack in stacks.values()}) != 1:
        raise NotPicked("the weights are of different numbers of experts")
    count = _rows(graph, ids)
    calls = _wrapped(graph, _used(graph, stacks, count), stacks, count)
    inside = {c.node for c in calls}
    made = {o for c in calls for o in c.outputs if o is not None}
    for value in stacks:
        if graph.is_output(value) or any(u not in inside for u in graph.users(value)):
            raise NotPicked(f"{graph.name(value)}, a copy of a weight for each row, is read by something else")
    outputs = [o for c in calls for o in c.outputs if o is not None and _leaves(graph, o, inside)]
    rowed = [o for c in calls for o in _row_operands(graph, c, count) if o not in made and o not in stacks]
    inputs = dict.fromkeys(rowed)
    for value in inputs:
        if count is None or _rows(graph, value) != count:
            raise NotPicked(f"{graph.name(value)} is not certain to have a row for each of {graph.name(ids)}")
    _require_rows(graph, calls, stacks, set(inputs), outputs)
    for value in outputs:
        if any(u in inside for u in graph.users(value)):
            raise NotPicked(f"{graph.name(value)} is read by the experts and by something else")
    anchor = _anchor(graph, calls, [ids, *inputs], outputs)
    turned = dict.fromkeys(graph.producer(c.operands[0]) for c in picks if c.op == "transpose")
    picks = [c for c in map(graph.call, turned) if isinstance(c, Call)] + picks
    return Picked(graph, ids, stacks, tuple(picks), tuple(calls), tuple(inputs), tuple(outputs), anchor)


def _anchor(graph: Graph, calls: list[Call], inputs: list[Value], outputs: list[Value]) -> Node:
    places = {node: place for place, node in enumerate(graph.nodes())}
    inside = {c.node for c in calls}
    readers = [u for o in outputs for u in graph.users(o) if u not in inside and u in places]
    last = max(inside, key=places.__getitem__)
    anchor = min([last, *readers], key=places.__getitem__)
    for value in inputs:
        if places.get(graph.producer(value), -1) >= places[anchor]:
            raise NotPicked(f"{graph.name(value)} is computed after a result of the experts is read")
    return anchor


def _require_rows(
    graph: Graph, calls: list[Call], stacks: dict[Value, Stack], rows: set[Value], outputs: list[Value]
) -> None:
    """Raise NotPicked where a weight would have to be repeated, for each row of its expert, in what is written."""
    for call in calls:
        values, name = _values(call), graph.node_name(call.node)
        picked = [stacks[o] for o in values if o in stacks]
        bare = [o for o in values if o not in rows]
        if call.op == "matmul" and len(picked) == 1 and (len(bare) > 1 or len(picked[0].shape) != 3):
            raise NotPicked(f"{name}: no product of a row and the matrix that it picks")
        if call.op == "concat" and bare:
            raise NotPicked(f"{name}: rows and weights are joined")
        if len(bare) < len(values):
            rows.update(o for o in call.outputs if o is not None)
    for value in outputs:
        if value not in rows:
            raise NotPicked(f"{graph.name(value)} is computed of weights alone")


def _rows(graph: Graph, value: Value) -> Dim:
    type_ = graph.type(value)
    return type_.shape[0] if type_ is not None and type_.shape else None


def _reached(graph: Graph, stacks: dict[Value, Stack], count: Dim) -> list[Call]:
    """What is computed row by row of what was picked, in order. Raises NotPicked where rows meet weights otherwise."""
    rows: set[Value] = set(stacks)
    found: list[Call] = []
    for node in graph.nodes():
        call = graph.call(node)
        if not isinstance(call, Call) or not any(o in rows for o in _values(call)):
            continue
        reason = mixes_rows(graph, call, {*rows, *_row_operands(graph, call, count)})
        if reason is None:
            found.append(call)
            rows.update(o for o in call.outputs if o is not None)
        elif any(o in stacks for o in _values(call)):
            raise NotPicked(f"{graph.node_name(node)}: {reason}")
    return found


def _values(call: Call) -> list[Value]:
    return [o for o in call.operands if o is not None and not isinstance(o, Literal)]


def _row_operands(graph: Graph, call: Call, count: Dim) -> list[Value]:
    """Operands that have a row for each of the `count` rows of the result: of as many axes, and no constants."""
    result = graph.type(next(o for o in call.outputs if o is not None))
    rank = None if result is None else result.rank
    rowed = []
    for operand in _values(call):
        type_ = graph.type(operand)
        fits = type_ is not None and bool(type_.shape) and graph.constant(operand) is None
        unary = len(_values(call)) == 1
        if fits and (unary or (type_.rank == rank and (count == 1 or type_.shape[0] != 1))):  # type: ignore[union-attr, index]
            rowed.append(operand)
    return rowed


def _between(graph: Graph, reached: list[Call], ends: set[Node]) -> list[Call]:
    """Those of `reached` from which a use of what is picked is reached, and these uses themselves."""
    needed: set[Value] = set()
    kept: list[Call] = []
    for call in reversed(reached):
        if call.node in ends or any(o in needed for o in call.outputs if o is not None):
            kept.append(call)
            needed.update(_values(call))
    return kept[::-1]


def _wrapped(graph: Graph, calls: list[Call], stacks: dict[Value, Stack], count: Dim) -> list[Call]:
    """With the ops before and behind that only add or drop an axis of size 1."""
    inside = {c.node for c in calls}
    made = dict.fromkeys(o for c in calls for o in c.outputs if o is not None)
    before: dict[Node, Call] = {}
    for call in calls:
        for operand in _row_operands(graph, call, count):
            node = graph.producer(operand)
            if operand in made or operand in stacks or node is None or graph.is_output(operand):
                continue
            wrapper = graph.call(node)
            alone = all(u in inside for u in graph.users(operand))
            if isinstance(wrapper, Call) and wrapper.op in WRAPPING and 0 not in wrapper.fields["axes"] and alone:
                before[node] = wrapper
    behind: list[Call] = []
    for output in [o for o in made if _leaves(graph, o, inside)]:
        users = graph.users(output)
        last = graph.call(users[0]) if len(users) == 1 and not graph.is_output(output) else None
        if isinstance(last, Call) and last.op in WRAPPING and 0 not in last.fields["axes"]:
            behind.append(last)
    return [*before.values(), *calls, *behind]


def _leaves(graph: Graph, value: Value, inside: set[Node]) -> bool:
    return graph.is_output(value) or any(u not in inside for u in graph.users(value))
