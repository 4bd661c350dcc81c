"""What torch.export took for granted of open sizes: conditions such as that one is no multiple of 3.

A size that is left to torch (`Dim.AUTO`, `Dim.DYNAMIC`) may be compared in the model. The program has the branch of the
example inputs, and holds for the sizes for which the comparisons come out alike. torch writes them as Python.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram

from graphopt.backends.inputs import InputError
from graphopt.ir.fx.decompose import TRACING
from graphopt.ir.fx.guards import guards_of

NODES = (ast.Expression, ast.Compare, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Call, ast.Attribute, ast.Subscript,
         ast.Name, ast.Constant, ast.Load, ast.operator, ast.cmpop, ast.unaryop, ast.boolop)  # fmt: skip
FUNCTIONS = {"max": max, "min": min, "math": math, "torch": torch}
ATTRIBUTES = frozenset({"size", "trunc", "floor", "ceil", "sqrt", "sym_float", "sym_int", "sym_max", "sym_min",
                        "is_contiguous", "permute"})  # fmt: skip


class Guards:
    """The conditions of a program. They can be evaluated: nothing but sizes and arithmetic is in them."""

    def __init__(self, program: ExportedProgram, arguments: Collection[str]) -> None:
        """`arguments`: names of what the program is called with."""
        with TRACING:  # CPython makes a tree for one thread at a time, and torch parses while it traces.
            trees = {text: ast.parse(text, mode="eval") for text in guards_of(program)}
        self.unread = [text for text, tree in trees.items() if not _is_read(tree, arguments)]
        """Conditions of another form, which are not checked."""
        self._conditions = {t: compile(tree, t, "eval") for t, tree in trees.items() if t not in self.unread}

    def require(self, given: Mapping[str, Any]) -> None:
        """
        Raises:
            InputError: a condition does not hold for these arguments.
        """
        for text, code in self._conditions.items():
            if not eval(code, {"__builtins__": {}, **FUNCTIONS, "L": given}):
                raise InputError(
                    f"the model was exported for inputs L of which {text} holds, and it does not; export it again"
                )


def _is_read(tree: ast.AST, arguments: Collection[str]) -> bool:
    nodes = list(ast.walk(tree))
    places = [n.slice for n in nodes if isinstance(n, ast.Subscript) and _is_inputs(n.value)]
    read = [place.value for place in places if isinstance(place, ast.Constant)]
    return (
        all(isinstance(n, NODES) for n in nodes)
        and all(n.attr in ATTRIBUTES for n in nodes if isinstance(n, ast.Attribute))
        and all(n.id in FUNCTIONS or n.id == "L" for n in nodes if isinstance(n, ast.Name))
        and len(read) == sum(map(_is_inputs, nodes))
        and all(name in arguments for name in read)
    )


def _is_inputs(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "L"
