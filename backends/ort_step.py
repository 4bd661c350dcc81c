"""One row of a program as an ONNX model: a body's step with input scaling, guidance and the scheduler's update."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.backends.ort_branches import Branch, Parts, feed_value
from graphopt.backends.ort_builder import Builder, Imports, empty_graph, new_input
from graphopt.backends.ort_row import RowWriter
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.program.body import Body, Feed
from graphopt.program.noise import used_draws
from graphopt.program.program import Program


def step_model(program: Program, name: str, models: Mapping[tuple[str, str], ir.Model]) -> ir.Model:
    """The rows that call the body `name`, as one model.

    Inputs: `row` (its number), `state_<i>`, `guidance_scale` and `step_noise` if the program has them, and what the
    step reads of conditions, prologue and table, named by `input_name`. Outputs: `state_<i>_after`.
    """
    imports = Imports()
    imports.add(f"{name}/step", models[name, "step"])
    sample, schedule, body = program.interface.sample, program.schedule, program.bodies[name]
    graph = empty_graph(f"{program.name}/{name}")
    builder = Builder(graph, "row")
    row = new_input(graph, "row", TensorType("int64", ()))
    state = [new_input(graph, f"state_{i}", sample) for i in range(schedule.live_tensors)]
    scale = None
    if program.guidance is not None:
        shape = (len(schedule),) if program.guidance.varies else ()
        scale = new_input(graph, "guidance_scale", TensorType(sample.dtype, shape))
    step_noise = None
    if count := int(used_draws(schedule).sum()):
        step_noise = new_input(graph, "step_noise", TensorType(sample.dtype, (count, *(sample.shape or ()))))
    branches = [_declare(program, name, number, graph) for number in range(branch_count(program))]
    writer = RowWriter(program, builder, row)
    seen, timestep = writer.sample_seen(state[0]), writer.timestep()
    results = Parts(models).call(
        (name, "step"), body.step, branches, lambda f, b: feed_value(f, b, name, seen, timestep), graph
    )
    prediction = writer.predict([outputs[0] for outputs in results], scale)
    for index, after in enumerate(writer.update(state, prediction, step_noise)):
        builder.result(after, f"state_{index}_after", sample)
    return imports.model(graph)


def branch_count(program: Program) -> int:
    """How often a row calls the denoiser."""
    return 1 if program.guidance is None or program.interface.doubled else 2


def input_name(branch: int, feed: Feed) -> str:
    """The name of a step's input that is known before the row."""
    return f"{feed.kind}_{branch}/{feed.name or feed.index}"


def _declare(program: Program, name: str, number: int, graph: ir.Graph) -> Branch:
    """Inputs for what the step reads that is known before the row."""
    body = program.bodies[name]
    conditions: dict[str, ir.Value] = {}
    results: dict[str, dict[int, ir.Value]] = {"prologue": {}, "table": {}}
    for feed in dict.fromkeys(body.step.feeds):
        if feed.kind in ("sample", "timestep"):
            continue
        value = new_input(graph, input_name(number, feed), _type(program, body, feed))
        if feed.kind == "condition":
            conditions[feed.name] = value
        else:
            results[feed.kind][feed.index] = value
    return Branch(conditions, {name: results["prologue"]}, {name: results["table"]})


def _type(program: Program, body: Body, feed: Feed) -> TensorType:
    if feed.kind == "condition":
        return program.interface.seen("condition", feed.name)
    type_ = body.result_types(feed.kind)[feed.index]
    if type_ is None:
        raise UnsupportedError(f"the type of {feed} of {program.name} is not known; declare it in the graph")
    return type_
