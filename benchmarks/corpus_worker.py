"""Runs cases of the corpus through one tool and says of each what became of it, one line of JSON a case.

    python -m benchmarks.corpus_worker TOOL FIRST STEP

takes every STEP-th case from the FIRST on. A case that takes the process down is the one after the last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx

from benchmarks.compare import session
from benchmarks.corpus_cases import Case, corpus
from graphopt.backends.ort_values import run_arrays
from graphopt.ir.weights import Array
from graphopt.pipeline.spec import DEFAULT_PASSES as PASSES

Tool = Callable[[onnx.ModelProto], onnx.ModelProto]
RTOL, ATOL = 1e-3, 1e-4
UNITS = {"float64": 0.0, "float32": 0.0, "float16": 2.0**-9, "bfloat16": 2.0**-6}
"""Two units in the last place of each float, allowed where that is more than `RTOL`."""
GROWTH, ROOM = 0.01, 200
"""By how much a file may grow: a share, and bytes for the names of the few nodes of a tiny model."""


def graphopt_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    import graphopt

    result: onnx.ModelProto = graphopt.optimize(model, PASSES).model
    return result


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Some tools work in place, and say so."""
    return onnx.ModelProto.FromString(model.SerializeToString())


def onnxsim_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    result: onnx.ModelProto = onnxsim.simplify(_copied(model), certify=False)[0]
    return result


def onnxslim_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    result: onnx.ModelProto = onnxslim.slim(_copied(model))
    return result


def onnxoptimizer_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxoptimizer

    result: onnx.ModelProto = onnxoptimizer.optimize(_copied(model))
    return result


def onnxscript_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxscript import optimizer

    result: onnx.ModelProto = optimizer.optimize(_copied(model))
    return result


TOOLS: dict[str, Tool] = {
    "graphopt": graphopt_tool,
    "onnxsim": onnxsim_tool,
    "onnxscript": onnxscript_tool,
    "onnxoptimizer": onnxoptimizer_tool,
    "onnxslim": onnxslim_tool,
}


@dataclass(frozen=True)
class Verdict:
    """What became of one case."""

    case: str
    status: str
    """"ok"; "wrong", "invalid", "unloadable", "exception", "larger" or "lost"; "crash" or "timeout" of the process;
    "not run" if onnxruntime cannot run the original, and nothing else is wrong."""
    detail: str = ""
    before: int = 0
    """Nodes of the main graph, Constant nodes not counted."""
    after: int = 0
    seconds: float = 0.0


def judge(case: Case, tool: Tool) -> Verdict:
    """Run one case: outputs, validity and size of the result beside those of the original."""
    expected, refusal = _expected(case)
    original = case.model.SerializeToString(deterministic=True)
    start = time.perf_counter()
    try:
        result = tool(case.model)
    except Exception as error:  # what a tool raises is what is to be found out
        return Verdict(case.name, "exception", _told(error), seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    before = onnx.ModelProto.FromString(original)
    status, detail = _verdict(before, case, result, expected, run=not refusal)
    if status == "ok" and case.model.SerializeToString(deterministic=True) != original:
        status, detail = "lost", "the model that was given was modified"
    if status == "ok" and refusal:
        status, detail = "not run", refusal
    return Verdict(case.name, status, detail, nodes_of(before), nodes_of(result), seconds)


def _verdict(
    before: onnx.ModelProto, case: Case, result: onnx.ModelProto, expected: Sequence[Any] | None, *, run: bool
) -> tuple[str, str]:
    """The worst that can be said of a result."""
    for full in (False, True):
        if invalid(before, full) is None and (reason := invalid(result, full)) is not None:
            return "invalid", reason
    try:
        got = run_case(result, case.feeds) if run else None
    except Exception as error:  # onnxruntime's errors have no common base
        return "unloadable", _told(error)
    if got is not None and expected is not None and (reason := difference(got, expected)):
        return "wrong", reason
    size, limit = result.ByteSize(), before.ByteSize() * (1 + GROWTH) + ROOM
    if size > limit:
        return "larger", f"{before.ByteSize()} -> {size} bytes"
    lost = losses(before, result)
    return ("lost", ", ".join(lost)) if lost else ("ok", "")


def _expected(case: Case) -> tuple[list[Any] | None, str]:
    """The outputs of the original, None if they differ from run to run; and why it cannot be run, if so."""
    try:
        first, second = (run_case(case.model, case.feeds) for _ in range(2))
    except Exception as error:  # onnxruntime's errors have no common base
        return None, _told(error)
    return None if difference(second, first) else first, ""


def run_case(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """The outputs on onnxruntime, with its optimisations off."""
    running = session(model.SerializeToString(), optimise=False)
    types = [v.type for v in (*running.get_inputs(), *running.get_outputs())]
    native = not any(t.startswith(("tensor(bfloat16", "tensor(float8", "tensor(float4")) for t in types)
    return run_arrays(running, feeds, [o.name for o in running.get_outputs()], bound=False, native=native)


def difference(got: Sequence[Any], expected: Sequence[Any]) -> str:
    """Why outputs are not those that were expected; empty if they are. Sequences are compared by element."""
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    for position, (new, old) in enumerate(zip(got, expected, strict=True)):
        if isinstance(new, list) is not isinstance(old, list):
            return f"output {position}: a {type(new).__name__} instead of a {type(old).__name__}"
        if isinstance(old, list):
            reason = difference(new, old)
        elif isinstance(old, np.ndarray | np.generic):
            reason = _array_difference(np.asarray(new), np.asarray(old))
        else:
            reason = "" if new == old else f"{new!r} instead of {old!r}"
        if reason:
            return f"output {position}: {reason}"
    return ""


def _array_difference(new: Array, old: Array) -> str:
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        return f"{new.dtype}{list(new.shape)} instead of {old.dtype}{list(old.shape)}"
    if old.dtype.name not in UNITS:
        return "" if np.array_equal(new, old) else "differs"
    new, old = new.astype(np.float64), old.astype(np.float64)
    close = np.isclose(new, old, rtol=max(RTOL, UNITS[old.dtype.name]), atol=ATOL, equal_nan=True)
    return "" if close.all() else f"{new[~close][0]} instead of {old[~close][0]} at {int((~close).sum())} places"


def losses(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """What a caller could see of the original and cannot see of the result."""
    found = [
        name
        for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
        if getattr(before, name) != getattr(after, name)
    ]
    kept = _props(before) <= _props(after) and _props(before.graph) <= _props(after.graph)
    if not kept:
        found.append("metadata")
    if before.graph.name != after.graph.name or before.graph.doc_string != after.graph.doc_string:
        found.append("graph name or doc string")
    if _opsets(before) != _opsets(after):
        found.append("opset imports")
    stored = {t.name for t in (*before.graph.initializer, *after.graph.initializer)}
    interfaces = [_interface(m.graph, stored if m.ir_version < 4 else set()) for m in (before, after)]
    if interfaces[0] != interfaces[1]:
        found.append("inputs or outputs")
    return found


def _props(message: Any) -> set[tuple[str, str]]:
    return {(p.key, p.value) for p in message.metadata_props}


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}


def _interface(graph: onnx.GraphProto, weights: set[str]) -> list[tuple[str, str | None, int]]:
    """Names and kinds of inputs and outputs. Sizes may become known."""
    inputs = [i for i in graph.input if i.name not in weights]
    return [(v.name, v.type.WhichOneof("value"), v.type.tensor_type.elem_type) for v in (*inputs, *graph.output)]


def invalid(model: onnx.ModelProto, full: bool) -> str | None:
    """What the checker says against `model`, with or without shape inference."""
    try:
        onnx.checker.check_model(model, full_check=full)
    except Exception as error:  # the checker and inference raise errors of several modules
        return _told(error)
    return None


def nodes_of(model: onnx.ModelProto) -> int:
    return sum(node.op_type != "Constant" for node in model.graph.node)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def judged(tool: str, cases: Iterable[Case]) -> Iterable[Verdict]:
    return (judge(case, TOOLS[tool]) for case in cases)


def main(tool: str, first: str, step: str) -> None:
    # What a tool prints must not get between the lines of JSON.
    out, sys.stdout = sys.stdout, sys.stderr
    for verdict in judged(tool, islice(corpus(), int(first), None, int(step))):
        print(json.dumps(asdict(verdict)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
