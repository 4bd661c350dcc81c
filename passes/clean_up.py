"""clean-up: everything that needs no knowledge of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from graphopt.ir.graph import Graph
from graphopt.passes import identities, layout_identities
from graphopt.passes.common_subexpressions import merge_equal_constants, merge_equal_nodes
from graphopt.passes.computed_shapes import settle_computed_shapes
from graphopt.passes.constant_branches import inline_constant_branches
from graphopt.passes.constant_folding import Growth, fold_constants
from graphopt.passes.constant_nodes import store_constant_nodes
from graphopt.passes.dead_code import remove_dead_code
from graphopt.passes.nested_concats import flatten_concats
from graphopt.passes.zero_states import drop_zero_states
from graphopt.pipeline.context import Context
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.rule import Rule

RULES: tuple[Rule, ...] = (*identities.RULES, *layout_identities.RULES)


@dataclass(frozen=True)
class CleanUp(GraphPass):
    """Removes what a graph computes in vain.

    Until nothing changes any more: identity rules (x * 1, transpose of transpose, casts to and fro ...), shapes that
    types tell, branches that are always taken, initial states of zeros, constant folding with the target's own
    kernels, merging of equal nodes and constants, dead code.

    Mathematics: see the rules; each states its own. Preconditions: none; a node with effects (random numbers,
    custom ops) is neither removed, merged nor folded, and folding adds at most half a percent to the stored
    weights, the room of the nodes that go not counted. Contract: exact, except that x + 0.0 = x may keep the sign
    of a zero that the sum would lose. Source: the classic scalar optimisations (Aho, Lam, Sethi, Ullman,
    Compilers, section 9.1).
    """

    name: ClassVar[str] = "clean-up"
    contract: ClassVar[str] = "Exact; adding 0.0 to floats: Rounding"

    uses: ClassVar[tuple[Rule, ...]] = RULES
    """The rules that it runs, among other things."""

    rounds: int = 8
    "Most rounds of rules, folding, merging and removal."

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")

    def run(self, context: Context) -> None:
        """Clean up every region of the model."""
        growth = Growth(context.model)
        states: dict[Graph, _Region] = {}
        for _ in range(self.rounds):
            before = context.ledger.kept
            for graph in context.model.regions():
                if graph not in states:
                    states[graph] = _Region(context, graph, growth)
                states[graph].clean(is_main=graph is context.model.main)
            if context.ledger.kept == before:
                break
            context.refresh()
        for state in states.values():
            context.notes += state.driver.notes
        context.notes += [f"not folded: {count} nodes: {reason}" for reason, count in growth.refused.items()]


class _Region:
    """One region and what is known about it from earlier rounds."""

    def __init__(self, context: Context, graph: Graph, growth: Growth) -> None:
        self.editor = context.editor(graph)
        self.driver = Driver(RULES, self.editor)
        self.growth = growth
        self.settled: defaultdict[str, set[Hashable]] = defaultdict(set)
        """Per kind of change, the nodes and constants at which one was refused: not tried again."""

    def clean(self, *, is_main: bool) -> None:
        editor, settled = self.editor, self.settled
        store_constant_nodes(editor, settled["store"])
        self.driver.run()
        settle_computed_shapes(editor, settled["shapes"])
        # A branch that could not be run for lack of types is tried again: more are known in every round.
        settled["branches"].clear()
        inline_constant_branches(editor, settled["branches"])
        flatten_concats(editor, settled["concats"])
        drop_zero_states(editor, settled["states"])
        # Merged before they are folded, so that equal results are not stored twice.
        merge_equal_nodes(editor, settled["merge"])
        fold_constants(editor, self.growth, settled["fold"])
        if is_main:
            merge_equal_constants(editor, settled["constants"])
        remove_dead_code(editor, settled["dead"])
