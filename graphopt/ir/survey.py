"""One reading of a graph for whoever shows it: every call once, and what the calls read from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.ops.spec import OPS


@dataclass
class Survey:
    """A region with its calls in order. Constants and captures are in the order of their first use."""

    graph: Graph
    calls: list[tuple[Node, Call]] = field(default_factory=list)
    """Node and call: in the vocabulary where the node can be read, else as the storage has it."""
    constants: list[Value] = field(default_factory=list)
    """Weights read here and in no enclosing region."""
    captures: list[Value] = field(default_factory=list)
    """What the calls read that is neither computed here, nor input, constant or known outside: state."""
    bodies: dict[int, list[Survey]] = field(default_factory=dict)
    """Control-flow bodies, by the position of their node in `calls`."""


def survey_graph(graph: Graph) -> Survey:
    """`graph` and its control-flow bodies, in time proportional to their size."""
    return _survey(graph, set())


def survey_model(model: Model) -> list[Survey]:
    """The regions that no other region holds: the main graph first, then local functions."""
    surveys: list[Survey] = []
    held: set[Graph] = set()
    for region in model.regions():
        if region not in held:
            surveys.append(survey_graph(region))
            held.update(_held(surveys[-1]))
    return surveys


def written_fields(call: Call) -> dict[str, object]:
    """The fields of `call` that are not at their default, sorted by name."""
    op = OPS.get(call.op)
    return {
        name: value
        for name, value in sorted(call.fields.items())
        if op is None or name not in op.fields or not op.is_default(name, value)
    }


def _survey(graph: Graph, known: set[str]) -> Survey:
    # Names are unique within a model, so one set serves all nested regions.
    survey = Survey(graph)
    known.update(graph.name(v) for v in graph.inputs())
    for node in graph.nodes():
        read = graph.call(node)
        call = read if isinstance(read, Call) else graph.raw_call(node)
        for operand in call.operands:
            _note(survey, operand, known)
        bodies = graph.subgraphs(node)
        if bodies:
            survey.bodies[len(survey.calls)] = [_survey(body, known) for body in bodies]
        survey.calls.append((node, call))
        known.update(graph.name(v) for v in call.outputs if v is not None)
    for value in graph.outputs():
        _note(survey, value, known)
    return survey


def _note(survey: Survey, value: Value | None, known: set[str]) -> None:
    if value is None or isinstance(value, Literal):
        return
    name = survey.graph.name(value)
    if name in known:
        return
    known.add(name)
    kind = survey.captures if survey.graph.constant(value) is None else survey.constants
    kind.append(value)


def _held(survey: Survey) -> list[Graph]:
    bodies = [body for group in survey.bodies.values() for body in group]
    return [survey.graph, *(graph for body in bodies for graph in _held(body))]
