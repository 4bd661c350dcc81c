from dataclasses import replace

import numpy as np
import pytest
import torch

from graphopt.tools.digits import models, train
from graphopt.tools.digits.data import Digits
from graphopt.tools.digits.train import Part, train_denoiser, vary, zero_start


@pytest.fixture
def few():
    images = np.random.default_rng(0).uniform(-1, 1, (2000, 1, 16, 16)).astype(np.float32)
    return Digits(images, np.repeat(np.arange(10), 200))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    brief = {part: replace(recipe, iterations=3, batch=8, warm_up=1) for part, recipe in train.RECIPES.items()}
    monkeypatch.setattr(train, "RECIPES", brief)
    monkeypatch.setattr(train, "CLASSIFIER_EPOCHS", 1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind, name", [(models.DigitUNet, "unet"), (models.DigitDiT, "dit")])
def test_before_training_a_denoiser_says_zero(kind, name):
    model = kind(models.config(name))
    zero_start(model)

    with torch.no_grad():
        assert model(torch.randn(2, 1, 16, 16), torch.tensor(5), torch.tensor([1, 2])).abs().max() == 0


@pytest.mark.parametrize("part", [Part.UNET, Part.DIT])
def test_the_same_seed_gives_the_same_weights(few, part):
    one, other = (train_denoiser(part, few).state_dict() for _ in range(2))

    assert all(torch.equal(one[name], other[name]) for name in one)


def test_variations_keep_background_and_range():
    images = torch.full((8, 1, 16, 16), -1.0)
    images[:, :, 5:11, 5:11] = 1

    varied = vary(images)

    assert varied.shape == images.shape
    assert varied.min() >= -1 and varied.max() <= 1
    assert (varied[:, :, 0] == -1).all()
    assert (varied != images).flatten(1).any(1).all()


def test_the_command_writes_what_the_loaders_read(few, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load", lambda folder: few)

    train.main(tmp_path)

    written = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    shipped = {path.name: path.stat().st_size for path in models.WEIGHTS.glob("*.safetensors")}
    assert written == shipped
    assert models.load_dit(tmp_path).transformer.config == models.load_dit().transformer.config
