"""Every option of the pass, and what is wrong with options, data and names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from classifiers import INFINITE, SIZES, classifier, images, left, notes, prune

import graphopt
from graphopt.errors import PipelineError
from graphopt.passes.prune import Prune, axes

HALF = {"body.0.weight:0": 8, "body.3.weight:0": 16, "body.6.weight:0": 32, "project.weight:0": 24}

# ---- losses for importance=taylor ----------------------------------------------------------------


def first_logit(outputs: list[torch.Tensor]) -> torch.Tensor:
    return outputs[0][:, 0].mean()


def per_image(outputs: list[torch.Tensor]) -> torch.Tensor:
    return outputs[0].mean(1)


def unrelated(outputs: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor(1.0)


def failing(outputs: list[torch.Tensor]) -> torch.Tensor:
    raise KeyError("labels")


NOT_CALLABLE = 3


# ---- choosing ------------------------------------------------------------------------------------


def test_the_model_is_never_modified() -> None:
    before = {name: tensor.clone() for name, tensor in classifier().state_dict().items()}
    prune("ratio=0.5")
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier().state_dict().items())


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize("importance", ["magnitude", "activation", "random"])
def test_a_ratio_takes_that_share_of_every_axis(storage: str, importance: str) -> None:
    result = prune(f"ratio=0.5 importance={importance}", storage=storage)
    assert left(result) == HALF
    assert all(a.evidence.twin is not None and a.evidence.twin < 1e-10 for a in result.report.kept)


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_both_storages_keep_the_same_indices(importance: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))
    data = [torch.randn(6, 4) for _ in range(4)]
    spec = f"prune{{ratio=0.5 importance={importance}}}"
    model = torch.onnx.export(module, (data[0],), dynamo=True, verbose=False).model_proto
    fx = graphopt.optimize(module, [spec], example_inputs=(data[0],), budget=INFINITE, calibration=data)
    onnx = graphopt.optimize(model, [spec], budget=INFINITE, calibration=data)
    got = torch.from_numpy(onnx.lower("onnxruntime")(data[0].numpy())[0])
    assert torch.allclose(got, fx.model(data[0]), atol=1e-6) and not torch.allclose(got, module(data[0]), atol=1e-3)


def test_importance_by_magnitude_keeps_the_larger_channels() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight[::2] *= 100
    result = graphopt.optimize(
        module,
        ["prune{ratio=0.5}"],
        example_inputs=(torch.ones(2, 4),),
        budget=INFINITE,
        calibration=[torch.ones(2, 4)] * 2,
    )
    assert torch.equal(dict(result.model.named_parameters())["0.weight"], module[0].weight[::2])


def test_importance_by_activation_drops_what_the_data_never_wakes() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        module[0].bias[[1, 4]] = -9.0
    data = [torch.randn(6, 4) for _ in range(4)]
    result = graphopt.optimize(
        module, ["prune{ratio=0.25 importance=activation}"], example_inputs=(data[0],), budget=1e-6, calibration=data
    )
    kept = [0, 2, 3, 5, 6, 7]
    assert torch.equal(dict(result.model.named_parameters())["0.bias"], module[0].bias[kept])


def test_the_seed_decides_what_is_kept_at_random() -> None:
    one, again, other = (prune(f"ratio=0.5 importance=random seed={n}").model(images()) for n in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_losses_by_name_and_of_the_user_decide_what_is_kept() -> None:
    results = [
        prune(f"ratio=0.5 importance=taylor loss={loss}")
        for loss in ("square", "self-cross-entropy", "test_options:first_logit")
    ]
    assert all(left(result) == HALF for result in results)
    assert len({float(result.model(images()).sum()) for result in results}) == 3


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("squere", "cannot be found.*expected one of square, self-cross-entropy or package.module:function"),
        ("no_such_module:f", "cannot be found.*no_such_module"),
        ("test_options:missing", "cannot be found.*missing"),
        ("test_options:NOT_CALLABLE", "is 3: expected a function of the list of output tensors"),
        ("test_options:failing", "raised KeyError: 'labels'"),
        ("test_options:per_image", "expected one number that depends on the weights"),
        ("test_options:unrelated", "expected one number that depends on the weights"),
    ],
)
def test_a_loss_that_is_none_is_an_error_that_says_why(loss: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        prune(f"ratio=0.5 importance=taylor loss={loss}")


def test_together_takes_different_shares_of_different_axes() -> None:
    shares = {left(prune("ratio=0.5 together=true multiple=1"))[name] / size for name, size in SIZES.items()}
    assert len(shares) > 1


@pytest.mark.parametrize("multiple", [1, 5, 8, 100])
def test_what_stays_of_a_longer_axis_is_a_multiple(multiple: int) -> None:
    for name, size in left(prune(f"ratio=0.3 multiple={multiple}")).items():
        if SIZES[name] > multiple:
            assert size % multiple == 0 or size == SIZES[name]
        else:
            assert size == round(SIZES[name] * 0.7)


def test_at_least_one_index_stays() -> None:
    assert left(prune("ratio=0.999 multiple=1")) == dict.fromkeys(SIZES, 1) | {"body.6.weight:0": 2}


@pytest.mark.parametrize("pattern", ["body.3.weight:0", "body.4.running_mean", "body.4.*"])
def test_protected_tensors_and_axes_stay(pattern: str) -> None:
    sizes = left(prune(f'ratio=0.5 protect="{pattern}"'))
    assert sizes == HALF | {"body.3.weight:0": 32}


def test_protecting_everything_leaves_nothing_to_prune() -> None:
    result = prune("ratio=0.5 protect=*")
    assert left(result) == SIZES and "nothing to prune" in notes(result)


def test_a_pattern_that_protects_nothing_is_reported_with_the_nearest_names() -> None:
    found = notes(prune('ratio=0.5 protect="heat.weight","head.*"'))
    assert "protect: no tensor or axis is named 'heat.weight' (did you mean 'head.weight'" in found
    assert "'head.*'" not in found


class Normed(torch.nn.Module):
    """One coupled axis and one exact one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = torch.nn.Linear(4, 16), torch.nn.LayerNorm(16)
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.norm(self.embed(x)))))


def normed(options: str, **others: Any) -> Any:
    torch.manual_seed(0)
    data = [torch.randn(6, 4) for _ in range(4)]
    return graphopt.optimize(
        Normed(), [f"prune{{{options}}}"], example_inputs=(data[0],), budget=INFINITE, calibration=data, **others
    )


def test_coupled_axes_can_be_left_alone() -> None:
    both, exact = (
        {name: p.shape[0] for name, p in normed(f"ratio=0.5 {more}").model.named_parameters()}
        for more in ("", "coupled=false")
    )
    assert (both["embed.weight"], both["up.weight"]) == (8, 16)
    assert (exact["embed.weight"], exact["up.weight"]) == (16, 16)


# ---- one axis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_one_axis_is_cut_to_the_indices_that_are_named(storage: str) -> None:
    result = prune('axis="body.3.weight:0" keep=3,1,30', storage=storage)
    assert left(result) == SIZES | {"body.3.weight:0": 3}
    if storage == "fx":
        weight = dict(result.model.named_parameters())["body.3.weight"]
        assert torch.equal(weight, classifier().body[3].weight[[1, 3, 30]])


def test_the_names_in_the_list_are_those_that_the_pass_takes() -> None:
    assert {a.name: a.size for a in axes(classifier(), example_inputs=(images(),))} == SIZES


def test_keeping_every_index_changes_nothing_and_says_so() -> None:
    result = prune(f'axis="body.0.weight:0" keep={",".join(map(str, range(16)))}')
    assert left(result) == SIZES and "nothing is removed" in notes(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('axis="body.0.weigth:0" keep=0', "no free axis 'body.0.weigth:0' .did you mean 'body.0.weight:0'"),
        ('axis="body.0.weight:0" keep=0,16', "has indices 0 to 15, keep names 16"),
        ('axis="body.0.weight:0" keep=-1', "has indices 0 to 15, keep names -1"),
        ('axis="body.0.weight:0" keep=0 protect=body.1.bias', "is to be pruned and to stay: protect names it"),
        ('axis="body.0.weight:0"', "axis and keep belong together"),
        ("keep=0", "axis and keep belong together"),
        ('axis="body.0.weight:0" keep=0 ratio=0.5', "give one of ratio, flops, params, latency and axis"),
        ("ratio=0.5 flops=0.5", "give one of ratio, flops, params, latency and axis"),
        ("ratio=0", "above 0 and below 1"),
        ("flops=1", "above 0 and below 1"),
        ("params=-0.5", "above 0 and below 1"),
        ("latency=2", "above 0 and below 1"),
        ("ratio=nan", "expected float"),
        ("multiple=0", "expected 1 or more"),
        ("importance=size", "expected one of magnitude, activation, taylor, random"),
        ("ratoi=0.5", "unknown option 'ratoi' .did you mean 'ratio'"),
    ],
)
def test_options_that_make_no_sense_are_errors_that_say_why(options: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        prune(options)


def test_a_share_that_is_no_number_is_an_error_in_python_too() -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Prune(ratio=float("nan"))


def test_a_coupled_axis_is_not_pruned_by_name_if_coupled_ones_are_to_stay() -> None:
    with pytest.raises(PipelineError, match="it is coupled, and coupled is false"):
        normed('axis="embed.weight:0" keep=0,1 coupled=false')


def test_a_model_without_axes_has_nothing_to_prune() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(-1))
    result = graphopt.optimize(
        module, ["prune{ratio=0.5}"], example_inputs=(torch.ones(2, 4),), budget=1, calibration=[torch.ones(2, 4)] * 2
    )
    assert result.report.kept == [] and "nothing to prune" in notes(result)
