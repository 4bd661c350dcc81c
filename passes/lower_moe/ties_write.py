"""Routers that choose among equal scores as torch.topk does on a CPU.

TopK of ONNX chooses the first of equals. It is asked for one more than k here, and where the k-th score equals the
next, a branch chooses anew: what is above the k-th score stays chosen, so that only those that tie may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import Array, ArrayRef
from graphopt.passes.lower_moe.ties import can_differ, first_text, text_of
from graphopt.passes.lower_moe.torch_ties import chosen
from graphopt.rewrite.change import Change, Rejected
from graphopt.rewrite.contract import Evidence, Exact
from graphopt.rewrite.journal import Journal
from graphopt.verify.execute import CannotRun, Runner, side_runner
from graphopt.verify.fragment import cut

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

DTYPES = {"float32": "float", "float64": "double"}
"""Of scores, and what the text form of ONNX calls them."""
PRODUCTS = frozenset({"linear", "matmul", "conv"})
"""Ops that scores come from: behind them are tokens."""
TRIED = 192
"""Rows of scores that a choice is verified on."""


@dataclass(frozen=True)
class Choosing:
    """TopK of the scores[..., size] of experts, or of groups of them."""

    graph: Graph
    node: Node
    scores: Value
    type: TensorType
    k: int

    @property
    def size(self) -> int:
        size = self.shape[-1]
        assert isinstance(size, int)
        return size

    @property
    def shape(self) -> tuple[int | str | None, ...]:
        assert self.type.shape is not None
        return self.type.shape


def choose_as_torch(context: Context, graph: Graph, ids: Iterable[Value]) -> None:
    """Let every TopK that the numbers of experts `ids` come from choose as torch.topk does."""
    for node in list(dict.fromkeys(n for value in ids for n in _selections(graph, value))):
        found, name = _choosing(graph, node), graph.node_name(node)
        if isinstance(found, str):
            context.notes.append(f"{name}: of equal scores the first is chosen, not as in torch: {found}")
        elif can_differ(found.size, found.k) and not context.ledger.exhausted:
            kept = context.apply("torch-ties", (name,), partial(_applied, context, found))
            if kept is not None:
                context.notes.append(f"{name}: of equal scores those are chosen that torch.topk chooses on a CPU")


def may_differ(graph: Graph, ids: Iterable[Value]) -> bool:
    """Whether a TopK that the numbers of experts `ids` come from may choose others than torch.topk."""
    found = (_choosing(graph, node) for value in ids for node in _selections(graph, value))
    return any(isinstance(one, str) or can_differ(one.size, one.k) for one in found)


def _selections(graph: Graph, value: Value) -> Iterator[Node]:
    """The TopK that `value` comes from, each choice of groups before a choice of experts among them."""
    pending, seen = [value], set()
    while pending:
        node = graph.producer(pending.pop())
        if node is None or node in seen:
            continue
        seen.add(node)
        call = graph.call(node)
        if isinstance(call, Call) and call.op in PRODUCTS:
            continue
        if graph.raw_name(node) == "ai.onnx::TopK":
            yield node
        pending += [o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)]


def _choosing(graph: Graph, node: Node) -> Choosing | str:
    """What `node` chooses, or why it cannot be written as torch does it."""
    raw = graph.raw_call(node)
    scores, count = raw.operands
    type_, k = graph.type(scores), None if count is None else graph.constant(count)
    if type_ is None or type_.shape is None or k is None or not isinstance(type_.shape[-1], int):
        return "how many are chosen of how many is not known"
    if type_.dtype not in DTYPES:
        return f"scores of {type_.dtype}"
    if raw.fields.get("axis", -1) not in (-1, len(type_.shape) - 1) or not raw.fields.get("largest", 1):
        return "it does not choose the greatest along the last axis"
    return Choosing(graph, node, scores, type_, int(k.numpy().reshape(-1)[0]))


# ---- writing -----------------------------------------------------------------------------------------------


def _write(found: Choosing, journal: Journal) -> None:
    graph, k, before = found.graph, found.k, found.shape[:-1]
    axis = len(before)

    def typed(dtype: str, *last: int) -> TensorType:
        return TensorType(dtype, (*before, *last))

    def insert(op: str, operands: Sequence[Value], fields: Mapping[str, Any], *types: TensorType) -> list[Value]:
        return journal.insert(op, operands, fields, before=found.node, types=types)

    dtype = found.type.dtype
    count = journal.add_constant(ArrayRef(np.array([k + 1], np.int64)), "choices")
    by_score = {"axis": axis, "largest": 1, "sorted": 1}
    operands, types = [found.scores, count], (typed(dtype, k + 1), typed("int64", k + 1))
    values, numbers = insert("ai.onnx::TopK", operands, by_score, *types)
    sizes = (1, 1) if k == 1 else (k - 1, 1, 1)
    *_, last, next_ = insert("split", [values], {"sizes": sizes, "axis": axis}, *(typed(dtype, s) for s in sizes))
    (tied,) = insert("equal", [last, next_], {}, typed("bool", 1))
    (ones,) = insert("cast", [tied], {"dtype": "int64"}, typed("int64", 1))
    axes = tuple(range(len(found.shape)))
    (ties,) = insert("reduce_sum", [ones], {"axes": axes, "keepdims": False}, TensorType("int64", ()))
    (any_,) = insert("cast", [ties], {"dtype": "bool"}, TensorType("bool", ()))
    captured = {"scores": found.scores, "numbers": numbers, "tied": tied}
    texts = {"then_branch": text_of(found.size, k, DTYPES[dtype]), "else_branch": first_text(k)}
    branches = {name: _branch(name, text, captured, graph.name(numbers)) for name, text in texts.items()}
    (ids,) = insert("ai.onnx::If", [any_], branches, typed("int64", k))
    old_values, old_ids = graph.results(found.node)
    if old_values is not None and (graph.users(old_values) or graph.is_output(old_values)):
        first = {"starts": (0,), "ends": (k,), "axes": (axis,), "steps": (1,)}
        journal.replace(old_values, insert("slice", [values], first, typed(dtype, k))[0])
    journal.replace(old_ids, ids)
    journal.doom([found.node])


def _branch(name: str, text: str, captured: Mapping[str, Value], prefix: str) -> Any:
    """The graph `text` as an attribute; what it calls its inputs are values around it."""
    import onnx.parser
    import onnx_ir as ir

    from graphopt.ir.onnx.shared import nested_graphs

    branch = ir.from_proto(onnx.parser.parse_graph(text))
    for value in list(branch.inputs):
        for user, index in list(value.uses()):
            user.replace_input_with(index, captured[value.name or ""])
    branch.inputs.clear()
    for graph in nested_graphs(branch):
        for value in (*graph.inputs, *(o for node in graph for o in node.outputs)):
            value.name = f"{prefix}.{name}.{value.name}"
    return ir.AttrGraph(name, branch)


# ---- verifying ---------------------------------------------------------------------------------------------


def _applied(context: Context, found: Choosing) -> tuple[int, Evidence]:
    with Journal(found.graph) as journal:
        _write(found, journal)
        evidence = Evidence("types" if context.verify == "structure" else "none")
        if context.verify in ("match", "model"):
            evidence = _compared(found, journal)
    return found.k, evidence


def _compared(found: Choosing, journal: Journal) -> Evidence:
    """What is written against what torch does, row by row, and against TopK in all but the ties. Raises Rejected."""
    fragment = cut(Change("", found.graph, (found.node,), journal, Exact()))
    try:
        before, after = side_runner(fragment, fragment.before), side_runner(fragment, fragment.after)
        count = 0
        for scores in _tied_scores(found):
            _require_same(found, scores, before, after)
            count += 1
    except CannotRun as failure:
        raise Rejected(f"it cannot be run to be compared: {failure}", Evidence("none")) from failure
    return Evidence("executed", count, notes=("held against the algorithm of torch.topk",))


def _tied_scores(found: Choosing) -> Iterator[Array]:
    """Scores of the shape that the graph asks for, TRIED rows in all, with ties of all kinds; then none at all."""
    rng, size = np.random.default_rng(0), found.size
    levels = rng.integers(1, size + 1, TRIED)
    rows = np.stack([rng.integers(0, level, size) for level in levels]).astype(found.type.dtype)
    rows[0::6].sort(axis=1)
    rows[1::6] = -np.sort(rows[1::6], axis=1)
    rows[2::6] = rng.standard_normal(rows[2::6].shape)
    rows[3::6] = np.where(rows[3::6] > levels[3::6, None] / 2, rows[3::6], -np.inf)
    front = found.shape[:-1]
    known = int(np.prod([d for d in front if isinstance(d, int)]))
    free = next((axis for axis, d in enumerate(front) if not isinstance(d, int)), None)
    each = known if free is not None or known else 1
    many = max(1, TRIED // max(1, each)) if free is not None else 1
    shape = [d if isinstance(d, int) else many if axis == free else 1 for axis, d in enumerate(front)]
    step = int(np.prod(shape))
    for start in range(0, TRIED if step else 1, max(1, step)):
        yield np.resize(np.roll(rows, -start, axis=0), (*shape, size))
    if free is not None:
        yield np.zeros((*(0 if axis == free else d for axis, d in enumerate(shape)), size), rows.dtype)


def _require_same(found: Choosing, scores: Array, before: Runner, after: Runner) -> None:
    """Raise Rejected where other scores are chosen than by TopK, or other numbers than by torch."""
    (*_, old_ids), (*values, ids) = before([scores]), after([scores])
    old, new = (np.take_along_axis(scores, i, axis=-1) for i in (old_ids, ids))
    same = new.shape == old.shape and np.array_equal(-np.sort(-old, axis=-1), new)
    if not same or any(not np.array_equal(value, new) for value in values):
        raise Rejected("other scores are chosen than by TopK", Evidence("executed", 1, float("inf")))
    for row, numbers in zip(scores.reshape(-1, found.size), ids.reshape(-1, found.k), strict=True):
        if set(numbers.tolist()) != chosen(row.tolist(), found.k):
            raise Rejected(f"of {row.tolist()} torch chooses others", Evidence("executed", 1, float("inf")))
