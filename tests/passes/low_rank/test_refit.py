"""Factors are refitted to what the split model feeds them: in closed form, as measured, and only if it is better."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from low_rank_layers import INFINITE
from test_low_rank import batches, exported, feed_forward, low_rank, notes
from torch import nn

import graphopt
from graphopt.ir.weights import Array, ArrayRef
from graphopt.passes.low_rank import refit, rules
from graphopt.passes.low_rank.candidates import chains
from graphopt.passes.low_rank.directions import Inputs
from graphopt.passes.low_rank.kernels import product_of
from graphopt.passes.low_rank.refit import Regression, best_weight, reduced_rank
from graphopt.verify.approximation import ModelApproximation

SHAPES = [(12, 7), (7, 12), (9, 9)]


# ---- the closed form -----------------------------------------------------------------------------------------


def drawn(shape: tuple[int, int], rows: int = 200, seed: int = 0) -> tuple[Array, Array, Array]:
    """X', X = X' and an error of it, and W."""
    draw = np.random.default_rng(seed).standard_normal
    changed = draw((rows, shape[0])) @ draw((shape[0], shape[0]))
    return changed, changed + draw((rows, shape[0])), np.random.default_rng(7).standard_normal(shape)


def regression(changed: Array, plain: Array, weight: Array) -> Regression:
    found = Regression(weight)
    found.add(changed, plain, 1.0)
    return found


def halved(changed: Array, plain: Array, weight: Array) -> tuple[Regression, Regression]:
    half = len(changed) // 2
    return regression(changed[:half], plain[:half], weight), regression(changed[half:], plain[half:], weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_ridge_the_best_weight_is_least_squares(shape: tuple[int, int]) -> None:
    changed, plain, weight = drawn(shape)
    best = regression(changed, plain, weight).best(0.0)
    assert np.allclose(best, np.linalg.lstsq(changed, plain @ weight, rcond=None)[0], atol=1e-9)


@pytest.mark.parametrize("ridge", [0.1, 30.0])
def test_a_ridge_holds_the_best_weight_to_the_weight(ridge: float) -> None:
    changed, plain, weight = drawn((12, 7), rows=8)
    root = np.sqrt(ridge) * np.eye(12)
    rows, wanted = np.vstack([changed, root]), np.vstack([plain @ weight, root @ weight])
    best = regression(changed, plain, weight).best(ridge)
    assert np.allclose(best, np.linalg.lstsq(rows, wanted, rcond=None)[0], atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_factors_of_that_rank_fit_better(shape: tuple[int, int], rank: int) -> None:
    changed, plain, weight = drawn(shape)
    known, out = regression(changed, plain, weight), plain @ weight
    first, second = reduced_rank(known.best(0.0), known.gram, rank)
    assert first.shape == (shape[0], rank) and second.shape == (rank, shape[1])
    found = float(np.sum(np.square(out - changed @ first @ second)))
    # What no X' M explains, and the singular values of what the best dense M explains.
    fitted = changed @ np.linalg.lstsq(changed, out, rcond=None)[0]
    left = np.sum(np.square(out - fitted)) + np.sum(np.square(np.linalg.svd(fitted, compute_uv=False)[rank:]))
    assert found == pytest.approx(left, rel=1e-9)
    # By brute force: each factor fitted in turn to the other, from anywhere, gets there and no further.
    other = np.random.default_rng(9).standard_normal((rank, shape[1]))
    for _ in range(3000):
        one = np.linalg.lstsq(changed, out @ np.linalg.pinv(other), rcond=None)[0]
        other = np.linalg.lstsq(changed @ one, out, rcond=None)[0]
    assert found == pytest.approx(float(np.sum(np.square(out - changed @ one @ other))), rel=1e-6)


@pytest.mark.parametrize("rank", [2, 7])
def test_the_error_is_that_of_the_outputs(rank: int) -> None:
    changed, plain, weight = drawn((12, 7))
    known = regression(changed, plain, weight)
    for product in (np.zeros_like(weight), weight, np.matmul(*reduced_rank(known.best(0.0), known.gram, rank))):
        wanted = np.sum(np.square(plain @ weight - changed @ product)) / np.sum(np.square(plain @ weight))
        assert known.error(product) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_at_full_rank_and_with_equal_inputs_a_refit_is_the_weight(shape: tuple[int, int], rows: int) -> None:
    _, plain, weight = drawn(shape, rows)
    one, other = halved(plain, plain, weight)
    gram = (one + other).gram + 1e-6 * np.eye(shape[0])
    first, second = reduced_rank(best_weight(one, other), gram, min(shape))
    assert np.abs(first @ second - weight).max() < 1e-5 * np.abs(weight).max()


def test_one_row_corrects_nothing() -> None:
    changed, plain, weight = drawn((12, 7), rows=1)
    assert np.array_equal(best_weight(*halved(changed, plain, weight)), weight)


@pytest.mark.parametrize("rows", [2, 8, 16, 24, 60, 1000])
def test_little_data_does_no_harm_and_much_helps(rows: int) -> None:
    weight = drawn((12, 7))[2]
    mixing = np.random.default_rng(1).standard_normal((12, 12))
    kept, least_squares = [], []
    for seed in range(10):
        draw = np.random.default_rng(seed).standard_normal
        truth, few = (
            (x @ mixing, x @ mixing + 0.7 * x + draw(x.shape)) for x in (draw((20_000, 12)), draw((rows, 12)))
        )
        known = regression(*truth, weight)
        for lefts, best in (
            (kept, best_weight(*halved(*few, weight))), (least_squares, regression(*few, weight).best(1e-9))
        ):
            lefts.append(known.left(best) / known.left(weight))
    assert np.mean(kept) <= (0.7 if rows == 1000 else 1.0) and max(kept) < 1.05
    assert rows > 24 or np.mean(least_squares) > 1.2


def test_errors_without_a_pattern_leave_the_weight_nearly_what_it_is() -> None:
    draw, weight = np.random.default_rng(3).standard_normal, drawn((12, 7))[2]
    changed = draw((40, 12))
    found = best_weight(*halved(changed, changed + draw((40, 12)), weight))
    assert np.linalg.norm(found - weight) < 0.2 * np.linalg.norm(weight)


def test_batches_count_by_their_weights() -> None:
    (one, two), weight = (drawn((9, 9), seed=seed)[:2] for seed in (1, 2)), drawn((9, 9))[2]
    by_weight, twice = Regression(weight), Regression(weight)
    for inputs, times in ((one, 1), (two, 2)):
        by_weight.add(*inputs, float(times))
        for _ in range(times):
            twice.add(*inputs, 1.0)
    assert np.allclose(by_weight.gram, twice.gram) and np.allclose(by_weight.cross, twice.cross)
    for number in ("size", "rows", "fourth"):
        assert getattr(by_weight, number) == pytest.approx(getattr(twice, number))


@pytest.mark.parametrize("kind", ["spatial", "tucker"])
def test_a_chain_of_kernels_is_its_product(kind: str) -> None:
    draw = np.random.default_rng(5).standard_normal
    shapes = {"spatial": [(4, 6, 3, 1), (5, 4, 1, 3)], "tucker": [(4, 6, 1, 1), (3, 4, 3, 3), (5, 3, 1, 1)]}
    factors, x = tuple(draw(s) for s in shapes[kind]), torch.from_numpy(draw((2, 6, 8, 8)))
    given = x
    for factor in factors:
        given = nn.functional.conv2d(given, torch.from_numpy(factor))
    kernel = torch.from_numpy(product_of(factors).T.reshape(5, 6, 3, 3).copy())
    assert torch.allclose(given, nn.functional.conv2d(x, kernel), atol=1e-12)


@pytest.mark.parametrize("kind", [rules.SplitSpatial, rules.SplitTucker])
def test_the_last_factor_of_kernels_is_least_squares(kind: type[rules.Split]) -> None:
    changed, plain, weight = drawn((54, 10), rows=400)
    known = regression(changed, plain, weight)
    ranks = (4,) if kind is rules.SplitSpatial else (4, 3)
    kernel = known.best(0.0).T.reshape(10, 6, 3, 3)
    factors = chains(kind, kernel, Inputs(known.gram, known.gram), whiten=True)(ranks).factors
    found, rng = known.error(product_of(factors)), np.random.default_rng(1)
    for _ in range(20):  # no other last factor leaves less
        other = (*factors[:-1], factors[-1] + 1e-3 * rng.standard_normal(factors[-1].shape))
        assert known.error(product_of(other)) > found


# ---- models --------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Two convolutions with something between them that is not linear, and a way around."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(16, 24, 3, padding=1)
        self.two = nn.Conv2d(24, 16, 3, stride=2, bias=False)
        self.around = nn.Conv2d(16, 16, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x))) + self.around(x)


class Heads(nn.Module):
    """Matrices between which a tensor is reshaped and scaled by a size of the input, and taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(32, 64)
        self.out = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        gate, value = self.both(x).reshape(rows, 2, 32).split(1, dim=1)
        return self.out((torch.relu(gate + value) * rows).reshape(rows, 32))


def images(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    scale = torch.linspace(0.1, 2.0, 16)[:, None, None]
    return [torch.randn(3, 16, 10, 10, generator=generator) * scale for _ in range(count)]


def plenty() -> list[torch.Tensor]:
    """Data enough to tell what errors of a layer follow from its inputs."""
    return batches(rows=400)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def printed(result: Any) -> list[tuple[float, float]]:
    """Predicted and measured error of every layer that was refitted."""
    pattern = r"refitted to the split model, cost [\d.]+, predicted error ([-\d.e]+), measured ([-\d.e]+)"
    return [(float(a), float(b)) for a, b in re.findall(pattern, notes(result))]


def of_onnx(module: nn.Module, spec: str, data: list[torch.Tensor], budget: Any = INFINITE) -> Any:
    model = exported(module, data[0])
    return graphopt.optimize(model, [spec], budget=budget, calibration=[(x.numpy(),) for x in data])


def outputs(result: Any, x: torch.Tensor) -> Array:
    if isinstance(result.model, nn.Module):
        return result.model(x).detach().numpy()
    return np.asarray(result.lower("onnxruntime")(x.numpy())[0])


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_predicted_is_measured_is_what_the_split_model_gives(storage: str) -> None:
    module, data = feed_forward(), plenty()
    run = low_rank if storage == "fx" else lambda module, spec, budget, data: of_onnx(module, spec, data)
    result = run(module, "low-rank{rank=4}", INFINITE, data)
    ((predicted, measured),) = printed(result)
    assert measured == pytest.approx(predicted, rel=1e-3)
    apart = size = 0.0
    for x in data[::2]:
        y = module(x).detach().numpy().astype(np.float64)
        apart += np.square(outputs(result, x) - y).sum()
        size += np.square(y - module.down.bias.detach().numpy()).sum()
    assert np.sqrt(apart / size) == pytest.approx(predicted, rel=1e-3)


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize("conv", ["channels", "spatial", "tucker"])
def test_convolutions_are_refitted(conv: str, storage: str) -> None:
    module, data = made(Convolutions), images()
    spec = f"low-rank{{rank=8 conv={conv}}}"
    result = low_rank(module, spec, INFINITE, data) if storage == "fx" else of_onnx(module, spec, data)
    ((predicted, measured),) = printed(result)
    assert measured == pytest.approx(predicted, rel=1e-3) and len(result.report.kept) == 3


def test_sizes_and_parts_of_tensors_are_no_obstacle() -> None:
    module, data = made(Heads), plenty()
    dynamic = ({0: torch.export.Dim("rows", min=2, max=512)},)
    result = low_rank(module, "low-rank{rank=4}", INFINITE, data, dynamic_shapes=dynamic)
    ((predicted, measured),) = printed(result)
    assert measured == pytest.approx(predicted, rel=1e-3)
    assert result.model(data[0][:7]).shape == (7, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_in_low_precision_are_predicted(dtype: torch.dtype) -> None:
    result = low_rank(feed_forward().to(dtype), "low-rank{rank=4}", INFINITE, [x.to(dtype) for x in plenty()])
    ((predicted, measured),) = printed(result)
    assert measured == pytest.approx(predicted, rel=1e-3)


def test_a_refit_is_better_on_data_that_was_not_tuned_on() -> None:
    spent = [
        low_rank(feed_forward(), spec, INFINITE, plenty()).report.passes[0].spending.after
        for spec in ("low-rank{rank=4}", "low-rank{rank=4 refit=false}")
    ]
    assert spent[0] < 0.99 * spent[1]


@pytest.mark.parametrize("conv", ["spatial", "tucker"])
def test_refitted_kernels_are_better_on_data_that_was_not_tuned_on(conv: str) -> None:
    spent = [
        low_rank(made(Convolutions), f"low-rank{{rank=8 conv={conv} refit={on}}}", INFINITE, images(8))
        .report.passes[0].spending.after
        for on in ("true", "false")
    ]  # fmt: skip
    assert spent[0] < spent[1]


@pytest.mark.parametrize("limit", [0.3, 0.1, 0.03])
def test_the_budget_holds_and_pays_for_no_less(limit: float) -> None:
    refitted, plain = (
        low_rank(feed_forward(), spec, limit, plenty()).report.passes[0]
        for spec in ("low-rank{multiple=1}", "low-rank{multiple=1 refit=false}")
    )
    assert refitted.spending.after <= limit
    assert refitted.after.parameters <= plain.after.parameters


@pytest.mark.parametrize("weights", ["uniform", "coefficient"])
def test_graphs_of_programs_are_refitted_with_the_weights_of_their_rows(weights: Any) -> None:
    from diffusers import DDIMScheduler

    from graphopt.tools.digits.models import load_dit, scheduler

    example = {"sample": torch.randn(1, 1, 16, 16), "timestep": torch.tensor([1]), "class_labels": torch.tensor([3])}
    program = graphopt.Sampler(load_dit(), DDIMScheduler.from_config(scheduler().config), 3, example_inputs=example)
    data = graphopt.Calibration(step_weights=weights)
    result = graphopt.optimize(program, ["low-rank{ratio=0.6 skip=*norm1*}"], budget=INFINITE, calibration=data)
    found = printed(result)
    assert len(found) > 1 and result.report.passes[0].spending.metric == "trajectory-mse"
    for predicted, measured in found:
        assert measured == pytest.approx(predicted, rel=1e-3)


def test_results_are_the_same_every_time() -> None:
    one, two = (low_rank(made(Convolutions), "low-rank{rank=8 conv=channels}", 0.9, images()) for _ in range(2))
    assert printed(one) and notes(one) == notes(two)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


# ---- what is not refitted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["refit=false", "whiten=false"])
def test_it_is_off_when_asked_and_without_data(options: str) -> None:
    result = low_rank(feed_forward(), f"low-rank{{rank=4 {options}}}", INFINITE, plenty())
    assert len(result.report.kept) == 2 and "refitted" not in notes(result)


def test_layers_that_no_split_one_precedes_stay_what_they_are() -> None:
    result, without = (
        low_rank(feed_forward(), f"low-rank{{rank=4 refit={on}}}", INFINITE, plenty()) for on in ("true", "false")
    )
    same = [torch.equal(a, b) for a, b in zip(result.model.parameters(), without.model.parameters(), strict=True)]
    assert sorted(same) == [False] * 2 + [True] * 4  # of six factors and biases, those of one layer


def test_exact_chains_are_not_refitted() -> None:
    module = feed_forward()
    with torch.no_grad():
        module.down.weight.copy_(torch.randn(32, 5) @ torch.randn(5, 64))
    result = low_rank(module, "low-rank{rank=8}", INFINITE, plenty())
    assert "linear_1 (64x32) is of low rank" in notes(result) and len(result.report.kept) == 2
    assert "refitted" not in notes(result)


def poor(best: Array, gram: Array, rank: int) -> tuple[Array, Array]:
    """Factors of zeros."""
    return np.zeros((len(best), rank)), np.zeros((rank, best.shape[1]))


def test_a_refit_that_is_worse_on_the_tuning_data_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    without = low_rank(feed_forward(), "low-rank{rank=4 refit=false}", INFINITE, plenty())
    monkeypatch.setattr(refit, "reduced_rank", poor)
    result = low_rank(feed_forward(), "low-rank{rank=4}", INFINITE, plenty())
    first, *rest = result.report.passes[0].notes
    assert first == "factors are not refitted: relative-error on the tuning data is no better with refitted ones"
    assert rest == without.report.passes[0].notes
    assert np.array_equal(outputs(result, plenty()[0]), outputs(without, plenty()[0]))


def test_a_refit_that_is_beyond_the_budget_on_held_out_data_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit, "reduced_rank", poor)
    monkeypatch.setattr(ModelApproximation, "measure_tuning", lambda self, model: 0.0)
    result = low_rank(feed_forward(), "low-rank{rank=4}", 0.7, plenty())
    wanted = "factors are not refitted: relative-error of refitted ones is beyond the budget on held-out data"
    assert result.report.passes[0].notes[0] == wanted
    assert len(result.report.kept) == 2 and result.report.passes[0].spending.after <= 0.7


# ---- planted faults ------------------------------------------------------------------------------------------


def test_a_refit_to_other_inputs_is_seen_in_the_measured_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Regression.add
    monkeypatch.setattr(Regression, "add", lambda self, changed, plain, weight: right(self, plain, changed, weight))
    monkeypatch.setattr(ModelApproximation, "measure_tuning", lambda self, model: 0.0)
    ((predicted, measured),) = printed(low_rank(feed_forward(), "low-rank{rank=4}", INFINITE, plenty()))
    assert measured > 1.01 * predicted


def test_a_wrong_chain_of_refitted_factors_is_undone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rules.SplitLinear.rewrite

    def wrong(self: Any, m: Any, build: Any) -> Any:
        kept = self.factors
        if kept[0].shape[0] == 64:
            self.factors = (ArrayRef(np.ascontiguousarray(kept[0].numpy()[::-1])), kept[1])
        try:
            return right(self, m, build)
        finally:
            self.factors = kept

    monkeypatch.setattr(rules.SplitLinear, "rewrite", wrong)
    monkeypatch.setattr(ModelApproximation, "measure_tuning", lambda self, model: 0.0)
    result = low_rank(feed_forward(), "low-rank{rank=4}", INFINITE, plenty())
    found = [a.status for record in result.report.passes for a in record.applications]
    assert found == ["kept", "undone"] and "refitted to the split model" in notes(result)


# ---- how much work it is -------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Eight layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def test_no_plan_is_measured_twice_and_no_layer_refitted_twice_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, bytes]] = []
    fitted: list[tuple[bytes, int]] = []

    def counting(name: str) -> None:
        right = getattr(ModelApproximation, name)

        def measure(self: Any, model: Any) -> Any:
            read = [w.tensor.detach().numpy() for node, w in model.main.weights.items() if node.users]
            stored = b"".join(sorted(array.tobytes() for array in read))
            measured.append((name, stored))
            return right(self, model)

        monkeypatch.setattr(ModelApproximation, name, measure)

    counting("measure")
    counting("measure_tuning")
    of_rank = refit.reduced_rank

    def counted(best: Array, gram: Array, rank: int) -> tuple[Array, Array]:
        fitted.append((gram.tobytes(), rank))
        return of_rank(best, gram, rank)

    monkeypatch.setattr(refit, "reduced_rank", counted)
    result = low_rank(made(Deep), "low-rank{multiple=2}", 0.2, plenty())
    assert "refitted" in notes(result) and len(fitted) == len(set(fitted)) > 0
    of_search = Counter(key for key in measured if key != measured[-1])  # what is left is measured at the end, too
    assert len(of_search) > 3 and set(of_search.values()) == {1}
