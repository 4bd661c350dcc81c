"""A table evaluated for all rows of the schedule in one call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from graphopt.errors import UnsupportedError
from graphopt.ir.convert import from_scratch
from graphopt.passes.batch_check import check_batched
from graphopt.passes.batch_rows import batched_graph
from graphopt.pipeline.context import RunContext
from graphopt.pipeline.pass_ import ProgramPass
from graphopt.program.body import Body, Unit
from graphopt.program.program import Program
from graphopt.program.stages import is_stored


@dataclass(frozen=True)
class BatchTables(ProgramPass):
    """Evaluates what `hoist` put into a table for all rows in one call instead of row by row.

    The timestep of a table gets a leading axis, one entry for every row that calls the body, and with it every value
    that depends on it, by one batching rule per op (`graphopt.passes.batching_rules`). The n matrix-vector products of
    an AdaLN modulation become one matrix product, and the launches of a row are paid once. The number of rows stays
    symbolic, so the schedule may be replaced afterwards. All intermediate values of all rows live at the same time.

    Preconditions: ONNX graphs, static sizes, and a rule for every op that depends on the timestep. A table that does
    not fulfil them stays row by row, and the report says which node it was. Source: the batching transformation of
    `jax.vmap` (Frostig, Johnson and Leary 2018, Compiling machine learning programs via high-level tracing).
    """

    name: ClassVar[str] = "batch-tables"
    contract: ClassVar[str] = (
        "Rounding: matrix products of another shape may add up in another order; checked at every row against float64"
    )

    def run(self, program: Program, context: RunContext) -> Program:
        """Every body's table, each as one application "batch-tables/table"."""
        for name, body in program.bodies.items():
            if name in program.calls and body.table is not None and not context.ledger.exhausted:
                if body.batched:
                    context.notes.append(f"{name}: its table takes all rows already")
                else:
                    program = _batch(program, name, body, context)
        return program


def _batch(program: Program, name: str, body: Body, context: RunContext) -> Program:
    stats = context.ledger.rule("table")
    stats.tried += 1
    try:
        changed = batched_body(body)
    except UnsupportedError as error:
        stats.refused[str(error)] += 1
        context.notes.append(f"{name}: the table stays row by row: {error}")
        return program
    stats.matched += 1
    return _apply(program, name, body, changed, context)


def batched_body(body: Body) -> Body:
    """`body` with a table that takes all rows.

    Raises:
        UnsupportedError: its table is no ONNX graph, or a node of it cannot be batched.
    """
    assert body.table is not None
    model = body.table.model
    if model.storage != "onnx":
        raise UnsupportedError("its graph is a torch graph, whose sizes are fixed; give target='onnxruntime'")
    main: Any = model.main
    timesteps = {v for v, feed in zip(main.inputs(), body.table.feeds, strict=True) if feed.kind == "timestep"}
    rows = from_scratch(batched_graph(main, timesteps), "onnx", opset=main.opset)
    return replace(body, table=Unit(rows, body.table.feeds), batched=True)


def _apply(program: Program, name: str, body: Body, changed: Body, context: RunContext) -> Program:
    """Verify and record; what fails is undone alone, which is to return the program as it was."""
    assert body.table is not None
    graph = body.table.model.main
    nodes = tuple(graph.node_name(n) for n in graph.nodes() if not is_stored(graph, n))
    kept = context.apply("table", nodes, lambda: (changed, check_batched(program, body, changed, name, context.verify)))
    if kept is None:
        return program
    context.notes.append(f"{name}/table: {len(nodes)} nodes run once instead of {program.calls.count(name)} times")
    return replace(program, bodies={**program.bodies, name: kept})
