"""The numbers by which the exporter's own simplifications match, exactly.

torch.onnx.export simplifies what it has written with rules of onnxscript, which take any c with |c| <= 1e-8 for the 0
of x + 0, and any within 1e-5 of 1 for the 1 of x * 1. So the 1e-15 that keeps a division from 0 / 0 would go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def exact_simplifications() -> Iterator[bool]:
    """Inside, rules match numbers only that are equal; one thread at a time may be inside.

    Gives whether that was possible: these parts of onnxscript are not documented. If not, the exporter must not
    simplify.
    """
    try:
        constants = list(_constants())
    except (ImportError, AttributeError):
        yield False
        return
    before = [(constant, constant._rel_tol, constant._abs_tol) for constant in constants]
    for constant in constants:
        constant._rel_tol = constant._abs_tol = 0.0
    try:
        yield bool(constants)
    finally:
        for constant, relative, absolute in before:
            constant._rel_tol, constant._abs_tol = relative, absolute


def _constants() -> Iterator[Any]:
    """The numbers in the patterns of the rules."""
    from onnxscript import rewriter
    from onnxscript.rewriter._pattern_ir import Constant

    for rule in rewriter._DEFAULT_REWRITE_RULES:
        for node in rule._target_pattern._nodes:
            yield from (value for value in node.inputs if isinstance(value, Constant))
