"""Which calls treat every slice of axis 0 alike: rows may then be permuted, left out or computed in portions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from graphopt.ir.graph import Call, Graph, Literal, TensorType, Value
from graphopt.ir.ops import ELEMENTWISE

ALIGNED = ELEMENTWISE - {"prelu"}
"""Those of them whose operands broadcast against one another; a slope is broadcast to x."""
SEVERAL = frozenset({"matmul", "concat", "gather", "gather_nd", "moe"})
"""Other ops of which more than the first operand may have rows."""


def mixes_rows(graph: Graph, call: Call, rowed: Collection[Value]) -> str | None:
    """Why a row of the results of `call` may depend on another row of the operands in `rowed`, or on its own number;
    None if it does not. Operands that are not in `rowed` are the same for all rows."""
    types = [None if o is None else graph.type(o) for o in call.operands]
    given = [o is not None and not isinstance(o, Literal) and o in rowed for o in call.operands]
    if any(g and (t is None or t.rank in (None, 0)) for g, t in zip(given, types, strict=True)):
        return "the rank of what it reads is not known"
    if call.op in ALIGNED:
        return _pointwise(graph, call, types, given)
    rule = RULES.get(call.op)
    if rule is None:
        return f"{call.op} may mix rows"
    if any(given[1:]) and call.op not in SEVERAL:
        return f"{call.op} of several values that differ from row to row"
    return rule(graph, call, given)


def _pointwise(graph: Graph, call: Call, types: list[TensorType | None], given: list[bool]) -> str | None:
    """Axis 0 has to be axis 0 of every operand that has rows, and a single row of every other."""
    rank = max((t.rank or 0 for t, g in zip(types, given, strict=True) if g and t is not None), default=0)
    for operand, type_, rows in zip(call.operands, types, given, strict=True):
        if operand is None or isinstance(operand, Literal):
            continue
        if type_ is None or type_.shape is None:
            return "a type that it reads is not known"
        if rows and type_.rank != rank:
            return "rows are broadcast against one another"
        if not rows and len(type_.shape) >= rank and type_.shape[len(type_.shape) - rank] != 1:
            return f"{graph.name(operand)} may differ from row to row"
        if not rows and len(type_.shape) > rank:
            return "rows are broadcast to more axes"
    return None


def _axis(name: str) -> Callable[[Graph, Call, list[bool]], str | None]:
    def rule(graph: Graph, call: Call, given: list[bool]) -> str | None:
        found: Any = call.fields[name]
        axes = found if isinstance(found, tuple) else (found,)
        return f"{call.op} along the rows" if 0 in axes else None

    return rule


def _concat(graph: Graph, call: Call, given: list[bool]) -> str | None:
    return "parts that have no rows" if not all(given) else _axis("axis")(graph, call, given)


def _transpose(graph: Graph, call: Call, given: list[bool]) -> str | None:
    return None if call.fields["perm"][0] == 0 else "the rows become another axis"


def _reshape(graph: Graph, call: Call, given: list[bool]) -> str | None:
    """The first axis stays if all others hold as many elements as before."""
    before, after = graph.type(call.operands[0]), graph.type(call.outputs[0])
    inner = [None if t is None or not t.shape else t.shape[1:] for t in (before, after)]
    if any(s is None or not all(isinstance(d, int) for d in s) for s in inner):
        return "the sizes of a row are not known"
    sizes = [math.prod(s) for s in inner]  # type: ignore[arg-type]
    return None if sizes[0] == sizes[1] > 0 else "rows are joined or divided"


def _matmul(graph: Graph, call: Call, given: list[bool]) -> str | None:
    """Rows of the left factor, or a batch of matrices on either side."""
    ranks = [graph.type(o).rank or 0 for o in call.operands]  # type: ignore[union-attr]
    if not given[0]:
        return None if given[1] and ranks[0] <= 2 < ranks[1] else "a product over the rows"
    if ranks[0] == 1 or (given[1] and (ranks[1] != ranks[0] or ranks[0] < 3)):
        return "a product over the rows"
    return None if given[1] or ranks[1] < ranks[0] or ranks[1] <= 2 else "a product with more axes"


def _linear(graph: Graph, call: Call, given: list[bool]) -> str | None:
    return "a product over the rows" if graph.type(call.operands[0]).rank == 1 else None  # type: ignore[union-attr]


def _gather(graph: Graph, call: Call, given: list[bool]) -> str | None:
    """A table that is read at indices of its own by each row, or a row of which something is picked."""
    if given[1]:
        fits = not given[0] and call.fields["axis"] == 0
        return None if fits else "rows that are picked by rows"
    return "picks rows" if call.fields["axis"] == 0 else None


def _gather_nd(graph: Graph, call: Call, given: list[bool]) -> str | None:
    alone = given[1] and not given[0] and call.fields["batch_dims"] == 0
    return None if alone and (graph.type(call.operands[1]).rank or 0) > 1 else "picks rows"  # type: ignore[union-attr]



def _moe(graph: Graph, call: Call, given: list[bool]) -> str | None:
    """Tokens and the scores of each."""
    alone = given[0] and given[1] and not any(given[2:]) and graph.type(call.operands[0]).rank == 2  # type: ignore[union-attr]
    return None if alone else "tokens and scores that do not have the same rows"


RULES: Mapping[str, Callable[[Graph, Call, list[bool]], str | None]] = {
    **dict.fromkeys(("softmax", "log_softmax", "cumsum", "split", "topk", "layer_norm", "rms_norm"), _axis("axis")),
    **{f"reduce_{name}": _axis("axes") for name in ("sum", "mean", "max", "min", "prod", "l2")},
    **dict.fromkeys(("squeeze", "unsqueeze", "slice"), _axis("axes")),
    "concat": _concat,
    "transpose": _transpose,
    "reshape": _reshape,
    "matmul": _matmul,
    "linear": _linear,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "moe": _moe,
}
"""Why a call mixes rows, by op, where operands beyond the first have no rows unless the rule says so."""
