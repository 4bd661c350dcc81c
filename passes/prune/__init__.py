"""Structured pruning: fewer channels, heads, groups and hidden units, found in the graph alone.

graphopt.optimize(model, passes=["prune{flops=0.3}"], budget=0.05, calibration=batches)
graphopt.passes.prune.axes(model)      # what there is to prune
"""

from graphopt.passes.prune.listing import axes
from graphopt.passes.prune.prune import Prune

__all__ = ["Prune", "axes"]
