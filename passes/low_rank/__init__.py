"""low-rank: layers become chains of thinner ones, as far as the budget allows.

`layers` finds what may be split, `activations` gathers what the layers are fed, `directions` and `kernels` choose the
factors, `ranks` and `candidates` list what each layer could become, `choice` picks by the budget, `walk` and `refit`
fit factors to the layers before them, `splitting` and `rules` write it.
"""

from graphopt.passes.low_rank.pass_ import LowRank

__all__ = ["LowRank"]
