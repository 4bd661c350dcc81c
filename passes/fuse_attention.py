"""fuse-attention: attention found in its pieces and given to the op that the target has for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import PipelineError
from graphopt.passes.attention_guard import GuardOfSoftmax
from graphopt.passes.attention_heads import BATCH_RULES, MULTI_HEAD_ATTENTION, TOKEN_RULES
from graphopt.passes.attention_keys import transpose_keys_directly
from graphopt.passes.attention_standard import MATMUL_RULES, ONE_OP_RULES
from graphopt.passes.computed_shapes import settle_computed_shapes
from graphopt.passes.layout_identities import TransposeTwice
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.rule import Rule

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context


# Any: to a type checker, a class stays a class whatever decorates it.
PREPARING: tuple[Any, ...] = (TransposeTwice, GuardOfSoftmax)
"""Rules that let more attention be seen."""


@dataclass(frozen=True)
class FuseAttention(GraphPass):
    """Fuses scaled dot-product attention, softmax(scale * q @ k^T + mask) @ v, into one op.

    Recognised as the standard op, as two matmuls and as two einsums around a softmax; with the scale as factors or
    divisors of queries, keys or scores, with an added mask, with the heads split off by reshapes and transposes or
    counted as batch. Written as com.microsoft::MultiHeadAttention for a target that has it, which takes in the
    reshapes and transposes of the heads; else as the standard op, in torch and in ONNX from opset 23 on; else einsums
    are made matmuls. The opset of a model is never raised.

    Mathematics: see the rules; each states its own. Refused, with the reason: causal and grouped attention where the
    target's op is another, masks of truth values, masks that broadcast otherwise, batches or heads that are not
    known to be equal, scores or weights that something else reads, dtypes that the op has no kernel for, dropout.

    Contract: rounding. Where a rule cannot say where NaN and infinities come out, its evidence says that they are
    not promised. Source: Vaswani et al., "Attention is all you need", 2017; Rabe and Staats, "Self-attention does
    not need O(n^2) memory", 2021, for kernels that do not store the scores.
    """

    name: ClassVar[str] = "fuse-attention"
    contract: ClassVar[str] = "Rounding: at most 8 times the rounding error of the original, per application"

    uses: ClassVar[tuple[Any, ...]] = (*ONE_OP_RULES, *MATMUL_RULES)
    """Rules that it runs if an option or the target says so."""

    form: Literal["auto", "heads", "standard", "matmul"] = "auto"
    "MultiHeadAttention, the standard op, or matmuls in place of einsums; auto: the first that the target has."

    def rules(self, features: frozenset[str] | None = None) -> Sequence[Rule]:
        """All rules for a target with `features`, in the order in which they are run; None for a target that has
        everything."""
        return [*PREPARING, *(rule for rules in self._stages(features) for rule in rules)]

    def _stages(self, features: frozenset[str] | None) -> list[Sequence[Rule]]:
        """Sets of rules, each run until none applies before the next begins."""
        has_heads = features is None or MULTI_HEAD_ATTENTION in features
        if self.form == "heads" or (self.form == "auto" and has_heads):
            return [TOKEN_RULES, BATCH_RULES]
        return [MATMUL_RULES] if self.form == "matmul" else [ONE_OP_RULES, MATMUL_RULES]

    def run(self, context: Context) -> None:
        if self.form == "heads" and MULTI_HEAD_ATTENTION not in context.features:
            raise PipelineError(
                f"{self.name}: form=heads needs a target with {MULTI_HEAD_ATTENTION}, and the target is "
                f"{context.target}; name one (target='onnxruntime') or leave the option out"
            )
        self._prepare(context)
        for rules in self._stages(context.features):
            context.run_rules(rules)
            context.refresh()

    @staticmethod
    def _prepare(context: Context) -> None:
        """Let shapes be known, keys be transposed by one node, and weights be a softmax and nothing more."""
        for graph in context.model.regions():
            settle_computed_shapes(context.editor(graph), set())
        context.refresh()
        for graph in context.model.regions():
            transpose_keys_directly(context.editor(graph))
        context.run_rules(PREPARING)
        context.refresh()
