"""Hand-made tiny networks, each around one structure that ties channels together in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv_norm(inner: int, outer: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class Classifier(nn.Module):
    """A convolution, what is given, the mean over space, and a linear layer to 10 classes: x[N, 3, H, W] -> [N, 10]."""

    def __init__(self, width: int, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_norm(3, width), nn.ReLU())
        self.body = body
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class ResidualBlock(nn.Module):
    """Three convolutions, the middle one in groups, added to what came in (He et al. 2016; Xie et al. 2017)."""

    def __init__(self, inner: int, outer: int, groups: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_conv_norm(inner, outer, 1), nn.ReLU(), *_conv_norm(outer, outer, groups=groups), nn.ReLU(),
            *_conv_norm(outer, outer, 1),
        )  # fmt: skip
        self.shortcut = nn.Identity() if inner == outer else _conv_norm(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x))


def resnet() -> nn.Module:
    return Classifier(16, nn.Sequential(ResidualBlock(16, 16), ResidualBlock(16, 32)), 32)


def resnext() -> nn.Module:
    """Groups of 4 and of 8 channels."""
    return Classifier(32, nn.Sequential(ResidualBlock(32, 32, 8), ResidualBlock(32, 64, 8)), 64)


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of all before it (Huang et al. 2017)."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        starts = [width + i * growth for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(s), nn.ReLU(), nn.Conv2d(s, growth, 3, padding=1)) for s in starts
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    return Classifier(16, DenseBlock(16, 8, 2), 32)


class SqueezeExcite(nn.Module):
    """Channels are scaled by what two linear layers make of their means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv = _conv_norm(channels, 2 * channels)
        self.squeeze, self.excite = nn.Linear(2 * channels, squeezed), nn.Linear(squeezed, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x))
        scale = self.excite(functional.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * scale[:, :, None, None]


def squeeze_excite() -> nn.Module:
    return Classifier(16, SqueezeExcite(16, 8), 32)


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, the halves are joined and interleaved (Ma et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *_conv_norm(half, half, 1), nn.ReLU(), *_conv_norm(half, half, groups=half), *_conv_norm(half, half, 1),
            nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        joined = torch.cat([kept, self.branch(changed)], 1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).flatten(1, 2)


def shufflenet() -> nn.Module:
    return Classifier(16, nn.Sequential(ShuffleUnit(16), ShuffleUnit(16)), 16)


class GroupNormBlock(nn.Module):
    """A residual block with group normalisation, as in the U-Nets of diffusion models."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.GroupNorm(groups, 2 * channels), nn.SiLU(), nn.Conv2d(2 * channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def group_norm_residual() -> nn.Module:
    block = GroupNormBlock(16, 4)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), block, nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))


def pixel_shuffle() -> nn.Module:
    """Channels become space: super-resolution by sub-pixel convolution (Shi et al. 2016)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(),
        nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip


def vgg_flatten() -> nn.Module:
    """Channels and space are flattened together in front of a linear layer: x[N, 3, 8, 8] -> [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 4, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class GegluMlp(nn.Module):
    """One linear layer for both factors of a gated unit, chunked (Shazeer 2020): x[N, T, 16] -> [N, T, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 128), nn.Linear(64, 32)
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        value, gate = self.up(x).chunk(2, -1)
        return self.head(x + self.down(value * functional.gelu(gate)))


class FusedQkv(nn.Module):
    """Attention whose queries, keys and values come from one linear layer, with `heads // kv_heads` query heads for
    each of keys and values: x[N, T, 16] -> [N, T, 8]."""

    def __init__(self, heads: int, kv_heads: int, width: int = 32, head_size: int = 8) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = heads, kv_heads, head_size
        self.embed, self.norm = nn.Linear(16, width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_size)
        self.out, self.head = nn.Linear(heads * head_size, width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        sizes = [self.heads * self.head_size] + [self.kv_heads * self.head_size] * 2
        q, k, v = (self._split(part) for part in self.qkv(self.norm(x)).split(sizes, -1))
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(mixed))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


class Lstm(nn.Module):
    """Two recurrent layers over embedded tokens: ids[N, T] -> [N, T, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(32, 16), nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])
