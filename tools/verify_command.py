"""`graphopt verify`: two model files compared, by running them and by proof."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from graphopt.tools.output import print_json, print_note, print_result, require_writable

if TYPE_CHECKING:
    from graphopt.verify.apart import Comparison
    from graphopt.verify.prove_models import ModelProof


def verify_command(
    before: Annotated[Path, typer.Argument(help="A model, an .onnx file.")],
    after: Annotated[Path, typer.Argument(help="What became of it: another .onnx file with the same interface.")],
    prove: Annotated[bool, typer.Option("--prove", help="Compare them as expressions of real numbers too.")] = False,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Inputs to compare them on: an .npz file of arrays by input name."),
    ] = None,
    counterexample: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the inputs that refute a proof, as .npz.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes a proof again; drawn if absent.")] = None,
    limit: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="What the comparison may take.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models, whatever made one of the other.

    Both are run on onnxruntime, its optimisations off, and judged against the first one's own sensitivity. With
    --prove they are compared as expressions of real numbers too: a proof holds for all real inputs at the sizes that
    are named, and says nothing of rounding, overflow and NaN. Free sizes are fixed to small ones, all different.

    Exit code 1 if they differ or that is undecided, and with --prove also if the proof is.

    JSON keys: before, after, ok, error, allowed, reason (of the run; null where it was not decided); with --prove
    proof: level, reason, log2_error, functions, laws, weights, sampled, seed, milliseconds, and of the models sizes,
    executed, constants, computed, folded, units, counterexample (the file, if one was written).
    """
    from graphopt.tools.calibration import read_named
    from graphopt.verify.apart import compare

    if counterexample is not None:
        require_writable(counterexample, before, after, inputs)
    examples = None if inputs is None else read_named(inputs)
    found = compare(before, after, examples=examples, prove=prove, seed=seed, seconds=limit)
    written = _keep(found.proof, counterexample)
    if as_json:
        print_json({"before": str(before), "after": str(after), "ok": found.ok, **_told(found, written)})
    else:
        print_result(Text("\n".join(_lines(found))))
    if written is not None:
        print_note(f"wrote {written}")
    if not found.ok:
        raise typer.Exit(1)


def _keep(proof: ModelProof | None, path: Path | None) -> Path | None:
    if proof is None or proof.counterexample is None or path is None:
        return None
    import numpy as np

    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **proof.counterexample)  # type: ignore[arg-type]
    partial.replace(path)
    return path


def _told(found: Comparison, written: Path | None) -> dict[str, Any]:
    verdict = found.verdict
    told: dict[str, Any] = {"error": None, "allowed": None, "reason": found.reason}
    if verdict is not None:
        finite = verdict.error if verdict.error < float("inf") else None
        reason = str(verdict) if verdict.unjudged else verdict.reason
        told = {"error": finite, "allowed": verdict.allowed, "reason": reason}
    if found.proof is not None:
        proof = {k: v for k, v in asdict(found.proof.proof).items() if k != "reduced"}
        of_models = {
            "sizes": {n: list(s) for n, s in found.proof.sizes.items()},
            "executed": found.proof.executed,
            "constants": {str(k): v for k, v in found.proof.constants.items()},
            "computed": found.proof.computed,
            "folded": found.proof.folded,
            "units": found.proof.units,
            "counterexample": None if written is None else str(written),
        }
        told["proof"] = proof | of_models
    return told


def _lines(found: Comparison) -> Iterator[str]:
    verdict = found.verdict
    if verdict is None:
        yield f"run: undecided; {found.reason}"
    else:
        agree = "undecided" if verdict.unjudged else "they agree"
        yield f"run: {agree if verdict.ok else 'they differ'}; {verdict}"
    if found.proof is not None:
        yield from claim(found.proof)


def claim(found: ModelProof) -> Iterator[str]:
    """What a proof of two models says, and what it rests on."""
    proof = found.proof
    if not proof.holds and proof.level != "executed":
        yield f"{proof.level}: {proof.reason}"
        return
    if proof.level == "executed":
        yield "executed: no output depends on an input that was left open"
        yield "  all were compared as the runtime computes them"
        return
    left_open = "" if proof.weights == "none" else " and of the large weights that both files store"
    yield f"{proof.level}: equal as expressions of real numbers for every value of the real inputs{left_open}"
    if proof.log2_error is None:
        yield f"  {proof.reason}"
    sizes = ", ".join(f"{name} {list(shape)}" for name, shape in found.sizes.items())
    yield f"  at the sizes {sizes}"
    if proof.log2_error is not None:
        yield f"  chance that different models pass: at most 2^{proof.log2_error:.0f}"
    if proof.functions:
        yield f"  unknown functions: {', '.join(proof.functions)}"
    if proof.laws:
        yield f"  by the law {', '.join(proof.laws)}, whose soundness over finite fields is conjectured"
    if proof.sampled:
        yield f"  drawn and not left open: {', '.join(proof.sampled)}"
    if found.constants:
        few = [f"{number!r} as {read}" for number, read in list(found.constants.items())[:4]]
        more = len(found.constants) - len(few)
        yield f"  constants read as numbers close to them: {', '.join(few)}{f' and {more} more' if more else ''}"
    if found.computed:
        yield f"  constants computed by the runtime: {', '.join(found.computed)}"
    if found.folded:
        yield (
            f"  numbers folded into {found.folded} convolutions, which were read as those that they are within "
            f"{found.units:.1f} units of rounding of (2^-24; of an offset's largest terms)"
        )
    if found.executed:
        yield f"  outputs compared as the runtime computes them: {', '.join(found.executed)}"
    yield f"  assumes denominators that are not zero; says nothing of rounding, overflow and NaN; seed {proof.seed}"
