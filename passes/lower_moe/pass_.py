"""The pass lower-moe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.passes.lower_moe.all_experts import nodes_of as nodes_of_all
from graphopt.passes.lower_moe.all_experts import times_of, write_all_experts
from graphopt.passes.lower_moe.contrib import contrib_mixtures, experts_of, is_batch, write_contrib, write_rows
from graphopt.passes.lower_moe.dense import Dense, dense_sums
from graphopt.passes.lower_moe.dense_stacks import Stacked, stacked_sums
from graphopt.passes.lower_moe.dense_stacks_write import write_picked_stacks
from graphopt.passes.lower_moe.dense_write import write_picked_terms
from graphopt.passes.lower_moe.experts import write_experts
from graphopt.passes.lower_moe.flat import tables_of, write_flat
from graphopt.passes.lower_moe.forms import WORTH, Choice, Form, choose
from graphopt.passes.lower_moe.grouped import NotGrouped, grouped_by, nodes_of, sorts_of, write_unsorted
from graphopt.passes.lower_moe.looped import write_loop
from graphopt.passes.lower_moe.one_node import MOE, whole, write_one_node
from graphopt.passes.lower_moe.picked import NotPicked, Picked, picked_rows
from graphopt.passes.lower_moe.rules import FOLLOWING, PREPARING
from graphopt.passes.lower_moe.ties_write import choose_as_torch, may_differ
from graphopt.passes.lower_moe.unstack import stacked_results, write_unstacked
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.contract import Exact, Rounding

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

GROUPED = "aten::_grouped_mm"
"""The feature of targets that run products of groups as they are."""
FIRST = "of equal scores the first is chosen; torch.topk may choose another, as does ties=torch"
SPLITS_BY_ROWS = 13
"""The first opset in which Split takes sizes that are computed."""


@dataclass(frozen=True)
class LowerMoe(GraphPass):
    """Lowers mixtures of experts so that each expert is computed for the tokens that are routed to it, and no weight is
    copied for a token.

    Mathematics: y[t] = sum_j g[t, j] f(x[t]; W[i[t, j]]) with k experts i[t, 1..k] and gates g[t, 1..k] for each
    token. The router, which finds i and g, and the sum stay what they are; what is rewritten is f of the T k rows. It
    treats each row by itself and so may be computed in any order and in any portions.

    In torch: tokens that are sorted by expert for grouped_mm, which torch cannot say in ONNX, come back into their
    order, and each row picks the matrix of its expert; only where the target is one that runs ONNX, since torch
    itself runs grouped_mm fast, and XLA has ragged_dot. In ONNX: rows that pick matrices (transformers' batched_mm
    and what the above became) are sorted and split by expert; each expert is a product of its own with a weight of
    its own, and the results are put back in order. Where ids are a table, tokens by choices (gpt-fast), both axes
    become one first. No scatter adds anything up, so results do not vary, and experts without a token cost next to
    nothing. The activation, gates within an expert, biases and norms may be anything that treats each row by itself.

    Also in ONNX: sums over all experts that are each computed for every token and weighted by a gate, sum_e g[t, e]
    f_e(x[t]), where g is certain to be zero but for the ids that topk found: each f_e computes its own tokens then.
    Promised for finite values: what is infinite times a gate of zero was NaN before.

    And com.microsoft::MoE, router and all in one node, becomes nodes of the standard that compute the same; of equal
    scores its kernel takes the last, and so does what is written. Likewise for finite values only.

    With form=loop rows that pick matrices become one loop over the experts that have rows, their weights in the stacks
    as they were: a graph of one size for any number of experts, at the price of a copy of each weight that is used.

    With form=contrib the other way round: routers of softmax and experts of two products become that node, where the
    target has it.

    Of equal scores ONNX's TopK chooses the first. ties=torch has a branch beside it which runs where the k-th score
    equals the next, and chooses as torch.topk does on a CPU (torch's own algorithm on libstdc++, held against torch
    2.13; NaN left out). That is what a model which comes from torch is lowered with for onnxruntime.

    Refused, with the reason: rows that read other rows; ids that are not certain to be numbers of the experts; a sort,
    count or inverse that is not the one of these ids; stacks of weights that are not constant; copies of weights that
    something else reads.

    Contract: rounding, for each block in isolation. Source: Shazeer et al., "Outrageously large neural networks", 2017,
    section 2; sorting by expert: Gale et al., "MegaBlocks", 2022 (arXiv 2211.15841).
    """

    name: ClassVar[str] = "lower-moe"
    contract: ClassVar[str] = (
        "Rounding, for finite inputs: at most 8 times the rounding error of the original, per application"
    )

    form: Form = "auto"
    "How experts are computed: auto (the cost model decides), sorted, loop, dense or contrib."

    ties: Literal["first", "torch"] = "first"
    "Of equal scores: first, as ONNX's TopK has it, or those that torch.topk chooses on a CPU."

    def run(self, context: Context) -> None:
        context.run_rules(PREPARING)
        context.refresh()
        for graph in context.model.regions():
            if graph.storage == "onnx":
                _take_apart(self, context, graph)
                for table in tables_of(graph):
                    context.editor(graph).apply("flat-rows", Rounding(), table.nodes, partial(write_flat, table))
                if self.form == "contrib":
                    _join(context, graph)
                ids = _split_by_expert(self, context, graph)
                if self.form != "dense":
                    _unstack(self, context, graph)
                    ids += _pick_terms(self, context, graph)
                if self.ties == "torch":
                    choose_as_torch(context, graph, ids)
                elif may_differ(graph, ids):
                    context.notes.append(FIRST)
            elif context.target is not None and GROUPED not in context.features:
                _unsort(context, graph)
        context.refresh()
        context.run_rules(FOLLOWING)


def _take_apart(options: LowerMoe, context: Context, graph: Any) -> None:
    """Mixtures that are one node become nodes of the standard."""
    if options.form == "contrib":
        return
    for found in list(contrib_mixtures(graph)):
        if isinstance(found, Call) and is_batch(graph, found):
            context.editor(graph).apply("contrib-rows", Exact(), [found.node], partial(write_rows, graph, found))
    context.refresh()
    for found in list(contrib_mixtures(graph)):
        if isinstance(found, Call) and is_batch(graph, found):
            continue
        if not isinstance(found, Call):
            context.notes.append(f"{graph.node_name(found[0].node)} left alone: {found[1]}")
        elif _can_split(context, graph, found.node):
            name = graph.node_name(found.node)
            choice = choose(_unlooped(options, context, name), *experts_of(graph, found))
            context.notes.append(f"{name} in {choice}")
            write = partial(write_contrib, graph, found, choice.form)
            context.editor(graph).apply("contrib-experts", Rounding(special=False), [found.node], write)


def _join(context: Context, graph: Any) -> None:
    """Mixtures that a node of the target can say whole become that node."""
    if MOE not in context.features:
        context.notes.append(f"form contrib: the target {context.target} has no {MOE}")
        return
    for picked in list(picked_rows(graph)):
        if not isinstance(picked, Picked):
            continue
        name = graph.node_name(picked.nodes[0])
        try:
            found = whole(picked)
        except NotPicked as error:
            context.notes.append(f"{name} not in form contrib: {error}")
            continue
        context.notes.append(f"{name} in {choose('contrib', found.experts, found.k)}")
        write = partial(write_one_node, found)
        context.editor(graph).apply("contrib-node", Rounding(special=False), found.nodes, write)


def _unsort(context: Context, graph: Graph) -> None:
    for sort in list(sorts_of(graph)):
        try:
            found = grouped_by(graph, sort)
        except NotGrouped as error:
            context.notes.append(f"{graph.node_name(sort.node)} left alone: {error}")
            continue
        context.editor(graph).apply("grouped-experts", Rounding(), nodes_of(found), partial(write_unsorted, found))


def _split_by_expert(options: LowerMoe, context: Context, graph: Any) -> list[Value]:
    """Rows that pick weights become those of their experts; returns the numbers of these."""
    ids: list[Value] = []
    for found in picked_rows(graph):
        if not isinstance(found, Picked):
            call, reason = found
            context.notes.append(f"{graph.node_name(call.node)} left alone: {reason}")
            continue
        name, choice = graph.name(found.outputs[0]), _choice(options, context, found)
        if choice.form == "dense":
            context.notes.append(f"{name} in {choice}")
            write = partial(write_all_experts, found)
            context.editor(graph).apply("all-experts", Rounding(), nodes_of_all(found), write)
            ids.append(found.ids)
        elif _can_split(context, graph, found.nodes[0]):
            context.notes.append(f"{name} in {choice}")
            rule, written = ("loop-experts", write_loop) if choice.form == "loop" else ("picked-experts", write_experts)
            context.editor(graph).apply(rule, Rounding(), found.nodes, partial(written, found))
            ids.append(found.ids)
    return ids


def _choice(options: LowerMoe, context: Context, found: Picked) -> Choice:
    """The form of rows that pick weights; only tokens that stand there k times may be computed once for all."""
    times = times_of(found)
    asked: Form = "auto" if options.form == "contrib" else options.form  # what the node can say became it before
    choice = choose(asked, found.experts, times)
    if choice.form == "dense" and times == 1:
        if options.form == "dense":
            name = found.graph.name(found.outputs[0])
            context.notes.append(f"{name} not in form dense: its rows are not tokens, each as often as it has experts")
        return Choice("sorted", f"{found.experts} experts, as many rows as there are")
    return choice


def _unlooped(options: LowerMoe, context: Context, name: str) -> Form:
    """The form that is asked for, for experts that no rows pick from a stack."""
    if options.form != "loop":
        return options.form
    context.notes.append(f"{name} not in form loop: no rows pick weights from a stack")
    return "auto"


def _can_split(context: Context, graph: Any, node: Node) -> bool:
    """Whether the model's opset has what experts are written with; if not, `node` is left alone, which is noted."""
    if graph.opset >= SPLITS_BY_ROWS:
        return True
    reason = f"a Split whose sizes are computed needs opset {SPLITS_BY_ROWS}, the model has {graph.opset}"
    context.notes.append(f"{graph.node_name(node)} left alone: {reason}")
    return False


def _unstack(options: LowerMoe, context: Context, graph: Any) -> None:
    """Results of experts that are stacked, weighted and added up become sums."""
    for found in list(stacked_results(graph, _worth(options))):
        write = partial(write_unstacked, found)
        context.editor(graph).apply("stacked-results", Rounding(special=False), found.nodes, write)
    context.refresh()


def _worth(options: LowerMoe) -> float:
    return 1.0 if options.form == "sorted" else WORTH


def _pick_terms(options: LowerMoe, context: Context, graph: Any) -> list[Value]:
    """One sum after the other, each found in the graph as the one before has left it; returns numbers of experts."""
    seen: set[str] = set()
    ids: list[Value] = []
    while (found := _next_sum(graph, seen, _worth(options))) is not None:
        if isinstance(found, tuple):
            context.notes.append(f"{graph.node_name(found[0].node)} left alone: {found[1]}")
            continue
        write = partial(write_picked_terms, found) if isinstance(found, Dense) else partial(write_picked_stacks, found)
        if _can_split(context, graph, found.nodes[-1]):
            name = graph.name(found.total)
            asked = _unlooped(options, context, name)
            context.notes.append(f"{name} in {choose(asked, found.experts, found.k)}")
            context.editor(graph).apply("dense-experts", Rounding(special=False), found.nodes, write)
            ids.append(found.ids)
    return ids


def _next_sum(graph: Graph, seen: set[str], worth: float) -> Dense | Stacked | tuple[Call, str] | None:
    """The first sum of gated experts that is not in `seen`, by the name of its result, which it is added to."""
    for found in chain(dense_sums(graph, worth), stacked_sums(graph, worth)):
        last = found[0].node if isinstance(found, tuple) else found.nodes[-1]
        name = graph.name(graph.results(last)[0])
        if name not in seen:
            seen.add(name)
            return found
    return None
