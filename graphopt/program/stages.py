"""When a value is known: from which inputs of a denoiser's graph it can be reached.

    MODEL              from none: known with the model
    SCHEDULE           from the timestep: known with the schedule, one value per row
    REQUEST            from conditions: known with the prompt, one value per request
    SCHEDULE_REQUEST   from both: one value per row and request
    STEP               from the sample, from noise, or by an effect: known in the loop only

A dependence analysis, pure and without knowledge of any op.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import TensorRef, numpy_dtype
from graphopt.pipeline.flops import node_flops
from graphopt.pipeline.report_table import scaled
from graphopt.program.body import Body, Feed, Unit
from graphopt.verify.fragment import captured

if TYPE_CHECKING:
    from graphopt.program.program import Program


class Stage(IntEnum):
    """A lattice: what depends on several values is known when the last of them is (`|`)."""

    MODEL = 0
    SCHEDULE = 1
    REQUEST = 2
    SCHEDULE_REQUEST = 3
    STEP = 7

    def __or__(self, other: int) -> Stage:
        return Stage(int(self) | int(other))

    @property
    def before_loop(self) -> bool:
        return self is not Stage.STEP

    @property
    def per_row(self) -> bool:
        """Whether its values differ from row to row of the schedule."""
        return bool(self & Stage.SCHEDULE)


@dataclass(frozen=True)
class Staging:
    """The stage of every node of a graph and of every value that it or the caller provides."""

    graph: Graph
    nodes: Mapping[Node, Stage]
    values: Mapping[Value, Stage]

    def of(self, value: Value) -> Stage:
        """The stage of any value of the graph, constants included."""
        return _stage_of(self.graph, self.values, value)


@dataclass(frozen=True)
class StageSize:
    """What belongs to one stage."""

    nodes: int
    flops: int | None
    """Of one run; None if an op's cost cannot be told."""
    parameters: int
    """Elements of weights that are needed until this stage and in no later one."""
    bytes: int
    """Bytes of those weights."""


def stages(graph: Graph, inputs: Mapping[Value, Stage]) -> Staging:
    """Classes every value of `graph` by the stages of its inputs. Linear in the size of the graph.

    An input that `inputs` does not name is STEP, and so is a node that is not pure.
    """
    values: dict[Value, Stage] = {v: inputs.get(v, Stage.STEP) for v in graph.inputs()}
    nodes: dict[Node, Stage] = {}
    for node in graph.nodes():
        stage = Stage.MODEL if graph.is_pure(node) else Stage.STEP
        for value in reads(graph, node, values):
            stage |= _stage_of(graph, values, value)
        nodes[node] = stage
        values.update((v, stage) for v in graph.results(node) if v is not None)
    return Staging(graph, nodes, values)


def reads(graph: Graph, node: Node, known: Container[Value]) -> Iterator[Value]:
    """The values that `node` reads: operands, what its control-flow bodies capture, and those of `known` that its
    storage keeps among the fields (sizes that another node computes)."""
    call = graph.raw_call(node)
    yield from (v for v in call.operands if v is not None and not isinstance(v, Literal))
    for body in graph.subgraphs(node):
        yield from captured(body)
    yield from (v for field in call.fields.values() for v in _leaves(field) if v in known)


def _leaves(field: Any) -> Iterator[Any]:
    """What a field consists of, as far as it could be a value."""
    if isinstance(field, (tuple, list)):
        for part in field:
            yield from _leaves(part)
    elif not isinstance(field, (bool, int, float, str, bytes)) and type(field).__hash__ is not None:
        yield field


def _stage_of(graph: Graph, values: Mapping[Value, Stage], value: Value) -> Stage:
    """Besides what is computed or given there are constants and things without a type, such as a body. A stored tensor
    that is no constant is written by somebody."""
    if isinstance(value, Literal):
        return Stage.MODEL
    if (known := values.get(value)) is not None:
        return known
    return Stage.MODEL if is_fixed(graph, value) else Stage.STEP


def is_fixed(graph: Graph, value: Value) -> bool:
    """Whether a value that is neither computed nor an input stays what it is: a constant, or a thing without a type."""
    return graph.constant(value) is not None or graph.type(value) is None


def input_stages(unit: Unit) -> dict[Value, Stage]:
    """The stages of the inputs of a unit, by where they come from."""
    return {v: feed_stage(f) for v, f in zip(unit.model.main.inputs(), unit.feeds, strict=True)}


def feed_stage(feed: Feed) -> Stage:
    match feed.kind:
        case "sample":
            return Stage.STEP
        case "timestep":
            return Stage.SCHEDULE
        case "table":
            return Stage.SCHEDULE_REQUEST
    return Stage.REQUEST


def is_stored(graph: Graph, node: Node) -> bool:
    """Whether `node` is how the storage writes a constant, and computes nothing."""
    results = [v for v in graph.results(node) if v is not None]
    return bool(results) and all(graph.constant(v) is not None for v in results)


def weights_read(graph: Graph, node: Node) -> Iterator[TensorRef]:
    """The constants that `node` and its control-flow bodies read."""
    for value in graph.raw_call(node).operands:
        if value is not None and not isinstance(value, Literal) and (data := graph.constant(value)) is not None:
            yield data
    for body in graph.subgraphs(node):
        for inner in body.nodes():
            yield from weights_read(body, inner)


def weight_stages(staging: Staging) -> dict[object, tuple[Stage, int, int]]:
    """By the identity of each stored tensor: the last stage that needs it, its elements and bytes."""
    found: dict[object, tuple[Stage, int, int]] = {}
    for node, stage in staging.nodes.items():
        for data in weights_read(staging.graph, node):
            earlier = found.get(data.identity)
            last = stage if earlier is None else earlier[0] | stage
            found[data.identity] = (last, data.size, data.nbytes)
    return found


def summary(staging: Staging) -> dict[Stage, StageSize]:
    """The size of every stage, all five of them."""
    graph = staging.graph
    nodes: Counter[Stage] = Counter()
    flops: dict[Stage, int | None] = dict.fromkeys(Stage, 0)
    for node, stage in staging.nodes.items():
        if not is_stored(graph, node):
            nodes[stage] += 1
            flops[stage] = _sum(flops[stage], node_flops(graph, node))
    parameters: Counter[Stage] = Counter()
    size: Counter[Stage] = Counter()
    for last, elements, nbytes in weight_stages(staging).values():
        parameters[last] += elements
        size[last] += nbytes
    return {s: StageSize(nodes[s], flops[s], parameters[s], size[s]) for s in Stage}


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def type_bytes(type_: TensorType | None) -> int | None:
    """Bytes of a value; None if its type or a size is unknown."""
    if type_ is None or type_.shape is None:
        return None
    sizes = [d for d in type_.shape if isinstance(d, int)]
    return math.prod(sizes) * numpy_dtype(type_.dtype).itemsize if len(sizes) == len(type_.shape) else None


def stage_table(program: Program) -> str:
    """For every graph of a program: what each stage holds and what the graph hands on, as lines of text."""
    lines = []
    for body_name, body in program.bodies.items():
        for name, unit in body.units():
            lines.append(f"{body_name}/{name}{_handed_on(name, body)}")
            lines += stage_lines(stages(unit.model.main, input_stages(unit)))
    return "\n".join(lines)


def stage_lines(staging: Staging) -> list[str]:
    """The stages that are not empty, one a line."""
    lines = [f"  {'stage':<17}{'nodes':>7}{'FLOPs':>10}{'parameters':>16}{'bytes':>10}"]
    for stage, size in summary(staging).items():
        if size.nodes or size.parameters:
            flops = "unknown" if size.flops is None else scaled(size.flops)
            lines.append(
                f"  {stage.name.lower().replace('_', ' × '):<17}{size.nodes:>7,}{flops:>10}"
                f"{size.parameters:>16,}{scaled(size.bytes):>10}"
            )
    return lines


def _handed_on(name: str, body: Body) -> str:
    if name == "step":
        return ""
    sizes = [type_bytes(type_) for type_ in body.result_types(name)]
    total = "of unknown size" if None in sizes else f"of {sum(s for s in sizes if s is not None):,} bytes"
    return f": keeps {len(sizes)} values {total}{' per row' if name == 'table' else ''}"
