"""Experts that are merged with others: fewer weights, the same router.

`grouping` says which experts become one and what weights they have then, `merging` writes that into a graph.
"""

from graphopt.passes.merge_experts.pass_ import MergeExperts

__all__ = ["MergeExperts"]
