"""`graphopt experts`: how the work of a model's mixtures of experts is divided among them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.tools.output import print_json, print_note, print_result, require_writable


def experts(
    file: Annotated[Path, typer.Argument(help="The model, an .onnx file.")],
    calibration: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Real inputs: an .npz file of arrays by input name, samples along axis 0."),
    ],
    picture: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the bars as an SVG picture too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many tokens each expert of FILE is given, and with what weight.

    For each router: tokens of each expert, its share of them and the mean weight of its results; entropy of the shares
    divided by its maximum, coefficient of variation, and the experts that no token was routed to.

    JSON: a list with, for each router, name, experts, k, total, tokens, share, mean_gate (null where the graph does not
    show it), entropy, variation, dead.
    """
    from graphopt.passes.prune_experts import balance, svg, table
    from graphopt.tools.calibration import read_calibration

    if picture is not None:
        require_writable(picture, file, calibration)
    found = balance(file, read_calibration(calibration))
    if picture is not None:
        picture.write_text(svg(found), encoding="utf-8")
        print_note(f"wrote {picture}")
    print_json([load.to_dict() for load in found]) if as_json else print_result(table(found))
