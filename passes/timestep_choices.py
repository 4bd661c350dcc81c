"""Where a denoiser chooses by its timestep what it runs, and the denoiser in which a choice is made."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.ir.weights import ArrayRef
from graphopt.passes.constant_branches import write_branch
from graphopt.passes.dead_code import find_dead
from graphopt.passes.hoist_split import Split
from graphopt.program.body import Unit
from graphopt.program.program import Program
from graphopt.program.reference import run_unit
from graphopt.program.runner import timestep_table, to_numpy, to_torch
from graphopt.program.stages import Stage, Staging, input_stages, stages
from graphopt.rewrite.journal import Journal

Kind: TypeAlias = Literal["where", "branch", "gather"]


@dataclass(frozen=True)
class Choice:
    """A node that hands on one of several things, by a value that depends on the timestep alone."""

    node: Node
    kind: Kind
    selector: Value
    """A truth value, or an index: one element, or of where several that may be equal."""
    leads: bool = True
    """Whether bodies are made for it. What only makes a number or an embedding of the timestep is tabulated for less:
    it is decided where the others are."""


def find_choices(unit: Unit) -> list[Choice]:
    """The choices of the main graph, in order."""
    graph = unit.model.main
    tabulated = {v for v, feed in zip(graph.inputs(), unit.feeds, strict=True) if feed.kind == "table"}
    return list(_choices(graph, stages(graph, input_stages(unit)), tabulated))


def _choices(graph: Graph, staging: Staging, tabulated: Container[Value]) -> Iterator[Choice]:
    """A value that was tabulated may have been one of the timestep alone."""

    def selects(value: Value | None) -> bool:
        if value is None or value in tabulated:
            return value is not None
        return graph.producer(value) is not None and staging.of(value) is Stage.SCHEDULE

    for node in graph.nodes():
        runs = staging.nodes[node] is not Stage.SCHEDULE
        branches = graph.branches(node)
        if branches is not None and selects(branches.condition) and _is_flat(graph, node):
            yield Choice(node, "branch", branches.condition, leads=runs)
        call = graph.call(node)
        if branches is not None or not isinstance(call, Call):
            continue
        if call.op == "where" and selects(call.operands[0]):
            whole = all(_same_type(graph, side, call.outputs[0]) for side in call.operands[1:])
            yield Choice(node, "where", call.operands[0], leads=runs and whole)
        elif call.op == "gather" and selects(call.operands[1]) and _elements(graph, call.operands[1]) == 1:
            data = graph.constant(call.operands[0])
            if data is not None:
                yield Choice(node, "gather", call.operands[1], leads=data.ndim > 2)


def _is_flat(graph: Graph, node: Node) -> bool:
    """Whether the branches of a node may be written in its place."""
    return graph.is_pure(node) and not any(b.subgraphs(inner) for b in graph.subgraphs(node) for inner in b.nodes())


def _same_type(graph: Graph, a: Value | None, b: Value | None) -> bool:
    return a is not None and b is not None and graph.type(a) is not None and graph.type(a) == graph.type(b)


def _elements(graph: Graph, value: Value) -> int | None:
    type_ = graph.type(value)
    if type_ is None or type_.shape is None or not type_.is_static:
        return None
    return math.prod(d for d in type_.shape if isinstance(d, int))


def selected(program: Program, rows: Sequence[int], step: Unit, found: Sequence[Choice]) -> list[list[int | None]]:
    """For each choice of a body's step what is chosen in each of `rows`; None for different things at once."""
    graph = step.model.main
    selectors = list(dict.fromkeys(choice.selector for choice in found))
    nodes = Split(stages(graph, input_stages(step)), selectors).moved()
    inputs = [v for v, feed in zip(graph.inputs(), step.feeds, strict=True) if feed.kind == "timestep"]
    run = run_unit(step.model.extract(nodes, inputs, selectors))
    own = to_torch if program.storage == "fx" else to_numpy
    by_row = [
        dict(zip(selectors, map(_one, run([own(np.asarray(t)) for _ in inputs])), strict=True))
        for t in timestep_table(program, rows)
    ]
    return [[values[choice.selector] for values in by_row] for choice in found]


def _one(result: object) -> int | None:
    array = to_numpy(result).reshape(-1)
    return int(array[0]) if len(array) and bool((array == array[0]).all()) else None


def decided(step: Unit, values: Sequence[int | None]) -> Unit:
    """A copy of the step in which choices are made, those with a value; what is not chosen is gone."""
    model = step.model.copy()
    graph = model.main
    journal = Journal(graph)
    for choice, value in zip(find_choices(Unit(model, step.feeds)), values, strict=True):
        if value is not None:
            _decide(journal, choice, value)
    journal.commit()
    dead = set(find_dead(graph))
    nodes = [node for node in graph.nodes() if node not in dead]
    read = {
        v: feed
        for v, feed in zip(graph.inputs(), step.feeds, strict=True)
        if graph.is_output(v) or any(user not in dead for user in graph.users(v))
    }
    return Unit(model.extract(nodes, list(read), graph.outputs()), tuple(read.values()))


def _decide(journal: Journal, choice: Choice, value: int) -> None:
    graph, node = journal.graph, choice.node
    if choice.kind == "branch":
        branches = graph.branches(node)
        assert branches is not None
        write_branch(graph, node, branches, bool(value))(journal)
        return
    call = graph.call(node)
    assert isinstance(call, Call)
    result, operands = call.outputs[0], call.operands
    if choice.kind == "gather":
        data, index = graph.constant(operands[0]), graph.type(choice.selector)
        assert data is not None and index is not None
        shape = (1,) * len(index.shape or ())
        stored = np.take(data.numpy(), np.full(shape, value), axis=call.fields["axis"])
        journal.replace(result, journal.add_constant(ArrayRef(np.ascontiguousarray(stored)), graph.name(result)))
        return
    chosen = operands[1 if value else 2]
    if _same_type(graph, chosen, result):
        journal.replace(result, chosen)
