"""Equal scores of a router: whether those are chosen that torch.topk chooses on a CPU, and what that costs.

    python -m benchmarks.moe_ties [--rows N] [--rounds N]

First table: rows of heavily tied scores; in how many the algorithm of `torch_ties` chooses as torch does, and in how
many the first of equals would be others; microseconds of what is written in ONNX, for a row where all of 1024 are tied
and for one row alone. Second: a block of experts (plain ones of benchmarks.moe) without ties, processor time of one
thread with ties=torch over that with ties=first, the median of rounds in which both take turns.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch
import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from benchmarks.moe_ways import WIDTH, model_of
from graphopt.passes.lower_moe.ties import can_differ, text_of
from graphopt.passes.lower_moe.torch_ties import chosen

PAIRS = (
    (4, 2), (8, 2), (8, 8), (16, 1), (16, 4), (60, 4), (64, 1), (64, 6), (64, 8), (128, 2), (128, 8), (160, 6),
    (256, 8),
)  # fmt: skip
"""Experts, and how many are chosen."""


def tied(size: int, count: int) -> Any:
    """Rows of few different scores; of each five one rising and one falling."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, level, size) for level in rng.integers(1, size + 1, count)]).astype(np.float32)
    rows[::5].sort(axis=1)
    rows[1::5] = -np.sort(-rows[1::5], axis=1)
    return rows


def session_of(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def spent(session: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> float:
    started = time.process_time()
    session.run(None, feeds)
    return time.process_time() - started


def microseconds(size: int, k: int, rows: Any) -> tuple[float, float]:
    """Of one of the rows, where all are tied, and of the first alone."""
    graph = onnx.parser.parse_graph(text_of(size, k, "float"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    session = session_of(model)
    found = []
    for count in (len(rows), 1):
        numbers = np.argsort(-rows[:count], axis=1, kind="stable")[:, : k + 1]
        feeds = {"scores": rows[:count], "numbers": numbers, "tied": np.ones((count, 1), bool)}
        session.run(None, feeds)
        found.append(1e6 / count * statistics.median(spent(session, feeds) for _ in range(9)))
    return found[0], found[1]


def ratio(experts: int, tokens: int, rounds: int) -> float:
    model = model_of("copies", "plain", experts, tokens)
    sessions = []
    for ties in ("first", "torch"):
        result: Any = graphopt.optimize(model, f"lower-moe{{ties={ties}}}", target="onnxruntime")
        sessions.append(session_of(ir.to_proto(result.model)))
    x = np.random.default_rng(0).standard_normal((1, tokens, WIDTH)).astype(np.float32)
    feeds = {sessions[0].get_inputs()[0].name: x}
    times = [[spent(session, feeds) for session in sessions] for _ in range(rounds + 2)]
    return statistics.median(torch_ / first for first, torch_ in times[2:])


def main(
    rows: Annotated[int, typer.Option(help="Rows of scores for each pair.")] = 10_000,
    rounds: Annotated[int, typer.Option(help="Rounds in which both take turns.")] = 31,
) -> None:
    """Print both tables."""
    table = Table("experts", "chosen", "as torch", "first is not", "µs, one of 1024", "µs, one alone")
    for size, k in PAIRS:
        scores = tied(size, rows)
        ids = torch.topk(torch.from_numpy(scores), k).indices.numpy()
        firsts = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k])
        same = sum(chosen(row.tolist(), k) == {*i.tolist()} for row, i in zip(scores, ids, strict=True))
        others = int((firsts != np.sort(ids)).any(axis=1).sum())
        cost = [f"{c:.3g}" for c in microseconds(size, k, scores[:1024])] if can_differ(size, k) else ["-", "-"]
        table.add_row(str(size), str(k), f"{same} of {rows}", str(others), *cost)
    wide_console().print(table)
    table = Table("experts", "tokens", "ties=torch / ties=first, no ties")
    for experts in (8, 64):
        for tokens in (1, 64, 1024):
            table.add_row(str(experts), str(tokens), f"{ratio(experts, tokens, rounds):.3f}")
    wide_console().print(table)


if __name__ == "__main__":
    typer.run(main)
