"""Every op of the vocabulary, and every torch op that is read, with its corner cases on XLA.

    python -m benchmarks.xla_ops [--all]

The vocabulary, which ONNX models are read in, is compared with its meanings in float64; torch ops with torch. The table
has a row for each op: how XLA is told, and for how many cases it is right, within the bound of
`graphopt.backends.xla.bound`, or refused and why. Exit code 1 if a case is wrong.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.op_cases import CASES
from benchmarks.op_cases.runtimes import Case, meaning
from benchmarks.op_cases.torch_ops import CASES as TORCH_CASES
from benchmarks.op_cases.torch_ops import Case as TorchCase
from graphopt.backends.xla import kernels
from graphopt.backends.xla.arrays import run_once
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.calls import KERNELS, run_call
from graphopt.backends.xla.conformance import Conformance
from graphopt.backends.xla.function import taken_apart
from graphopt.backends.xla.torch_calls import VocabularyCall
from graphopt.ir.load import load_model
from graphopt.ir.weights import FLOATS, numpy_dtype

SIZED = {"reshape": (1,), "expand": (1,), "fill": (0,), "range": (0, 1, 2), "one_hot": (1,)}
"""Operands that say sizes. XLA needs to know them beforehand, so that these ops are tried both ways."""


@dataclass(frozen=True)
class Verdict:
    """What came of one case."""

    op: str
    case: str
    way: str
    """How XLA is told."""
    outcome: str
    """"right", "refused" or "wrong"."""
    reason: str = ""


# ---- the vocabulary ----------------------------------------------------------------------------------------


def vocabulary() -> list[Verdict]:
    """All cases, compiled together."""
    tried = [(case, SIZED.get(case.op, ())) for case in CASES]
    tried += [(case, ()) for case in CASES if any(i < len(case.operands) for i in SIZED.get(case.op, ()))]
    expected = [_expected(case) for case, _ in tried]
    arrays = [[None if x is None else np.asarray(x) for x in case.operands] for case, _ in tried]
    failures: dict[int, str] = {}

    def run(feeds: Sequence[Sequence[Any]]) -> list[list[Any]]:
        results: list[list[Any]] = []
        for number, ((case, known), own, fed) in enumerate(zip(tried, arrays, feeds, strict=True)):
            operands = [a if i in known else f for i, (a, f) in enumerate(zip(own, fed, strict=True))]
            try:
                results.append(run_call(case.op, operands, case.fields, [e.dtype.name for e in expected[number]]))
            except Exception as error:  # kernels raise whatever JAX does
                failures[number] = str(error)
                results.append([])
        return results

    found = run_once(run, arrays)
    return [
        _judged(case, known, failures.get(number), expected[number], found[number])
        for number, (case, known) in enumerate(tried)
    ]


def _expected(case: Case) -> list[Any]:
    """The meaning of `case` in the dtypes that its results have."""
    reals = [x.dtype.name for x in map(np.asarray, case.operands) if x.dtype.name in FLOATS]
    named = case.fields.get("dtype")
    real = named if named in FLOATS else (reals or ["float32"])[0]
    with np.errstate(over="ignore"):
        found = meaning(case.op, *case.operands, **case.fields)
        return [e.astype(numpy_dtype(real)) if e.dtype == np.float64 else e for e in found]


def _judged(case: Case, known: Sequence[int], failure: str | None, expected: list[Any], found: list[Any]) -> Verdict:
    way = "kernel" if case.op in KERNELS else "meaning"
    fields = ", ".join(f"{k}={v}" for k, v in case.fields.items())
    name = f"{fields}{'' if known or case.op not in SIZED else ' (sizes from the data)'}"
    if failure is not None:
        return Verdict(case.op, name, way, "refused", failure)
    pairs = [(e, np.asarray(f)) for e, f in zip(expected, found, strict=True)]
    reason = next((d for e, f in pairs if (d := _difference(e, f)) is not None), None)
    return Verdict(case.op, name, way, "right" if reason is None else "wrong", reason or "")


def _difference(expected: Any, found: Any) -> str | None:
    if expected.dtype != found.dtype:
        return f"{found.dtype}, expected {expected.dtype}"
    return difference(expected, found)


# ---- torch -------------------------------------------------------------------------------------------------


def _integers(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(0)).to(torch.int8)


X = torch.linspace(-3, 3, 24).reshape(4, 6)
EDGES: dict[str, TorchCase] = {
    "conv_transpose of 2 groups": TorchCase(
        "conv_transpose", lambda x, w: torch.conv_transpose2d(x, w, groups=2), (torch.ones(1, 4, 5, 5) * X[0, 0],
        torch.linspace(-1, 1, 144).reshape(4, 4, 3, 3))),
    "int8 products": TorchCase("_int_mm", torch._int_mm, (_integers(32, 64), _integers(64, 16))),
    "fake quantisation": TorchCase(
        "fake_quantize", lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -20, 20), (X,)),
    "int64 beyond int32": TorchCase("mul", lambda x: x * 3_000_000_000, (torch.arange(5),)),
    "float64": TorchCase("exp", lambda x: x.double().exp(), (X,)),
    "bfloat16": TorchCase("softmax", lambda x: x.bfloat16().softmax(-1), (X,)),
    "float16 products": TorchCase("matmul", lambda x: x.half() @ x.half().T, (X,)),
    "topk of equal numbers": TorchCase("topk", lambda x: x.round().topk(3, 1), (X,)),
    "empty": TorchCase("reduce_sum", lambda x: x[:0].sum(0), (X,)),
    "complex": TorchCase("fft", lambda x: torch.fft.fft(x).abs(), (X,)),
    "randn_like": TorchCase("randn_like", torch.randn_like, (X,)),
    "bernoulli": TorchCase("bernoulli", lambda x: torch.bernoulli(x.sigmoid()), (X,)),
    "dropout in training": TorchCase("dropout", lambda x: torch.dropout(x, 0.5, True), (X,)),
}  # fmt: skip
"""Where torchax, JAX or XLA are known to be wrong, to narrow, or to have nothing."""


class _All(torch.nn.Module):
    def __init__(self, cases: dict[str, TorchCase]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, inputs: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, Any]:
        return {name: case.run(*inputs[name]) for name, case in self.cases.items()}


def torch_ops() -> list[Verdict]:
    """All cases, exported and compiled together."""
    cases = {**TORCH_CASES, **EDGES}
    inputs = {name: case.inputs for name, case in cases.items()}
    module = _All(cases)
    original = load_model(module, example_inputs=(inputs,)).program()
    program, missing = taken_apart(original)
    conformance = Conformance()
    conformance.run(program, [t for case in cases.values() for t in case.inputs])
    reasons = {node.name: v.reason for v in conformance.verdicts() for node in v.nodes}
    counts = {name: len(torch.utils._pytree.tree_leaves(result)) for name, result in module(inputs).items()}
    before, after = _nodes_of(original, counts), _nodes_of(program, counts)
    return [_torch_verdict(name, case, before[name], after[name], missing, reasons) for name, case in cases.items()]


def _nodes_of(program: Any, counts: dict[str, int]) -> dict[str, list[torch.fx.Node]]:
    """The ops that each case's results are computed by."""
    (returned,) = program.graph.find_nodes(op="output")
    outputs: Iterator[Any] = iter(returned.args[0])
    found = {}
    for name, count in counts.items():
        pending = [next(outputs) for _ in range(count)]
        nodes: dict[torch.fx.Node, None] = {}
        while pending:
            node = pending.pop()
            if isinstance(node, torch.fx.Node) and node not in nodes:
                nodes[node] = None
                pending += node.all_input_nodes
        found[name] = [node for node in nodes if node.op == "call_function"]
    return found


def _torch_verdict(
    name: str, case: TorchCase, before: Sequence[Any], after: Sequence[Any], missing: set[Any], reasons: dict[str, Any]
) -> Verdict:
    ways = {_way(node.target) for node in after} | ({"taken apart by torch"} if len(after) > len(before) else set())
    order = ("taken apart by torch", "vocabulary", "own kernel", "torchax")
    way = next((w for w in order if w in ways), "none needed")
    if lacking := sorted({str(node.target) for node in after if node.target in missing}):
        return Verdict(case.op, name, "none", "refused", f"no kernel for {', '.join(lacking)}")
    if failed := [r for node in after if (r := reasons.get(node.name)) is not None]:
        outcome = "refused" if failed[0].startswith("fails in JAX") else "wrong"
        return Verdict(case.op, name, way, outcome, failed[0])
    return Verdict(case.op, name, way, "right")


def _way(target: Any) -> str:
    if isinstance(target, VocabularyCall):
        return "vocabulary"
    return "own kernel" if str(target) in kernels.OWN else "torchax" if kernels.kernel_of(target) else "none needed"


# ---- the table ---------------------------------------------------------------------------------------------


def table(title: str, verdicts: Sequence[Verdict]) -> Table:
    rows: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        rows[verdict.op].append(verdict)
    made = Table("op", "told by", "right", "refused", "wrong", "why", title=title)
    for op, own in sorted(rows.items()):
        counts = [str(sum(v.outcome == outcome for v in own) or "") for outcome in ("right", "refused", "wrong")]
        why = dict.fromkeys(f"{v.case}: {v.reason.splitlines()[0]}" for v in own if v.reason)
        made.add_row(op, ", ".join(sorted({v.way for v in own})), *counts, "\n".join(why))
    return made


def summary(verdicts: Sequence[Verdict]) -> str:
    outcomes = [v.outcome for v in verdicts]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("right", "refused", "wrong"))
    return f"{len({v.op for v in verdicts})} ops, {len(verdicts)} cases: {counts}"


PARTS: dict[str, Callable[[], list[Verdict]]] = {"vocabulary (ONNX models)": vocabulary, "torch": torch_ops}


def main(everything: Annotated[bool, typer.Option("--all", help="Ops that are right, too.")] = False) -> None:
    """Run every op on XLA and compare."""
    console = wide_console()
    failed = False
    for title, run in PARTS.items():
        verdicts = run()
        failed |= any(v.outcome == "wrong" for v in verdicts)
        odd = {v.op for v in verdicts if v.outcome != "right"}
        console.print(table(title, [v for v in verdicts if everything or v.op in odd]))
        console.print(f"{title}: {summary(verdicts)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
