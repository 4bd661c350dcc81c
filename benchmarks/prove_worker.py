"""Makes pairs of models, and has one prover judge them; a line of JSON an item.

    python -m benchmarks.prove_worker make FOLDER TOOL EVERY FIRST
    python -m benchmarks.prove_worker graphopt FOLDER - - FIRST
    python -m benchmarks.prove_worker onnxsim-certify FOLDER - - FIRST

Items are counted from FIRST on. One that takes the process down is the one after the last line.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.corpus_cases import Case, corpus, light_cases
from benchmarks.corpus_worker import TOOLS

Told = dict[str, Any]


def cases(every: int) -> Iterator[Case]:
    """Every so many models of the backend tests, and the whole networks."""
    return chain(islice(corpus(), 0, None, every), light_cases())


def made(folder: Path, tool: str, every: int, first: int) -> Iterable[Told]:
    """Simplify cases; keep the pairs that `tool` really changed."""
    os.environ["ONNXSIM_CERTIFY"] = "0"  # or it would prove as it simplifies
    for number, case in enumerate(cases(every)):
        if number < first:
            continue
        try:
            after = TOOLS[tool](case.model)
        except Exception as error:  # what a tool raises is what is to be found out
            yield {"case": case.name, "pair": False, "detail": f"{type(error).__name__}"}
            continue
        changed = _ops(case.model) != _ops(after)
        if changed:
            arrays = {k: v for k, v in case.feeds.items() if isinstance(v, np.ndarray)}
            pair = (case.name, case.model.SerializeToString(), after.SerializeToString(), arrays)
            (folder / f"{number:06}.pair").write_bytes(pickle.dumps(pair))
        yield {"case": case.name, "pair": changed}


def _ops(model: onnx.ModelProto) -> Counter[str]:
    """What a graph is made of; constants are no work, wherever they are stored."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def judged(folder: Path, prover: str, first: int) -> Iterable[Told]:
    for path in sorted(folder.glob("*.pair"))[first:]:
        name, before, after, examples = pickle.loads(path.read_bytes())
        models = [onnx.ModelProto.FromString(m) for m in (before, after)]
        constant = not {i.name for i in models[0].graph.input} - {i.name for i in models[0].graph.initializer}
        start = time.perf_counter()
        try:
            status, detail = PROVERS[prover](*models, examples)
        except Exception as error:  # a prover that raises has proved nothing
            status, detail = "error", f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.perf_counter() - start
        yield {"case": name, "status": status, "detail": detail, "seconds": seconds, "constant": constant}


def graphopt_prover(before: onnx.ModelProto, after: onnx.ModelProto, examples: dict[str, Any]) -> tuple[str, str]:
    from graphopt.verify.prove_models import compare_models

    found = compare_models(before, after, examples=examples, seconds=6.0)
    drawn = found.proof.holds and "integer and truth inputs" in found.proof.sampled
    return f"{found.level} (integers drawn)" if drawn else found.level, found.proof.reason


def certify_prover(before: onnx.ModelProto, after: onnx.ModelProto, examples: dict[str, Any]) -> tuple[str, str]:
    """onnxsim's own, with the limits that its simplify gives it."""
    from onnxsim.certify import certify

    report = certify(
        before, after, atol=1e-5, rtol=1e-4, max_work=100_000, timeout_ms=5_000, total_timeout_ms=10_000
    )
    if report.ok:
        return "proof", ""
    first = report.windows[0] if report.windows else None
    return ("undecided", "") if first is None else (str(first.status), str(first.detail)[:200])


PROVERS = {"graphopt": graphopt_prover, "onnxsim-certify": certify_prover}


def main(what: str, folder: str, tool: str, every: str, first: str) -> None:
    # What a tool prints must not get between the lines of JSON.
    out, sys.stdout = sys.stdout, sys.stderr
    start = int(first)
    told = made(Path(folder), tool, int(every), start) if what == "make" else judged(Path(folder), what, start)
    for line in told:
        print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
