"""`graphopt dump`: a model as text, JSON or Graphviz source."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from graphopt.tools.output import print_json


class Form(StrEnum):
    text = "text"
    json = "json"
    dot = "dot"


def dump(
    file: Annotated[Path, typer.Argument(help="The model, an .onnx file.")],
    form: Annotated[Form, typer.Option("--format", help="Form of the output.")] = Form.text,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print FILE, one line a node.

    A line has outputs, op, operands, attributes, types and name. Nodes are said in graphopt's vocabulary
    where it can say them exactly, without attributes at their default; else with their raw name. dot is
    Graphviz source of the main graph.

    JSON keys: storage, main, functions; of each graph inputs, state, constants, nodes, outputs; of each node
    name, op, raw, operands, fields, outputs, bodies; of each value name, dtype, shape.
    """
    from graphopt.compiler import load
    from graphopt.ir.text import graph_dot, model_dict, model_text

    model = load(file)
    if as_json or form is Form.json:
        print_json(model_dict(model))
    elif form is Form.dot:
        typer.echo(graph_dot(model.main), nl=False)
    else:
        typer.echo(model_text(model), nl=False)
