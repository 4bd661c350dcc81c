"""Shapes that a model computes although types tell them: the computation becomes a constant.

One application takes in everything between the tensors whose shapes are asked and the value that becomes
constant, so that verification runs the real shape arithmetic, at several sizes, against the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cmp_to_key

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.passes.shape_values import Content, Element, ShapeValues, Size, Unknown, is_known
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

LONGEST = 64
"""Most nodes that one application takes in."""


def settle_computed_shapes(editor: Editor, settled: set[Hashable]) -> bool:
    """Replace shape values that are known, and shape operands that are known up to what the operand itself
    tells.

    `settled` holds nodes at which that was refused before; it is added to. Returns whether anything was
    replaced.
    """
    graph, kept = editor.graph, False
    values = ShapeValues(graph)
    for node in list(graph.nodes()):
        if editor.ledger.exhausted:
            break
        if node in settled:
            continue
        change = _known_value(graph, values, node) or _known_target(graph, values, node)
        if change is None:
            continue
        name, last, write = change
        nodes = _computation(graph, values, last, node)
        if nodes is None:
            continue
        application, _ = editor.apply(name, Exact(), nodes, _with_removal(write, nodes))
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


Proposal = tuple[str, Value, Callable[[Journal], None]]
"""The name of the rule, the computed shape, and what writes the replacement."""


def _known_value(graph: Graph, values: ShapeValues, node: Node) -> Proposal | None:
    """`node` computes numbers that are known, and something reads them that is not itself known."""
    outputs = graph.raw_call(node).outputs
    value = outputs[0] if len(outputs) == 1 else None
    content = values.computed(value)
    type_ = None if value is None else graph.type(value)
    if content is None or type_ is None or not is_known(content) or graph.is_output(value):
        return None
    if graph.constant(value) is not None or not any(
        _needs(graph, values, user) for user in graph.users(value)
    ):
        return None

    def write(journal: Journal) -> None:
        data = content.astype(numpy_dtype(type_.dtype))
        journal.replace(value, journal.add_constant(ArrayRef(data), graph.name(value)))

    return "known-shape-value", value, write


def _needs(graph: Graph, values: ShapeValues, user: Node) -> bool:
    return not all(is_known(values.computed(o)) for o in graph.raw_call(user).outputs if o is not None)


def _known_target(graph: Graph, values: ShapeValues, node: Node) -> Proposal | None:
    """`node` is a reshape or an expand whose computed target can be said as a constant."""
    if graph.key(node) not in ("reshape", "expand"):
        return None
    call = graph.call(node)
    if not isinstance(call, Call) or call.operands[1] is None:
        return None
    x, target, out = call.operands[0], call.operands[1], call.outputs[0]
    content = values.computed(target)
    if content is None or content.ndim != 1 or out is None:
        return None
    try:
        sizes = values.shape(x)
    except Unknown:
        return None
    constant = (_reshape_target if call.op == "reshape" else _expand_target)(content, sizes)
    if constant is None:
        return None

    def write(journal: Journal) -> None:
        data = journal.add_constant(ArrayRef(np.asarray(constant, np.int64)), graph.name(target))
        new = journal.insert(call.op, [x, data], {"shape": None}, before=node, types=[graph.type(out)])
        journal.replace(out, new[0])

    return f"known-{call.op}-target", target, write


def _reshape_target(content: Content, sizes: Sequence[Element]) -> list[int] | None:
    """The target with numbers only: 0 where it copies a size, -1 for the one element that is not known
    otherwise.

    An element that is a size of the operand at the same place is copied; the number of elements decides the
    last, unless a copied size, which may be 0, stands beside it.
    """
    target: list[int | None] = []
    for place, element in enumerate(content):
        if isinstance(element, bool) or element == 0:
            return None
        if isinstance(element, int):
            target.append(element)
        else:
            copied = isinstance(element, Size) and place < len(sizes) and element == sizes[place]
            target.append(0 if copied else None)
    if target.count(0) == 1 and None not in target and -1 not in target:
        target[target.index(0)] = None
    if target.count(None) + target.count(-1) > 1 or (None in target and 0 in target):
        return None
    return [-1 if t is None else t for t in target]


def _expand_target(content: Content, sizes: Sequence[Element]) -> list[int] | None:
    """The target with numbers only: 1 where it asks for the size that the operand has."""
    shift = len(content) - len(sizes)
    target = []
    for place, element in enumerate(content):
        if isinstance(element, int):
            target.append(int(element))
        elif isinstance(element, Size) and place >= shift and element == sizes[place - shift]:
            target.append(1)
        else:
            return None
    return target


def _computation(graph: Graph, values: ShapeValues, value: Value, last: Node) -> list[Node] | None:
    """The nodes that compute `value` from the tensors whose shapes are asked, and `last`, in topological
    order.
    """
    found: dict[Node, None] = {}
    pending = [graph.producer(value)]
    while pending:
        node = pending.pop()
        if node is None or node in found:
            continue
        found[node] = None
        if len(found) > LONGEST or not graph.is_pure(node):
            return None
        if graph.key(node) == "shape":
            continue
        operands = [o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)]
        pending += [graph.producer(o) for o in operands if values.computed(o) is not None]
    found[last] = None
    before = cmp_to_key(lambda a, b: -1 if graph.precedes(a, b) else 1)
    return sorted(found, key=before)


def _with_removal(write: Callable[[Journal], None], nodes: Sequence[Node]) -> Callable[[Journal], None]:
    def both(journal: Journal) -> None:
        write(journal)
        journal.doom(nodes)

    return both
