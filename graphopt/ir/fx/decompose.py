"""torch's `run_decompositions` without registering again what it registers every time.

Before torch retraces a program it marks each composite operator that is to be kept (525 in torch 2.13), by about twenty
kernels and a rule for fake tensors, and unmarks all of them afterwards. For a model of a few layers that is most of
what taking it costs: marking evaluates 11,000 type annotations, and the garbage collector walks the whole heap for the
objects that are made. The marks of an operator are the same every time, so they are made by torch once and put back
from then on.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TRACING = threading.RLock()
"""Held while torch traces: what it traces with belongs to the process, and a second thread that traces meets the
first one's."""


def run_decompositions(program: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram:
    """What `program.run_decompositions(table)` returns and raises."""
    with remembered_marks():
        return program.run_decompositions(dict(table))


@contextmanager
def remembered_marks() -> Iterator[None]:
    """Inside, torch marks an operator by what it was marked by before; one thread at a time is inside.

    Nothing is changed where torch does not have the functions that are replaced.
    """
    from torch._export import utils
    from torch.export import exported_program

    with TRACING:
        yield from _remembering(exported_program, utils)


def _remembering(exported_program: Any, utils: Any) -> Iterator[None]:
    mark = getattr(exported_program, "_override_composite_implicit_decomp", None)
    materialise = getattr(utils, "_materialize_cpp_cia_ops", None)
    if mark is None or materialise is None:
        yield
        return
    materialise()  # torch does it for each of about twenty namespaces, with the same effect
    utils._materialize_cpp_cia_ops = lambda: None
    exported_program._override_composite_implicit_decomp = lambda table: _marked(table, mark)
    try:
        yield
    finally:
        utils._materialize_cpp_cia_ops = materialise
        exported_program._override_composite_implicit_decomp = mark


@dataclass(frozen=True)
class _Marks:
    """What torch registers for an operator that has the kernels `before`."""

    before: dict[Any, Any]
    kernels: dict[Any, Any]
    fake_rule: Any


_marks: dict[tuple[Any, Hashable], _Marks] = {}  # by the operator and what stands for its decomposition


@contextmanager
def _marked(
    table: Mapping[Any, Any], mark: Callable[[Mapping[Any, Any]], AbstractContextManager[None]]
) -> Iterator[None]:
    """As torch's `mark(table)`, which is left to do what is not remembered."""
    from torch._subclasses.fake_impls import op_implementations_dict as fake_rules

    keys = {op: (op, _identity(by)) for op, by in table.items() if op not in fake_rules}
    known = {op: _marks[key] for op, key in keys.items() if key in _marks and _marks[key].before == op.py_kernels}
    before = {op: dict(op.py_kernels) for op in keys if op not in known and keys[op][1] is not None}
    with mark({op: by for op, by in table.items() if op not in known}):
        for op, kernels in before.items():
            _marks[keys[op]] = _Marks(kernels, dict(op.py_kernels), fake_rules[op])
        try:
            for op, marks in known.items():
                op.py_kernels.update(marks.kernels)
                op._dispatch_cache.clear()
                fake_rules[op] = marks.fake_rule
            yield
        finally:
            for op, marks in known.items():
                op.py_kernels.clear()
                op.py_kernels.update(marks.before)
                op._dispatch_cache.clear()
                fake_rules.pop(op, None)


def _identity(by: Any) -> Hashable:
    """The same for every object that torch makes to say the same: keep this operator, or take it apart as eager mode
    does. None for the few others, which are marked by torch every time."""
    from torch._export.utils import _special_op_to_preserve_cia

    if by is _special_op_to_preserve_cia:
        return "keep"
    if isinstance(by, functools.partial) and not by.args and getattr(by.func, "__closure__", 0) is None:
        return by.func.__code__, frozenset(by.keywords.items())
    return None
