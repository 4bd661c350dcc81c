"""Equal scores of a router: with ties=torch those experts are chosen that torch.topk chooses on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from moe_blocks import BLOCKS, WIDTH, error, lowered, tokens

import graphopt
from graphopt.passes.lower_moe import ties_write, torch_ties
from graphopt.passes.lower_moe.ties import can_differ, text_of

SIZES = (
    (2, 1), (3, 2), (4, 2), (8, 2), (8, 8), (16, 1), (60, 4), (64, 1), (64, 6), (64, 8), (128, 2), (128, 8), (256, 4),
)  # fmt: skip
"""n experts and the k of them that are chosen; torch makes a heap of all where 64 k <= n."""
CLOSE = 1e-5


def tied(size: int, count: int, seed: int = 0) -> Any:
    """Rows of few different scores, some of them sorted."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, size + 1, count)
    rows = np.stack([rng.integers(0, level, size) for level in levels]).astype(np.float32)
    rows[::5].sort(axis=1)
    rows[1::5] = -np.sort(-rows[1::5], axis=1)
    return rows


class Undecided:
    """A score that is decided when it is compared, as late and as badly as can be (McIlroy, "A killer adversary for
    quicksort", 1999)."""

    def __init__(self, game: Game, place: int) -> None:
        self.game, self.place = game, place

    def __gt__(self, other: Undecided) -> bool:
        return self.game.is_greater(self.place, other.place)


class Game:
    def __init__(self, size: int) -> None:
        self.scores: list[float | None] = [None] * size
        self.decided = 0
        self.candidate = -1

    def is_greater(self, x: int, y: int) -> bool:
        if self.scores[x] is None and self.scores[y] is None:
            self.scores[x if x == self.candidate else y] = self.decided
            self.decided += 1
        undecided = [place for place in (x, y) if self.scores[place] is None]
        self.candidate = undecided[0] if undecided else self.candidate
        a, b = (np.inf if self.scores[place] is None else self.scores[place] for place in (x, y))
        return bool(a > b)


def killers(size: int, k: int, count: int) -> Any:
    """Rows that every partition splits as unevenly as can be, some neighbours in them made equal."""
    game = Game(size)
    torch_ties.chosen([Undecided(game, place) for place in range(size)], k)  # type: ignore[misc]
    scores = np.array([size if s is None else s for s in game.scores], np.float32)
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        least, width = size - k + rng.integers(-3, 3), rng.integers(1, 6)
        rows.append(np.where(abs(scores - least) <= width, least, scores))
    return np.stack(rows).astype(np.float32)


def by_torch(rows: Any, k: int) -> Any:
    return torch.topk(torch.from_numpy(rows), k).indices.numpy()


@pytest.mark.parametrize(("size", "k"), SIZES)
def test_the_algorithm_is_torchs(size: int, k: int) -> None:
    rows = tied(size, 800)
    found = [torch_ties.chosen(row.tolist(), k) for row in rows]
    assert found == [{*row.tolist()} for row in by_torch(rows, k)]
    firsts = np.sort(np.argsort(-rows, axis=1, kind="stable")[:, :k])
    assert can_differ(size, k) == bool((firsts != np.sort(by_torch(rows, k))).any())


def session_of(size: int, k: int, opset: int) -> onnxruntime.InferenceSession:
    graph = onnx.parser.parse_graph(text_of(size, k, "float"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString())


def written(session: onnxruntime.InferenceSession, rows: Any, k: int) -> Any:
    first = np.argsort(-rows, axis=1, kind="stable")[:, : k + 1]
    feeds = {"scores": rows, "numbers": first, "tied": np.ones((len(rows), 1), bool)}
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("opset", (13, 18, 21))
@pytest.mark.parametrize(("size", "k"), [s for s in SIZES if can_differ(*s)])
def test_what_is_written_chooses_as_torch(size: int, k: int, opset: int) -> None:
    rows = tied(size, 100 if size > 64 else 400, seed=1)
    found = written(session_of(size, k, opset), rows, k)
    assert np.array_equal(np.sort(found), np.sort(by_torch(rows, k)))
    scores = np.take_along_axis(rows, found, axis=1)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize(("size", "k"), ((32, 8), (64, 6), (64, 40), (128, 8)))
def test_rows_that_no_partition_splits_well_are_chosen_from_as_torch_does(size: int, k: int) -> None:
    rows = killers(size, k, 200)
    heaps = 0
    original = torch_ties._select_by_heap

    def counted(*given: Any) -> None:
        nonlocal heaps
        heaps += 1
        original(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_ties, "_select_by_heap", counted)
        found = [torch_ties.chosen(row.tolist(), k) for row in rows]
    expected = by_torch(rows, k)
    assert heaps > 10
    assert found == [{*row.tolist()} for row in expected]
    assert np.array_equal(np.sort(written(session_of(size, k, 18), rows, k)), np.sort(expected))


# ---- whole blocks ------------------------------------------------------------------------------------------


def with_ties(name: str) -> Any:
    """A block in whose router pairs of experts have the same weights."""
    block = BLOCKS[name]("batched_mm")
    with torch.no_grad():
        block.gate.weight[1::2] = block.gate.weight[::2] = torch.round(block.gate.weight[::2] * 2) / 2
    return block


@pytest.mark.parametrize("name", BLOCKS)
def test_experts_are_those_that_torch_chooses(name: str) -> None:
    block = with_ties(name)
    _, run = lowered(block, 7, dynamic=True)
    assert "lower-moe/torch-ties#1 kept" in run.notes
    assert any("torch.topk chooses on a CPU" in note for note in run.notes)
    for count in (1, 7, 64, 1024):
        assert error(block, run, torch.round(tokens(count))) < CLOSE
    nothing = torch.zeros(1, 5, WIDTH)
    assert torch.equal(run(nothing), block(nothing))


def test_the_first_of_equals_are_others_and_that_is_noted() -> None:
    block = with_ties("mixtral")
    shapes = ({1: torch.export.Dim("tokens", min=1, max=4096)},)
    model = torch.onnx.export(block, (tokens(7),), dynamo=True, verbose=False, dynamic_shapes=shapes).model_proto
    x = torch.round(tokens(64))
    errors = {}
    for ties in ("first", "torch"):
        result = graphopt.optimize(model, f"lower-moe{{ties={ties}}}", target="onnxruntime")
        run = result.lower()
        with torch.no_grad():
            expected = block(x).numpy()
        errors[ties] = float(np.abs(run(x.numpy()) - expected).max() / np.abs(expected).max())
        told = "of equal scores the first is chosen; torch.topk may choose another, as does ties=torch"
        assert (told in result.report.passes[0].notes) == (ties == "first")
    assert errors["torch"] < CLOSE < 1e-2 < errors["first"]


def routed(experts: int = 8, k: int = 2, scores: str = "float") -> onnx.ModelProto:
    """Tokens [N, 4] and their scores; each is multiplied by the k matrices that it picks, and these are added up."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        experts (float[N, 4] x, {scores}[N, {experts}] s) => (float[N, 4] y)
        <float[{experts}, 4, 4] w = {{{", ".join(["0"] * experts * 16)}}}, int64[1] k = {{{k}}}, int64[1] rest = {{-1}},
         int64[1] one = {{1}}, int64[3] often = {{1, {k}, 1}}, int64[3] row = {{-1, 1, 4}},
         int64[3] split = {{-1, {k}, 4}}, int64[R] each, float[R, 1, 4] rows>
        {{
            best, ids = TopK (s, k)
            each = Reshape (ids, rest)
            matrices = Gather (w, each)
            column = Unsqueeze (x, one)
            repeated = Tile (column, often)
            rows = Reshape (repeated, row)
            made = MatMul (rows, matrices)
            by_choice = Reshape (made, split)
            y = ReduceSum <keepdims = 0> (by_choice, one)
        }}""")
    weights = np.random.default_rng(0).standard_normal((experts, 4, 4)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w"))
    return model


def expected_of(model: onnx.ModelProto, x: Any, scores: Any, k: int) -> Any:
    weights = torch.from_numpy(onnx.numpy_helper.to_array(model.graph.initializer[0]).copy())
    ids = torch.topk(torch.from_numpy(scores), k).indices
    return torch.einsum("ni,nkio->no", torch.from_numpy(x), weights[ids]).numpy()


def test_any_number_of_tokens_runs_and_the_branch_only_where_there_are_ties(tmp_path: Path) -> None:
    model = routed(64, 6)
    result = graphopt.optimize(model, "lower-moe{ties=torch}", target="onnxruntime")
    assert {"lower-moe/picked-experts#1", "lower-moe/torch-ties#1"} <= {a.id for a in result.report.kept}
    rng = np.random.default_rng(0)

    def executed(scores: Any) -> set[str]:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "run")
        session = onnxruntime.InferenceSession(result.model.SerializeToString(), options)
        x = rng.standard_normal((len(scores), 4)).astype(np.float32)
        (found,) = session.run(None, {"x": x, "s": scores})
        expected = expected_of(model, x, scores, 6)
        assert found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=1e-4)
        events = json.loads(Path(session.end_profiling()).read_text())
        return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}

    assert "TopK" in executed(np.zeros((0, 64), np.float32))
    assert "Compress" not in executed(rng.standard_normal((50, 64)).astype(np.float32))
    assert "Compress" in executed(tied(64, 50))


def statuses(result: Any) -> dict[str, str]:
    return {a.rule: a.status for a in result.report.applications}


def test_scores_that_are_not_said_are_left_to_onnx_with_the_reason() -> None:
    result = graphopt.optimize(routed(scores="float16"), "lower-moe{ties=torch}", target="onnxruntime")
    assert "torch-ties" not in statuses(result)
    assert any("not as in torch: scores of float16" in note for note in result.report.passes[0].notes)


@pytest.mark.parametrize(("experts", "k"), ((4, 4), (64, 1)))
def test_nothing_is_written_where_torch_chooses_the_first_as_well(experts: int, k: int) -> None:
    result = graphopt.optimize(routed(experts, k), "lower-moe{ties=torch form=sorted}", target="onnxruntime")
    assert statuses(result)["picked-experts"] == "kept" and "torch-ties" not in statuses(result)


PLANTED: Sequence[tuple[str, str]] = (
    ("is_right = Less (cut, k)", "is_right = Less (k, cut)"),
    ("not_below = Not (is_below)", "not_below = Greater (w, pivot)"),
    ("c_or_b = Where (b_c, c, b)", "c_or_b = Where (b_c, b, c)"),
    ("goes_left = And (from_right, has_left)", "goes_left = And (from_right, is_below)"),
    ("picked = GatherElements <axis = 1> (order_p, best)", "picked = Identity (best)"),
)


@pytest.mark.parametrize(("right", "wrong"), PLANTED)
def test_a_wrong_choice_is_undone(right: str, wrong: str) -> None:
    def planted(size: int, k: int, dtype: str) -> str:
        text = text_of(size, k, dtype)
        assert right in text
        return text.replace(right, wrong)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ties_write, "text_of", planted)
        result = graphopt.optimize(routed(), "lower-moe{ties=torch}", target="onnxruntime")
    found = statuses(result)
    assert found["picked-experts"] == "kept" and found["torch-ties"] == "undone"
    x, scores = np.ones((5, 4), np.float32), np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert np.allclose(result.lower()(x, scores), expected_of(routed(), x, scores, 2), atol=1e-5)
