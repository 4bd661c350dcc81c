"""Comparison of two model files in a process of its own: a runtime that crashes or a proof that takes too long leaves
the question undecided, and no more."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError
from graphopt.ir.weights import Array
from graphopt.rewrite.contract import Proof
from graphopt.verify.prove_models import ModelProof
from graphopt.verify.whole import Verdict


@dataclass(frozen=True)
class Comparison:
    """What running both models says of them, and what algebra says if it was asked."""

    verdict: Verdict | None
    """None if the process ended before it was reached."""
    proof: ModelProof | None
    reason: str = ""
    """Why there is no verdict."""

    @property
    def ok(self) -> bool:
        proved = self.proof is None or self.proof.proof.holds or self.proof.level == "executed"
        return self.verdict is not None and self.verdict.ok and not self.verdict.unjudged and proved


@dataclass(frozen=True)
class _Job:
    before: Any
    after: Any
    examples: Mapping[str, Array] | None
    seed: int | None
    seconds: float
    run: bool
    prove: bool


def prove_models(
    before: Any,
    after: Any,
    *,
    examples: Mapping[str, Array] | None = None,
    seed: int | None = None,
    seconds: float = 60.0,
) -> ModelProof:
    """Whether two ONNX models compute the same real numbers for every input, decided in a process of its own.

    Args:
        before, after: paths or `onnx.ModelProto`s with the same names of inputs and outputs.
        examples: arrays for some inputs. Their shapes are taken, and of integers and truth values the numbers too.
        seed: of the random points; drawn if absent, and recorded.
        seconds: what it may take; after that, and if the process dies, the models are undecided.

    Raises:
        ModelError: no models, or the interfaces differ.
    """
    job = _Job(before, after, examples, seed, seconds, run=False, prove=True)
    found = _apart(job)
    assert found.proof is not None
    return found.proof


def compare(
    before: Any,
    after: Any,
    *,
    examples: Mapping[str, Array] | None = None,
    prove: bool = False,
    seed: int | None = None,
    seconds: float = 60.0,
) -> Comparison:
    """Both models run on onnxruntime and, with `prove`, compared as expressions. As `prove_models` otherwise."""
    return _apart(_Job(before, after, examples, seed, seconds, run=True, prove=prove))


def _apart(job: _Job) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "question", Path(folder) / "answer"
        question.write_bytes(pickle.dumps(job))
        # Without -P a file of the current folder that is called as a module of Python would be imported for it.
        command = [sys.executable, "-P", "-m", "graphopt.verify.apart", str(question), str(answer)]
        reason = ""
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=job.seconds)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                reason = f"the process that compares them ended with code {done.returncode}: {''.join(said)[:200]}"
        except subprocess.TimeoutExpired:
            reason = f"not decided within {job.seconds:g} seconds"
        # What was reached before the end counts.
        found = pickle.loads(answer.read_bytes()) if answer.exists() else Comparison(None, None)
    if isinstance(found, GraphoptError):
        raise found
    assert isinstance(found, Comparison)
    undecided = ModelProof(Proof("undecided", reason)) if job.prove else None
    return Comparison(found.verdict, found.proof or undecided, reason if found.verdict is None else "")


def _child(question: Path, answer: Path) -> None:
    job: _Job = pickle.loads(question.read_bytes())
    try:
        verdict = _executed(job) if job.run else None
        _write(Comparison(verdict, None), answer)
        if job.prove:
            _write(Comparison(verdict, _proof(job)), answer)
    except GraphoptError as error:
        _write(error, answer)


def _executed(job: _Job) -> Verdict:
    from graphopt.verify.pairs import drawn, pair, shapes
    from graphopt.verify.replay import end_to_end

    both = pair(job.before, job.after)
    sizes = next(shapes(both, job.examples))
    return end_to_end(both, {**drawn(both, sizes, job.examples, job.seed or 0), **(job.examples or {})})


def _proof(job: _Job) -> ModelProof:
    from graphopt.verify.prove_models import compare_models

    half = job.seconds / 2
    return compare_models(job.before, job.after, examples=job.examples, seed=job.seed, seconds=half)


def _write(what: Any, answer: Path) -> None:
    """Under a temporary name first: the process may be ended at any moment."""
    partial = answer.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(what))
    partial.replace(answer)


if __name__ == "__main__":
    from graphopt.verify import apart  # so that what is pickled is known by its real name

    apart._child(Path(sys.argv[1]), Path(sys.argv[2]))
