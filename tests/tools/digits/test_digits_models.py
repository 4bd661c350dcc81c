import subprocess
import sys

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file

from graphopt.tools.digits.models import (
    WEIGHTS,
    config,
    load_classifier,
    load_dit,
    load_unet,
    parameter_count,
    scheduler,
)
from graphopt.tools.digits.quality import accuracy
from graphopt.tools.digits.sampling import noise, sample

DENOISERS = {"unet": load_unet, "dit": load_dit}


@pytest.fixture(scope="module", params=DENOISERS)
def denoiser(request):
    return DENOISERS[request.param]()


@pytest.fixture
def inputs():
    return noise(3, seed=0), torch.tensor([400]), torch.tensor([2, 7, 10])


def test_the_shipped_weights_are_safetensors_of_less_than_two_megabytes():
    weights = [path for path in WEIGHTS.iterdir() if path.suffix != ".json"]

    assert {path.suffix for path in weights} == {".safetensors"}
    assert {path.stem for path in weights} == {"unet", "dit", "classifier", "reference"}
    assert sum(path.stat().st_size for path in weights) < 2_000_000


def test_every_weight_is_finite_and_stored_in_half_precision():
    for name in ("unet", "dit", "classifier"):
        tensors = load_file(WEIGHTS / f"{name}.safetensors")
        floats = {key: x for key, x in tensors.items() if x.is_floating_point()}
        assert {x.dtype for x in floats.values()} == {torch.float16}
        assert all(x.isfinite().all() for x in floats.values())


def test_a_denoiser_is_small_and_ready_for_inference(denoiser):
    assert 250_000 < parameter_count(denoiser) < 450_000
    assert not any(module.training for module in denoiser.modules())
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}


def test_time_may_be_a_number_one_for_all_or_one_for_each(denoiser, inputs):
    x, time, labels = inputs
    with torch.no_grad():
        each = denoiser(x, time.expand(3), labels)

        torch.testing.assert_close(denoiser(x, time, labels), each, rtol=0, atol=1e-5)
        torch.testing.assert_close(denoiser(x, time[0], labels), each, rtol=0, atol=1e-5)
    assert each.shape == x.shape


def test_the_class_matters(denoiser, inputs):
    x, time, labels = inputs
    with torch.no_grad():
        change = denoiser(x, time, labels) - denoiser(x, time, (labels + 1) % 10)

    assert change.abs().amax((1, 2, 3)).min() > 0.05


def test_samples_are_recognised_as_the_digit_that_was_asked_for(denoiser):
    labels = torch.arange(40) % 10

    images = sample(denoiser, noise(40, seed=0), labels, scheduler(), 20, guidance=1.5)

    assert accuracy(images.numpy(), labels.numpy()) >= 0.85
    assert images.abs().max() < 1.6


def test_another_scheduler_takes_the_schedule_over(denoiser):
    labels = torch.arange(20) % 10
    solver = DPMSolverMultistepScheduler.from_config(scheduler().config)

    images = sample(denoiser, noise(20, seed=0), labels, solver, 10, guidance=2.0)

    assert accuracy(images.numpy(), labels.numpy()) >= 0.85


def test_a_denoiser_exports_with_a_dynamic_batch_and_computes_the_same(denoiser, inputs):
    # From 64 on, diffusers' upsampling takes another branch.
    batch = torch.export.Dim("batch", min=2, max=63)
    exported = torch.export.export(denoiser, inputs, dynamic_shapes=({0: batch}, None, {0: batch}))
    other = noise(5, seed=1), torch.tensor([900]), torch.tensor([0, 3, 5, 9, 10])

    with torch.no_grad():
        torch.testing.assert_close(exported.module()(*other), denoiser(*other), rtol=0, atol=1e-5)


def test_the_classifier_exports_and_computes_the_same():
    classifier, images = load_classifier(), noise(4, seed=0)

    exported = torch.export.export(classifier, (images,))

    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), classifier(images), rtol=0, atol=1e-5)


def test_the_unet_gives_its_condition_apart():
    unet, labels = load_unet(), torch.tensor([1, 10])
    x, time = noise(2, seed=0), torch.tensor(10)

    with torch.no_grad():
        condition = unet.condition(labels)
        apart = unet.unet(x, time, encoder_hidden_states=condition).sample

        assert condition.shape == (2, 4, 32)
        torch.testing.assert_close(apart, unet(x, time, labels), rtol=0, atol=0)


def test_the_schedule_is_the_usual_one_of_ddpm():
    found = scheduler()

    assert found.config.prediction_type == config("scheduler")["prediction_type"] == "v_prediction"
    torch.testing.assert_close(found.betas, torch.linspace(1e-4, 0.02, 1000))


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_without_a_package_the_error_names_it_and_the_extra(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from graphopt.errors import MissingExtraError\n"
        "try:\n    import graphopt.tools.digits.sampling\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert package in result.stdout and "graphopt[diffusers]" in result.stdout
