"""lower-moe: experts computed on the tokens that are routed to them, in what the target runs fast.

`stacks` reads matrices that are stacked by expert, `grouped` recognises tokens that are sorted by expert, `picked`
tokens that pick their expert's weights, `flat` those that do it by a table of ids, tokens by choices. `experts` writes
one product an expert.

`gates` knows which values are zero where an expert was not picked; `dense` and `dense_stacks` recognise sums over all
experts by that, `dense_write` and `dense_stacks_write` write those that were picked. `by_expert` sorts and splits rows
for all of these; `rules` tidies what is around.
"""

from graphopt.passes.lower_moe.pass_ import LowerMoe

__all__ = ["LowerMoe"]
