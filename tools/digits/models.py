"""The digit models: a U-Net with cross-attention, a DiT and a classifier, built from JSON and safetensors.

Both denoisers predict v (velocity) on the usual 1000-step DDPM schedule, see `scheduler`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from graphopt.tools.digits.data import CLASSES

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of what is shipped: the configurations, and the weights in float16."""

Model = TypeVar("Model", bound=torch.nn.Module)


class DigitUNet(torch.nn.Module):  # type: ignore[misc]  # torch is untyped for mypy
    """A diffusers U-Net that looks at its class through cross-attention.

    `condition` turns labels into the sequence that `unet` takes as its `encoder_hidden_states`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.tokens: int = config["class_tokens"]
        self.unet = UNet2DConditionModel(**config["unet"])
        self.embedding = torch.nn.Embedding(CLASSES + 1, self.tokens * self.unet.config.cross_attention_dim)

    def condition(self, class_labels: torch.Tensor) -> torch.Tensor:
        """(n,) labels 0..10 (10: any digit) as (n, tokens, width)."""
        return self.embedding(class_labels).unflatten(-1, (self.tokens, -1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """v for `sample` (n, 1, 16, 16) at `timestep` (scalar, (1,) or (n,)) and `class_labels` (n,)."""
        return self.unet(sample, timestep, self.condition(class_labels), return_dict=False)[0]


class DigitDiT(torch.nn.Module):  # type: ignore[misc]  # torch is untyped for mypy
    """A diffusers DiT: time and class act through adaptive layer norms (AdaLN-zero)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.transformer = DiTTransformer2DModel(**config["transformer"])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """v for `sample` (n, 1, 16, 16) at `timestep` (scalar, (1,) or (n,)) and `class_labels` (n,)."""
        return self.transformer(sample, timestep.reshape(-1), class_labels, return_dict=False)[0]


class DigitClassifier(torch.nn.Module):  # type: ignore[misc]  # torch is untyped for mypy
    """Three convolutions with batch norm and ReLU, then 48 features, then 10 logits."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        channels = 1
        for width, stride in zip(config["channels"], config["strides"], strict=True):
            layers += [
                torch.nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                torch.nn.BatchNorm2d(width),
                torch.nn.ReLU(),
            ]
            channels = width
        self.body = torch.nn.Sequential(*layers, torch.nn.Flatten())
        self.dropout = torch.nn.Dropout(config["dropout"])
        self.project = torch.nn.Linear(config["flat"], config["features"])
        self.head = torch.nn.Linear(config["features"], CLASSES)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, 16, 16) in [-1, 1] as (n, 48), before the last ReLU."""
        return self.project(self.dropout(self.body(images)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, 16, 16) in [-1, 1] as (n, 10) logits."""
        return self.head(torch.relu(self.features(images)))


def load_unet(folder: Path = WEIGHTS) -> DigitUNet:
    """The trained U-Net in eval mode, float32."""
    return _load(DigitUNet, "unet", folder)


def load_dit(folder: Path = WEIGHTS) -> DigitDiT:
    """The trained DiT in eval mode, float32."""
    return _load(DigitDiT, "dit", folder)


def load_classifier(folder: Path = WEIGHTS) -> DigitClassifier:
    """The trained classifier in eval mode, float32."""
    return _load(DigitClassifier, "classifier", folder)


def scheduler() -> DDIMScheduler:
    """The schedule that the denoisers were trained on, as DDIM.

    Another scheduler of diffusers takes it over: `DPMSolverMultistepScheduler.from_config(scheduler().config)`.
    """
    return DDIMScheduler.from_config(config("scheduler"))


def config(name: str) -> dict[str, Any]:
    """The shipped configuration `name`: "unet", "dit", "classifier" or "scheduler"."""
    document: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    return document


def save(module: torch.nn.Module, path: Path) -> None:
    """Write the weights of `module`, rounded to float16."""
    rounded = {name: x.half() if x.is_floating_point() else x for name, x in module.state_dict().items()}
    save_file({name: x.contiguous() for name, x in rounded.items()}, path)


def parameter_count(module: torch.nn.Module) -> int:
    """How many numbers were trained."""
    return sum(parameter.numel() for parameter in module.parameters())


def _load(kind: type[Model], name: str, folder: Path) -> Model:
    module: Model = kind(config(name))
    stored = load_file(folder / f"{name}.safetensors")
    module.load_state_dict({key: x.float() if x.is_floating_point() else x for key, x in stored.items()})
    module.eval()
    return module
