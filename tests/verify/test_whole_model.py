"""The end-to-end check, and the bisection that names what broke a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch

import graphopt
from graphopt.ir.text import graph_text
from graphopt.pipeline.registry import passes as registered_passes
from graphopt.rewrite.contract import Evidence
from graphopt.tools.main import main
from graphopt.verify.bisect import first_bad
from graphopt.verify.verifier import MatchVerifier
from graphopt.verify.whole import WholeCheck, distance, judged

FACTORS = (2.0, 4.0, 0.5, 3.0, 8.0, 0.25, 5.0)
WRONG = "planted/mul-as-div#4"
"""The product with 3.0."""


@graphopt.rule(contract=graphopt.Rounding(), name="mul-as-div")
class MulAsDiv:
    """x * c is x / (1 / c). Planted: one constant is divided by as it is."""

    def pattern(self, op, x, c):
        return op.mul(x, graphopt.const(c))

    def rewrite(self, m, build):
        wrong = m.c.item() == 3.0
        return build.div(m.x, m.c if wrong else m.c.call("reciprocal"), like=m.out)


@dataclass(frozen=True)
class Planted(graphopt.RulePass):
    """Products become quotients, one of them a wrong one."""

    name: ClassVar[str] = "planted"

    def rules(self) -> Any:
        return [MulAsDiv]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    graphopt.register(Planted)
    yield
    registered_passes()._registered.pop("planted")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier of single applications that sees nothing."""
    monkeypatch.setattr(MatchVerifier, "verify", lambda self, change: Evidence("construction"))


def onnx_model() -> onnx.ModelProto:
    """sigmoid(x * c) once for each factor, one after the other."""
    lines, end = [], "x"
    for i, factor in enumerate(FACTORS):
        lines += [f"c{i} = Constant<value = float {{{factor}}}>()", f"p{i} = Mul({end}, c{i})", f"s{i} = Sigmoid(p{i})"]
        end = f"s{i}"
    text = "\n".join([*lines, f"y = Identity({end})"])
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[n,3] x) => (float[n,3] y) {{ {text} }}'
    )


class Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for factor in FACTORS:
            x = torch.sigmoid(x * factor)
        return x


SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "onnx": (onnx_model(), {}),
    "fx": (Chain(), {"example_inputs": torch.linspace(-1, 1, 6).reshape(2, 3)}),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    return SOURCES[request.param]


def statuses(result: Any) -> dict[str, str]:
    return {a.id: a.status for p in result.report.passes for a in p.applications}


@pytest.mark.parametrize("level", ["match", "model"])
def test_one_wrong_application_is_undone_and_all_others_are_kept(source, level: str):
    model, options = source
    found = statuses(graphopt.optimize(model, "planted", verify=level, **options))
    assert found == {f"planted/mul-as-div#{i + 1}": "kept" for i in range(len(FACTORS))} | {WRONG: "undone"}


def test_what_single_checks_do_not_see_is_found_by_the_whole_one_and_named(source, blind: None):
    model, options = source
    graphopt.optimize(model, "planted", verify="match", **options)
    with pytest.raises(graphopt.VerificationError) as caught:
        graphopt.optimize(model, "planted,clean-up", verify="model", **options)
    message = str(caught.value)
    for part in ("does not agree", "largest error", "allowed", WRONG, f"skip=[{WRONG!r}]", "repro=DIR"):
        assert part in message


def test_a_model_that_was_loaded_before_is_checked_against_what_it_was_and_stays_that(source, blind: None):
    given, options = source
    model = graphopt.load(given, **options)
    before = graph_text(model.main)
    with pytest.raises(graphopt.VerificationError, match=WRONG):
        graphopt.optimize(model, "planted,clean-up", verify="model")
    result = graphopt.optimize(model, "planted,clean-up", verify="model", skip=[WRONG])
    assert len(result.report.kept) >= len(FACTORS) - 1
    assert graph_text(model.main) == before


def test_skipping_the_culprit_passes(source, blind: None):
    model, options = source
    result = graphopt.optimize(model, "planted", verify="model", skip=[WRONG], **options)
    assert statuses(result)[WRONG] == "skipped"
    assert list(statuses(result).values()).count("kept") == len(FACTORS) - 1
    assert any(note.startswith("end to end: largest error") for note in result.report.notes)


def test_a_limit_below_the_culprit_passes(source, blind: None):
    model, options = source
    result = graphopt.optimize(model, "planted", verify="model", limit=3, **options)
    assert list(statuses(result).values()) == ["kept"] * 3
    with pytest.raises(graphopt.VerificationError, match=WRONG):
        graphopt.optimize(model, "planted", verify="model", limit=4, **options)


@pytest.mark.parametrize("level", ["structure", "off"])
def test_other_levels_do_not_look_at_numbers(source, level: str):
    model, options = source
    assert set(statuses(graphopt.optimize(model, "planted", verify=level, **options)).values()) == {"kept"}


@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_bisection_finds_every_place_in_logarithmic_time(total: int):
    for bad in range(1, total + 1):
        asked: list[int] = []
        assert first_bad(total, lambda k, bad=bad, asked=asked: asked.append(k) or k < bad) == bad
        assert len(asked) <= 1 + int(np.ceil(np.log2(total)))
    assert first_bad(total, lambda k: True) is None
    assert first_bad(0, lambda k: False) is None


# ---- what is left behind to reproduce ------------------------------------------------------------


def run(path: Path, *feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: f for i, f in zip(session.get_inputs(), feeds, strict=True)})


def test_a_repro_folder_shows_the_fault_by_itself(tmp_path: Path):
    result = graphopt.optimize(onnx_model(), "planted", repro=tmp_path)
    (undone,) = [a for p in result.report.passes for a in p.applications if a.status == "undone"]
    (folder,) = tmp_path.iterdir()
    assert undone.repro == str(folder)
    assert {p.name for p in folder.iterdir()} == {"before.onnx", "before.txt", "after.onnx", "after.txt", "repro.json"}
    about = json.loads((folder / "repro.json").read_text())
    assert (about["application"], about["pipeline"], about["storage"]) == (WRONG, "planted", "onnx")
    assert about["reason"] == undone.reason and about["contract"] == "rounding(factor=8)"
    x = np.ones((2, 3), np.float32)
    (before,), (after,) = (run(folder / f"{side}.onnx", x) for side in ("before", "after"))
    np.testing.assert_allclose(before, 3 * x)
    np.testing.assert_allclose(after, x / 3)
    assert "mul" in (folder / "before.txt").read_text() and "div" in (folder / "after.txt").read_text()


def test_a_repro_folder_that_cannot_be_written_does_not_hide_why_the_change_was_undone(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(graphopt.PipelineError, match="repro=.*: expected the path of a folder, got a file"):
        graphopt.optimize(onnx_model(), "planted", repro=tmp_path / "file")
    result = graphopt.optimize(onnx_model(), "planted", repro=tmp_path / "file" / "below")
    (undone,) = [a for p in result.report.passes for a in p.applications if a.status == "undone"]
    assert undone.repro is None
    assert undone.reason.startswith("in float64 the result changes by ")
    assert "what reproduces it cannot be written to " in undone.reason


def test_a_repro_folder_replays_with_the_same_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    graphopt.optimize(onnx_model(), "planted", repro=tmp_path)
    (folder,) = tmp_path.iterdir()
    about = json.loads((folder / "repro.json").read_text())
    with pytest.raises(SystemExit) as done:
        main(["run", str(folder / "before.onnx"), "-p", about["pipeline"], "--json"])
    assert done.value.code == 0
    (record,) = json.loads(capsys.readouterr().out)["passes"]
    (application,) = record["applications"]
    assert (application["status"], application["reason"]) == ("undone", about["reason"])


def test_a_repro_folder_of_a_torch_model_says_both_sides(tmp_path: Path):
    model, options = SOURCES["fx"]
    graphopt.optimize(model, "planted", repro=tmp_path, **options)
    (folder,) = tmp_path.iterdir()
    assert {p.name for p in folder.iterdir()} == {"before.txt", "after.txt", "repro.json"}
    assert json.loads((folder / "repro.json").read_text())["storage"] == "fx"


def test_nothing_is_left_behind_when_nothing_is_undone(tmp_path: Path):
    graphopt.optimize(onnx_model(), "clean-up", repro=tmp_path / "repros")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [-np.inf, np.nan, 1.0])
def test_an_infinity_is_no_other_infinity_and_not_nan(other: float):
    given, changed = (np.array([1.0, value], np.float32) for value in (np.inf, other))
    assert distance([given], [given]) == 0.0
    assert distance([given], [changed]) == distance([changed], [given]) == np.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_low_precision_leaves_room_for_rounding_and_not_for_anything(dtype: torch.dtype):
    """512 units of bfloat16 are four times the range of an output."""

    def scaled(factor: float) -> Any:
        layer = torch.nn.Linear(16, 16).to(dtype).requires_grad_(False)
        layer.weight.copy_(torch.eye(16) * factor), layer.bias.zero_()
        return graphopt.load(layer, example_inputs=torch.linspace(-1, 1, 32).reshape(2, 16).to(dtype))

    check = WholeCheck(scaled(1.0))
    assert check.compare(scaled(1.02)).ok
    assert not check.compare(scaled(1.25)).ok


@pytest.mark.parametrize(
    ("kind", "given"),
    [("seq", [np.ones((2, 3), np.float32), np.ones((1, 3), np.float32)]), ("optional", np.ones((2, 3), np.float32))],
)
def test_example_inputs_that_are_no_single_tensor(kind: str, given: Any) -> None:
    reader = "ConcatFromSequence <axis = 0>" if kind == "seq" else "OptionalGetElement"
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph ({kind}(float[N, 3]) x) => (float[M, 3] y) {{ a = {reader} (x) b = Identity (a) y = Relu (b) }}
    """)
    result = graphopt.optimize(model, "clean-up", verify="model", example_inputs={"x": given})
    assert result.report.notes[-1].startswith("end to end: largest error 0.0e+00")
    with pytest.raises(graphopt.ModelError, match="drawn for input 'x': it is not known to be a tensor of numbers"):
        graphopt.optimize(model, "clean-up", verify="model")


def test_outputs_that_are_sequences_of_different_sizes() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[3, 3] x) => (seq(float[M, 3]) y)
        <int64[2] sizes = {1, 2}> { a = Identity (x) y = SplitToSequence <axis = 0> (a, sizes) }
    """)
    result = graphopt.optimize(model, "clean-up", verify="model")
    assert result.report.notes[-1].startswith("end to end: largest error 0.0e+00")


class BesideIntegers(torch.nn.Module):
    """Integers that one unit of rounding changes, and numbers."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x * 1e9).long(), x * self.factor


def test_an_output_without_a_yardstick_is_left_out_and_the_others_are_judged():
    example = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    model, other, same = (graphopt.load(BesideIntegers(f), example_inputs=example) for f in (1.0, 2.0, 1.0))
    check = WholeCheck(model)
    assert check.allowed < 1e-3
    assert check.compare(same).ok and check.compare(same).unjudged == ()
    assert not check.compare(other).ok
    got = [check.expected[0] + 1, check.expected[1]]
    verdict = judged(check.expected, got, check.allowed, check.unstable)
    assert verdict.ok and verdict.unjudged == (0,) and "not judged: output 0" in str(verdict)
    assert not judged(check.expected, [got[0].astype(np.int32), got[1]], check.allowed, check.unstable).ok


def test_outputs_that_rounding_flips_are_named_if_they_differ() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[N, 64] x) => (float[N, 64] y, int64[N, 64] flips)
        <float many = {1000000.0}, float factor = {FACTOR}, float more = {MORE}>
        { y = Mul (x, factor) z = Mul (x, many) s = Add (z, more) r = Floor (s) flips = Cast <to = 7> (r) }
    """
    given, wrong, other = (
        graphopt.load(onnx.parser.parse_model(text.replace("FACTOR", f).replace("MORE", m)))
        for f, m in (("1.0", "0.0"), ("2.0", "0.0"), ("1.0", "1000.0"))
    )
    check = WholeCheck(given)
    assert np.isfinite(check.allowed) and check.compare(given).ok
    assert not check.compare(wrong).ok
    assert check.compare(other).ok and "not judged: output 1" in str(check.compare(other))


def test_nan_throughout_is_no_agreement_to_speak_of() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Sqrt (x) z = Relu (x) }
    """)
    given = graphopt.load(model)
    for x, unjudged in ((np.full((2, 4), np.nan, np.float32), (0, 1)), (-np.ones((2, 4), np.float32), (0,))):
        verdict = WholeCheck(given, feeds=[x]).compare(given)
        assert verdict.ok and verdict.unjudged == unjudged
    assert WholeCheck(given, feeds=[np.zeros((0, 4), np.float32)]).compare(given).unjudged == ()
