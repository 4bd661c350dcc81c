"""Integers and truth values that need no numbers: they are only moved, or added and multiplied.

Such an input stands for every integer, as a variable of the field: what agrees as polynomials over the integers agrees
in every ring, that of 64 bits with its overflow included. All other integers are drawn: indices, sizes, divisors.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.verify.fragment import Fragment, Side, reads

MOVES = frozenset({
    "identity", "reshape", "transpose", "expand", "unsqueeze", "squeeze", "concat", "stack", "split", "slice", "tile",
    "repeat_interleave", "roll", "gather",
})  # fmt: skip
TOGETHER = frozenset({"concat", "stack"})
"""Those of them that move all of their operands; the others move the first, by the rest."""
RING = frozenset({"add", "sub", "mul", "neg"})
LOGIC = frozenset({"logical_not", "logical_and", "logical_or", "logical_xor"})
"""Polynomials of their operands: 1 - x, x * y and so on."""


def needs_no_numbers(fragment: Fragment, value: Value) -> bool:
    """Whether neither side does more with the input `value` than moving, adding and multiplying."""
    return all(_is_token(fragment.graph, side, value) for side in (fragment.before, fragment.after))


def _is_token(graph: Graph, side: Side, value: Value) -> bool:
    known = {value}
    for node in side.nodes:
        if graph.key(node) == "shape" or known.isdisjoint(reads(graph, node)):
            continue
        call = graph.call(node)
        if not isinstance(call, Call) or not (_moves(graph, call, known) or _computes(graph, call)):
            return False
        known.update(o for o in call.outputs if o is not None)
    return True


def _moves(graph: Graph, call: Call, known: set[Value]) -> bool:
    if call.op == "cast":
        type_ = graph.type(call.operands[0])
        return type_ is not None and type_.dtype == call.fields["dtype"]
    return call.op in MOVES and (call.op in TOGETHER or not any(o in known for o in call.operands[1:]))


def _computes(graph: Graph, call: Call) -> bool:
    """Whether the node computes polynomials in one ring of integers, or of truth values."""
    if call.op not in RING | LOGIC:
        return False
    types = [None if o is None else graph.type(o) for o in call.operands]
    dtypes = {None if t is None else t.dtype for t in types}
    return len(dtypes) == 1 and str(dtypes.pop()).startswith("bool" if call.op in LOGIC else ("int", "uint"))


def depends(graph: Graph, node: Node, drawn: set[Value]) -> bool:
    """Whether the numbers that `node` gives follow from those of `drawn`: sizes do not, nor do elements from the
    shape that they are brought into."""
    key = graph.key(node)
    if key == "shape":
        return False
    read: Sequence[Value | None] = reads(graph, node)
    if key in ("reshape", "expand") and isinstance(call := graph.call(node), Call):
        read = call.operands[:1]
    return any(o in drawn for o in read if o is not None)
