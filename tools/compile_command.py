"""`graphopt compile`: compile a model ahead of time, for a device that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.errors import PipelineError
from graphopt.tools.output import print_json, print_note, print_result


def compile_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file, or PACKAGE.MODULE:FUNCTION, which is called and returns a model, or a torch module and "
            "its example inputs."
        ),
    ],
    topology: Annotated[
        str, typer.Option(metavar="CHIP:GRID", help="What it is compiled for, as in v5e:2x2; one chip of it is used.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder that the results go to.")],
    backend: Annotated[str, typer.Option(help="The backend that compiles.")] = "xla",
    precision: Annotated[
        str | None,
        typer.Option(help="Of float32 products: default (one pass of bfloat16), high (three) or highest, if not said."),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Compare every op with torch's, or an ONNX model's with onnxruntime's, on the CPU before; done if not "
            "said.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compile MODEL for a TPU; none is needed, and nothing is run on one.

    Writes into DIR: model.stablehlo, which JAX runs on CPUs and TPUs (weights included); model.pjrt, the executable for
    the topology, which takes the weights as arguments; weights.npz, these in order and by name; model.hlo.txt, the
    optimised program as text; and report.json, what the compiler says about it.

    JSON keys, also of report.json: topology, device, status, versions, precision, arguments (types, in order),
    compile_seconds, flops, transcendentals, bytes_accessed (a loop's body counts once), memory (bytes: arguments,
    outputs, temporaries, code, aliased, peak), loops, fusions (kind to number), copies, copy_count, host_transfers,
    layouts (element type and tiles to number of arrays), padding, argument_padding (logical_bytes, padded_bytes, waste)
    and worst.
    """
    from graphopt.compiler import lower
    from graphopt.tools.sources import model_of

    found, examples = model_of(model)
    options = {k: v for k, v in {"precision": precision, "check": check}.items() if v is not None}
    run: Any = lower(found, backend, example_inputs=examples, **options)
    if not hasattr(run, "compile_for"):
        raise PipelineError(f"backend {backend!r} compiles nothing ahead of time; expected --backend xla")
    compiled = run.compile_for(topology)
    compiled.save(output)
    run.save_weights(output / "weights.npz")
    run.save(output / "model.stablehlo")
    print_note(f"wrote {output}: model.stablehlo, model.pjrt, weights.npz, model.hlo.txt, report.json")
    print_json(compiled.report.to_dict()) if as_json else print_result(compiled.report)
