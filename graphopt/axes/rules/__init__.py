"""What each op says of axes. Importing this package fills `graphopt.axes.analysis.RULES`."""

from graphopt.axes.rules import elementwise, layout, normalization, products, recurrent, selection

__all__ = ["elementwise", "layout", "normalization", "products", "recurrent", "selection"]
