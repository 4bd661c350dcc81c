"""Fewer experts behind the same router: numbers of experts are looked up in a table before weights are picked or rows
sorted by them. What weights gates by these numbers still has those of the router."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Call, Literal, Node, TensorType, Value
from graphopt.ir.weights import Array, ArrayRef
from graphopt.passes.prune_experts.mixtures import FORMS, router_weights
from graphopt.passes.prune_experts.removal import NotRemovable, Places
from graphopt.rewrite.journal import Journal

READS = frozenset({"gather", "gather_nd", "sort", "histogram"})
"""Ops that pick weights, sort rows or count them by numbers of experts."""

UNSAYABLE = frozenset({"sort", "histogram"})
"""Those of them that no storage writes in the vocabulary's words."""


def stacks_of(found: Places) -> dict[str, Value]:
    """The stored weights of the experts themselves, by name. Raises NotRemovable where there are none."""
    graph, routers = found.graph, {*router_weights(found.graph, found.mixture.node, found.mixture.experts)}
    routers |= {o for c in found.products for o in c.operands[1:] if o is not None and not isinstance(o, Literal)}
    stacks = {graph.name(v): v for v, axis in found.constants.items() if axis == 0 and v not in routers}
    stacks = {n: v for n, v in stacks.items() if v not in found.corrections and _rank(found, v) > 1}
    if not any(_rank(found, v) == 3 for v in stacks.values()):
        raise NotRemovable("no weights of experts that are stacked in one tensor")
    return stacks


def _rank(found: Places, value: Value) -> int:
    data = found.graph.constant(value)
    return 0 if data is None else data.ndim


def store(found: Places, journal: Journal, *, arrays: Mapping[str, Array]) -> None:
    """Let the stacks hold `arrays`, as many experts as before."""
    for name, value in stacks_of(found).items():
        journal.store(value, ArrayRef(arrays[name]))


def merge(found: Places, journal: Journal, *, arrays: Mapping[str, Array], group: Array) -> None:
    """Let the stacks hold `arrays`, and expert e be number `group[e]` of them."""
    store(found, journal, arrays=arrays)
    _Writer(found, journal, np.asarray(group, np.int64)).write()


@dataclass
class _Writer:
    found: Places
    journal: Journal
    group: Array
    looked_up: dict[Value, Value] = field(default_factory=dict)
    """Numbers of the router, and what they are in the table."""
    merged: set[Value] = field(default_factory=set)
    """What are numbers of merged experts."""
    current: dict[Value, Value] = field(default_factory=dict)
    """What was written anew, by what it was."""

    @property
    def count(self) -> int:
        return int(self.group.max()) + 1

    def write(self) -> None:
        found, graph = self.found, self.found.graph
        self.table = self.journal.add_constant(ArrayRef(self.group), "merged")
        for node in [n for n in graph.nodes() if n in found.calls]:
            call = found.calls[node]
            operands = [o for o in call.operands if o is not None and not isinstance(o, Literal)]
            if call.op in READS and any(o in found.numbers for o in operands):
                self._again(call)
            elif call.op in FORMS and call.operands[0] in self.merged:
                self.merged.update(o for o in call.outputs if o is not None)
            elif call.op == "transpose":
                self._retype(node, call)
            elif call.op == "cumsum" and call.operands[0] in self.merged:
                self.merged.update(o for o in call.outputs if o is not None)
                self._retype(node, call)

    def _again(self, call: Call) -> None:
        """The same op, reading numbers of merged experts."""
        written = self.found.graph.raw_call(call.node) if call.op in UNSAYABLE else call
        fields = dict(written.fields)
        if call.op == "histogram":
            fields |= {"bins": self.count, "max": type(fields["max"])(self.count - 1)}
        operands = [o if isinstance(o, Literal) else self._number(o, call.node) for o in written.operands]
        types = [self._type(call, o) for o in written.outputs]
        made = self.journal.insert(written.op, operands, fields, before=call.node, types=types)
        for index, (old, new) in enumerate(zip(written.outputs, made, strict=True)):
            if old is not None:
                self.journal.replace(old, new)
                self.current[old] = new
                if call.op != "sort" or index == 0:
                    self.merged.update((old, new))
        self.journal.doom([call.node])

    def _number(self, value: Value | None, before: Node) -> Value | None:
        """`value`, looked up if it is numbers of the router."""
        if value is None or value not in self.found.numbers or value in self.merged:
            return None if value is None else self.current.get(value, value)
        if value not in self.looked_up:
            known = self.found.graph.type(value)
            types = [TensorType("int64", None if known is None else known.shape)]
            operands = [self.table, self.current.get(value, value)]
            self.looked_up[value] = self.journal.insert("gather", operands, {"axis": 0}, before=before, types=types)[0]
        return self.looked_up[value]

    def _type(self, call: Call, value: Value | None) -> TensorType | None:
        known = None if value is None else self.found.graph.type(value)
        if known is None or known.shape is None or call.op != "histogram":
            return known
        return TensorType(known.dtype, (self.count,))

    def _retype(self, node: Node, call: Call) -> None:
        types = []
        for output in call.outputs:
            known = None if output is None else self.found.graph.type(output)
            shape = None if known is None or known.shape is None else (self.count, *known.shape[1:])
            types.append(None if known is None else TensorType(known.dtype, shape))
        self.journal.retype(node, types)
