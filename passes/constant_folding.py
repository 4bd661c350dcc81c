"""Computing ahead what depends on constants alone, with the kernels that would have computed it in every run.

A region of such nodes becomes constants: it is run once by the target's own runtime (onnxruntime for ONNX,
torch for torch graphs), so that no bit of the result changes. What would make the model larger is left to
be computed: inflating a small constant, a second copy of a weight, weights that are stored in few bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence

from graphopt.ir.graph import Graph, Literal, Node, TensorType, Value
from graphopt.ir.model import Model
from graphopt.ir.weights import Array, ArrayRef, numpy_dtype
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal
from graphopt.verify.execute import CannotRun, native_runner, note_of

KEPT_OPS = frozenset({"quantize", "dequantize"})
"""Ops that stay although their operands are constant: they are how quantised weights are stored."""
NODE_BYTES = 64
"""What a node takes in a file at the least, with its names: the room that folding it makes."""
SHARE = 0.005
"""How much larger all folding together may make the stored weights."""
ATTEMPTS = 32
"""How often the nodes with the largest results are left out of a region that is too large to fold as a
whole.
"""


class Growth:
    """How many bytes constant folding may still add to a model."""

    def __init__(self, model: Model) -> None:
        stored = sum(size for _, _, size in model.weights())
        self.left = int(SHARE * stored)
        self.refused: Counter[str] = Counter()
        """Why regions were left as they are, with their number of nodes."""


def fold_constants(editor: Editor, growth: Growth, settled: set[Hashable]) -> bool:
    """Replace regions of nodes with constant operands by their results, one application each.

    `settled` holds nodes that could not be folded before; it is added to. Returns whether any were folded.
    """
    graph, kept = editor.graph, False
    candidates = [n for n in constant_nodes(graph) if n not in settled]
    for component in connected(graph, candidates):
        plan = fitting(graph, component, growth)
        if editor.ledger.exhausted:
            break
        if plan is None:
            continue
        nodes, added = plan
        outputs = escaping(graph, nodes)
        try:
            results = _run(graph, nodes, outputs)
        except CannotRun as error:
            growth.refused[f"cannot be run: {error}"] += len(nodes)
            settled.update(nodes)
            continue
        application, _ = editor.apply(
            "fold-constants", Exact(), nodes, _store(graph, nodes, outputs, results)
        )
        if application.status == "kept":
            kept = True
            growth.left -= max(added, 0)
        else:
            settled.update(nodes)
    return kept


def constant_nodes(graph: Graph) -> Iterator[Node]:
    """Pure nodes all of whose operands are constants or outputs of such nodes, in topological order.

    A node that computes an output of the graph is none: the output would need a node again. Nor is one of which an
    output may be a view: that output would be memory of the model, which a caller may write to.
    """
    found: set[Value] = set()
    for node in graph.nodes():
        if graph.key(node) in KEPT_OPS or graph.subgraphs(node):
            continue
        call = graph.raw_call(node)
        operands = [o for o in call.operands if o is not None]
        outputs = [o for o in call.outputs if o is not None]
        if not all(o in found or graph.constant(o) is not None for o in operands):
            continue
        stays = any(graph.may_be_returned(o) or graph.constant(o) is not None for o in outputs)
        if not stays and graph.is_pure(node):
            found.update(outputs)
            yield node


def connected(graph: Graph, nodes: Sequence[Node]) -> list[list[Node]]:
    """`nodes` by connected component, in order; constants that are read by several nodes do not connect
    them.
    """
    component: dict[Node, list[Node]] = {}
    for node in nodes:
        mine = [node]
        for operand in graph.raw_call(node).operands:
            producer = None if operand is None or isinstance(operand, Literal) else graph.producer(operand)
            theirs = component.get(producer)
            if theirs is None or theirs is mine:
                continue
            small, large = sorted((mine, theirs), key=len)
            large += small
            component.update(dict.fromkeys(small, large))
            mine = large
        component[node] = mine
    position = {node: i for i, node in enumerate(nodes)}
    unique = {id(c): c for c in component.values()}
    return [sorted(c, key=position.__getitem__) for c in unique.values()]


def escaping(graph: Graph, nodes: Sequence[Node]) -> list[Value]:
    """Outputs of `nodes` that other nodes read."""
    inside = set(nodes)
    outputs = [o for n in nodes for o in graph.raw_call(n).outputs if o is not None]
    return [o for o in outputs if any(u not in inside for u in graph.users(o))]


def fitting(graph: Graph, component: list[Node], growth: Growth) -> tuple[list[Node], int] | None:
    """As much of `component` as may be folded within `growth`, and the bytes that it adds; None if that is
    nothing.

    The nodes with the largest results are left out first.
    """
    nodes = component
    for _ in range(ATTEMPTS):
        sizes = {o: size_of(graph.type(o)) for o in escaping(graph, nodes)}
        if not sizes:
            return None
        largest = max(sizes.values())
        added = math.inf if math.isinf(largest) else sum(sizes.values()) - _freed(graph, nodes)
        if added <= growth.left:
            return nodes, int(added)
        dropped = {graph.producer(o) for o, size in sizes.items() if size >= largest / 2}
        nodes = [n for n in nodes if n not in dropped]
    return None


def size_of(type_: TensorType | None) -> float:
    """Bytes of a tensor of this type; infinity if that is not known."""
    if type_ is None or type_.shape is None:
        return math.inf
    sizes = [d for d in type_.shape if isinstance(d, int)]
    if len(sizes) < len(type_.shape):
        return math.inf
    return float(math.prod(sizes) * numpy_dtype(type_.dtype).itemsize)


def _freed(graph: Graph, nodes: Sequence[Node]) -> int:
    """Bytes of the constants that nothing reads once `nodes` are gone, and of the nodes themselves."""
    inside = set(nodes)
    read = dict.fromkeys(o for n in nodes for o in graph.raw_call(n).operands if o is not None)
    freed = len(nodes) * NODE_BYTES
    for value in read:
        data = None if isinstance(value, Literal) else graph.constant(value)
        if data is not None and not graph.is_output(value) and all(u in inside for u in graph.users(value)):
            freed += data.nbytes
    return freed


def _run(graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value]) -> list[Array]:
    """The outputs as the target computes them. Raises CannotRun also if it would have to be in another
    precision.
    """
    run = native_runner(graph, nodes, [], outputs)
    results = run([])
    if notes := note_of(run):
        raise CannotRun(notes[0])
    for value, result in zip(outputs, results, strict=True):
        known = graph.type(value)
        if known is None or result.dtype.name != known.dtype:
            raise CannotRun(f"{graph.name(value)} is {known} and was computed as {result.dtype.name}")
    return results


def _store(
    graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value], results: Sequence[Array]
) -> Callable[[Journal], None]:
    def write(journal: Journal) -> None:
        for value, result in zip(outputs, results, strict=True):
            journal.replace(value, journal.add_constant(ArrayRef(result), graph.name(value)))
        journal.doom(nodes)

    return write
