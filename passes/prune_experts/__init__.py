"""Experts: how much work each of them has, and models without those that have too little.

graphopt.passes.prune_experts.balance(model, calibration)     # tokens and gate weights of every expert

`mixtures` finds mixtures of experts in a graph, `loads` counts on calibration data what each expert is given, `drawing`
shows that as a table, as bars and as an SVG picture.
"""

from graphopt.passes.prune_experts.drawing import bars, svg, table
from graphopt.passes.prune_experts.loads import Load, balance
from graphopt.passes.prune_experts.pass_ import PruneExperts

__all__ = ["Load", "PruneExperts", "balance", "bars", "svg", "table"]
