"""Shapes that a model computes although types tell them: the computation becomes a constant.

One application takes in everything between the tensors whose shapes are asked and the value that becomes
constant, so that verification runs the real shape arithmetic, at several sizes, against the constant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key

import numpy as np

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.passes.shape_values import Content, Element, ShapeValues, Size, Unknown, is_known
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal
from graphopt.verify.inputs import multiple_of

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
        nodes = None if change is None else _fragment(graph, change, node)
        if change is None or nodes is None:
            continue
        application, _ = editor.apply(change.rule, Exact(), nodes, _with_removal(change.write, nodes))
        if application.status == "kept":
            kept = True
        else:
            settled.add(node)
    return kept


@dataclass(frozen=True)
class Proposal:
    """A change at one node."""

    rule: str
    shape: Value
    """The computed shape."""
    write: Callable[[Journal], None]
    follows: bool
    """Whether it follows from the computation of the shape, and not only from the type of the node's result."""
    infers: bool = False
    """Whether the shape leaves a size to be inferred, which beside an empty axis is undefined."""


def _known_value(graph: Graph, values: ShapeValues, node: Node) -> Proposal | None:
    """`node` computes numbers that are known, and something reads them that is not itself known."""
    outputs = graph.raw_call(node).outputs
    value = outputs[0] if len(outputs) == 1 else None
    content = values.computed(value)
    type_ = None if value is None else graph.type(value)
    if content is None or type_ is None or not is_known(content) or graph.may_be_returned(value):
        return None
    if graph.constant(value) is not None or not any(_needs(graph, values, user) for user in graph.users(value)):
        return None

    def write(journal: Journal) -> None:
        data = content.astype(numpy_dtype(type_.dtype))
        journal.replace(value, journal.add_constant(ArrayRef(data), graph.name(value)))

    return Proposal("known-shape-value", value, write, follows=True)


def _needs(graph: Graph, values: ShapeValues, user: Node) -> bool:
    return not all(is_known(values.computed(o)) for o in graph.raw_call(user).outputs if o is not None)


def _known_target(graph: Graph, values: ShapeValues, node: Node) -> Proposal | None:
    """`node` is a reshape or an expand whose computed target can be said as a constant."""
    call = graph.call(node) if graph.key(node) in ("reshape", "expand") else None
    targets = graph.raw_call(node).operands[1:]
    if not isinstance(call, Call) or not targets or targets[0] is None or call.outputs[0] is None:
        return None
    x, target, out = call.operands[0], targets[0], call.outputs[0]
    if graph.constant(target) is not None:
        return None
    contents = _from_contents(values, call, target)
    constant = call.fields["shape"] if contents is None else contents
    if constant is None:
        return None

    def write(journal: Journal) -> None:
        data = journal.add_constant(ArrayRef(np.asarray(constant, np.int64)), graph.name(target))
        new = journal.insert(call.op, [x, data], {"shape": None}, before=node, types=[graph.type(out)])
        journal.replace(out, new[0])

    return Proposal(
        f"known-{call.op}-target", target, write, follows=contents is not None, infers=_infers(values, target)
    )


def _infers(values: ShapeValues, target: Value) -> bool:
    content = values.computed(target)
    return content is not None and any(e == -1 for e in content.reshape(-1))


def _from_contents(values: ShapeValues, call: Call, target: Value) -> list[int] | None:
    """The target as a constant, from what is known of its elements."""
    content = values.computed(target)
    if content is None or content.ndim != 1:
        return None
    try:
        sizes = values.shape(call.operands[0])
    except Unknown:
        return None
    return (_reshape_target if call.op == "reshape" else _expand_target)(content, sizes)


def _reshape_target(content: Content, sizes: Sequence[Element]) -> list[int] | None:
    """The target with numbers only: 0 where it copies a size, -1 for the one element that is not known
    otherwise.

    An element that is a size of the operand at the same place is copied; the number of elements decides the
    last, unless a copied size, which may be 0, stands beside it.
    """
    target: list[int | None] = []
    for place, element in enumerate(_inferred(content, sizes)):
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


def _inferred(content: Content, sizes: Sequence[Element]) -> list[Element]:
    """The target with its -1 as what the number of elements makes it, where all sizes but one at most cancel out.

    That holds unless one of those sizes is 0; beside an empty axis the standard leaves -1 undefined.
    """
    elements = list(content)
    others = [e for e in elements if isinstance(e, bool) or e != -1]
    if len(others) != len(elements) - 1 or not all(isinstance(e, int | Size) for e in (*others, *sizes)):
        return elements
    whole, whole_names = _product(sizes)
    part, part_names = _product(others)
    rest = whole_names - part_names
    if part_names - whole_names or rest.total() > 1 or part <= 0 or whole <= 0 or whole % part:
        return elements
    factor = whole // part
    elements[elements.index(-1)] = Size(next(iter(rest)), factor) if rest else factor
    return elements


def _product(elements: Sequence[Element]) -> tuple[int, Counter[Hashable]]:
    """The number and the unknown sizes that the elements multiply to."""
    number = math.prod(e.factor if isinstance(e, Size) else int(e or 0) for e in elements)
    return number, Counter(e.identity for e in elements if isinstance(e, Size))


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


def _fragment(graph: Graph, change: Proposal, node: Node) -> list[Node] | None:
    """The nodes that are verified as one: with the shape's computation, if one run can hold both.

    Sizes that are equal in truth but have unrelated names would be drawn different, and an empty axis would leave
    undefined what the shape leaves to be inferred. Then the node stands alone, if the change follows from the
    computation and the type of the result tells a shape to draw.
    """
    if change.follows and change.infers and _is_determined(graph, node):
        return [node]
    nodes = shape_computation(graph, [change.shape], node)
    if node is graph.producer(change.shape):
        return nodes
    if nodes is not None and _sizes_are_tied(graph, graph.raw_call(node).operands[0], nodes):
        return nodes
    return [node] if change.follows else None


def _is_determined(graph: Graph, node: Node) -> bool:
    result = graph.type(graph.raw_call(node).outputs[0])
    return result is not None and result.shape is not None and sum(not isinstance(d, int) for d in result.shape) <= 1


def _sizes_are_tied(graph: Graph, x: Value, nodes: Sequence[Node]) -> bool:
    """Whether every unknown size of `x` is one of a tensor whose shape `nodes` ask for."""
    asked = [graph.raw_call(n).operands[0] for n in nodes if graph.key(n) == "shape"]
    if x in asked:
        return True
    shapes = [t.shape for v in asked if (t := graph.type(v)) is not None and t.shape is not None]
    names = {multiple_of(d)[1] for shape in shapes for d in shape if isinstance(d, str)}
    type_ = graph.type(x)
    if type_ is None or type_.shape is None:
        return False
    return all(isinstance(d, int) or (d is not None and multiple_of(d)[1] in names) for d in type_.shape)


def shape_computation(graph: Graph, values: Sequence[Value], last: Node) -> list[Node] | None:
    """The nodes that compute `values` from constants and the tensors whose shapes are asked, and `last`, in
    topological order.

    None if they depend on anything else: then no run of these nodes alone could contradict what types tell.
    """
    found: dict[Node, None] = {}
    pending = [v for v in values if graph.constant(v) is None]
    while pending:
        current = pending.pop()
        node = graph.producer(current)
        if node is None:
            return None
        if node in found:
            continue
        found[node] = None
        if len(found) > LONGEST or not graph.is_pure(node) or graph.subgraphs(node):
            return None
        if graph.key(node) != "shape":
            operands = [o for o in graph.raw_call(node).operands if o is not None]
            pending += [o for o in operands if graph.constant(o) is None]
    found[last] = None
    before = cmp_to_key(lambda a, b: -1 if graph.precedes(a, b) else 1)
    return sorted(found, key=before)


def _with_removal(write: Callable[[Journal], None], nodes: Sequence[Node]) -> Callable[[Journal], None]:
    def both(journal: Journal) -> None:
        write(journal)
        journal.doom(nodes)

    return both
