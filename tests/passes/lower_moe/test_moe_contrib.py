"""com.microsoft::MoE becomes nodes of the standard that compute what onnxruntime's kernel does, or is refused by
name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contrib_models import SWIGLU, WIDE, in_float64, mixture, run, weights

import graphopt
from graphopt.ir.text import model_text

CLOSE = 1e-5
VARIANTS: dict[str, dict[str, Any]] = {
    "relu": {"k": 2},
    "silu": {"k": 1, "activation_type": "silu"},
    "gelu": {"k": 3, "activation_type": "gelu", "normalize_routing_weights": 1},
    "identity": {"k": 2, "activation_type": "identity", "activation_alpha": 3.0},
    "swiglu": {"k": 2, "activation_type": "swiglu", "swiglu_fusion": 1, "normalize_routing_weights": 1},
    "swiglu with parameters": {"k": 4, **SWIGLU},
}


def data(count: int, *, batch: bool = False) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(2, count, WIDE) if batch else (count, WIDE)).astype(np.float32)


def lowered(model: Any, form: str = "auto") -> Any:
    result = graphopt.optimize(model, f"lower-moe{{form={form}}}", target="onnxruntime")
    assert not result.report.undone, [a.reason for a in result.report.undone]
    return result


def agree(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= CLOSE * np.abs(b).max())


@pytest.mark.parametrize("form", ("sorted", "dense"))
@pytest.mark.parametrize("name", VARIANTS)
def test_each_activation_is_what_the_kernel_and_float64_compute(name: str, form: str) -> None:
    attributes = VARIANTS[name]
    stored = weights(8, 2 if "swiglu" in name else 1, biased=name != "gelu")
    model = mixture(stored, **attributes)
    result = lowered(model, form)
    assert [a.rule for a in result.report.kept] == ["contrib-experts"]
    assert ("Split" in {n.op_type for n in result.model.graph.node if len(n.output) > 2}) == (form == "sorted")
    for count in (1, 7, 64):
        x = data(count)
        found = run(result.model, x)
        assert agree(found, run(model, x)) and agree(found, in_float64(stored, x, **attributes))


@pytest.mark.parametrize("tokens", ("tokens", 5))
def test_tokens_of_a_batch_are_rows(tokens: int | str) -> None:
    stored = weights(8)
    model = mixture(stored, batch=True, tokens=tokens, k=2)
    result = lowered(model)
    assert [a.rule for a in result.report.kept] == ["contrib-rows", "contrib-experts"]
    x = data(5, batch=True)
    assert agree(run(result.model, x), run(model, x)) and agree(run(result.model, x), in_float64(stored, x, k=2))


def test_of_equal_scores_the_kernel_takes_the_last_and_so_does_what_is_written() -> None:
    stored = weights(8)
    stored["router"][:, 1::2] = stored["router"][:, ::2]  # each score is there twice
    model = mixture(stored, k=1)
    for form in ("sorted", "dense"):
        x = data(64)
        assert agree(run(lowered(model, form).model, x), in_float64(stored, x, k=1))
        assert agree(run(model, x), in_float64(stored, x, k=1))


def test_gates_that_vanish_add_nothing() -> None:
    """Scores that differ by hundreds leave gates of zero, and what their experts compute overflows. Verified for any
    scores, such a model is left alone: float32 cannot say what float64 can."""
    stored = weights(8)
    stored["router"] *= 400
    stored["w1"][:4] *= 1e30
    stored["w2"][:4] *= 1e30
    model = mixture(stored, k=3)
    x = data(64)
    assert graphopt.optimize(model, "lower-moe", target="onnxruntime").report.undone
    result = graphopt.optimize(model, "lower-moe", target="onnxruntime", verify="off")
    before, after = run(model, x), run(result.model, x)
    assert np.array_equal(np.isfinite(before), np.isfinite(after))
    assert np.isfinite(before).all(1).any() and not np.isfinite(before).all()


def test_all_experts_of_each_token_are_computed_for_all() -> None:
    result = lowered(mixture(weights(6), k=5))
    assert "Split" not in {n.op_type for n in result.model.graph.node}
    (note,) = result.report.passes[0].notes
    assert "form dense: 5 of 6 experts a token, 1.2 times less work than all" in note


def test_weights_are_stored_once() -> None:
    stored = weights(64)
    result = lowered(mixture(stored, k=2))
    sizes = sum(int(np.prod(t.dims)) for t in result.model.graph.initializer)
    assert sizes < sum(a.size for a in stored.values()) + 200 and "moe(" not in model_text(graphopt.load(result.model))


@pytest.mark.parametrize("wrong", (0, 13, 31))
def test_every_weight_of_every_expert_is_compared(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.lower_moe.stacks import Stack

    original = Stack.of

    def swapped(stack: Stack, expert: int, *, transposed: bool = False) -> Any:
        return original(stack, (expert + (expert == wrong)) % stack.experts, transposed=transposed)

    monkeypatch.setattr(Stack, "of", swapped)
    report = graphopt.optimize(mixture(weights(32), tokens=2, k=1), "lower-moe", target="onnxruntime").report
    assert [a.status for a in report.applications] == ["undone"]


REFUSED = {
    "operand 6 or a third product (fc3)": ({"more": ("w1",)}, "fc3"),
    "sparse mixer": ({"use_sparse_mixer": 1}, "use_sparse_mixer is 1"),
    "halves one after the other": ({"activation_type": "swiglu", "swiglu_fusion": 2}, "take turns"),
    "halves as two products": ({"activation_type": "swiglu"}, "take turns"),
    "unknown activation": ({"activation_type": "mish"}, "activation 'mish'"),
    "computed weights": ({"given": ("w1",)}, "w1 is not constant"),
    "quantized": ({"op": "QMoE"}, "QMoE"),
    "old opset": ({"opset": 11}, "needs opset 13"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name: str) -> None:
    changed, reason = REFUSED[name]
    model = mixture(weights(8, 2 if "activation_type" in changed else 1), **{"k": 2, **changed})
    report = graphopt.optimize(model, "lower-moe", target="onnxruntime").report
    assert not report.applications and any(reason in note for note in report.passes[0].notes), report.passes[0].notes


def test_weights_of_another_layout_are_refused() -> None:
    stored = weights(8)
    stored["w1"] = stored["w1"].transpose(0, 2, 1).copy()  # taken, and read as [out, in] all the same
    report = graphopt.optimize(mixture(stored, k=2), "lower-moe", target="onnxruntime").report
    assert not report.applications and "[experts, out, in]" in report.passes[0].notes[0]
