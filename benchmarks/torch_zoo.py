"""The torch models of the zoo, built from their weights.

Only tensors are taken from a file, so the architectures are written down here: MTCNN (Zhang et al. 2016, as
in facenet-pytorch 2.6.0), CREPE (Kim et al. 2018, as in torchcrepe 0.0.24) and Silero's voice detector (as in
silero-vad 6.2.3). The detector's TorchScript file keeps its state inside and branches on the sample rate;
torch cannot export that, so here its 16 kHz network takes and returns the state, as its ONNX files do.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Stage(nn.Module):
    """Layers named as in the weights file, called one after another."""

    def prelu(self, x: Tensor, layer: str, number: int) -> Tensor:
        return self.get_submodule(f"prelu{number}")(self.get_submodule(f"{layer}{number}")(x))

    def flat(self, x: Tensor) -> Tensor:
        """Channels last and transposed, the order in which the original network was trained."""
        x = x.permute(0, 3, 2, 1).contiguous()
        return x.view(x.shape[0], -1)


class PNet(_Stage):
    """MTCNN's proposal network: image [N, 3, H, W] -> boxes [N, 4, h, w], face probabilities [N, 2, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu(x, "conv", 1))
        x = self.prelu(self.prelu(x, "conv", 2), "conv", 3)
        return self.conv4_2(x), self.conv4_1(x).softmax(dim=1)


class RNet(_Stage):
    """MTCNN's refinement network: image [N, 3, 24, 24] -> boxes [N, 4], face probabilities [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.pool1 = self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu(x, "conv", 1))
        x = self.pool2(self.prelu(x, "conv", 2))
        x = self.prelu(self.flat(self.prelu(x, "conv", 3)), "dense", 4)
        return self.dense5_2(x), self.dense5_1(x).softmax(dim=1)


class ONet(_Stage):
    """MTCNN's output network: image [N, 3, 48, 48] -> boxes [N, 4], landmarks [N, 10], faces [N, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.pool1 = self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, 2), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool1(self.prelu(x, "conv", 1))
        x = self.pool2(self.prelu(x, "conv", 2))
        x = self.pool3(self.prelu(x, "conv", 3))
        x = self.prelu(self.flat(self.prelu(x, "conv", 4)), "dense", 5)
        return self.dense6_2(x), self.dense6_3(x), self.dense6_1(x).softmax(dim=1)


class Crepe(nn.Module):
    """CREPE's pitch estimator: audio frames [N, 1024] at 16 kHz -> probabilities of 360 pitches [N, 360].

    Each layer is convolution, relu, batch norm, pooling: the batch norm follows the relu.
    """

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        for number, (inner, outer) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            first = number == 1
            kernel, stride = (512, 4) if first else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inner, outer, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outer, eps=0.0010000000474974513))
        self.layers = len(channels)
        self.classifier = nn.Linear(4 * channels[-1], 360)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number in range(1, self.layers + 1):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = functional.relu(self.get_submodule(f"conv{number}")(x))
            x = self.get_submodule(f"conv{number}_BN")(x)
            x = functional.max_pool2d(x, (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.classifier.in_features)
        return self.classifier(x).sigmoid()


class SileroVad(nn.Module):
    """Silero's 16 kHz voice detector.

    64 samples of context and 512 new ones [N, 576], state [2, N, 128] -> probability of speech [N, 1], state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 258, 256, 128, bias=False)
        sizes, strides = (129, 128, 64, 64, 128), (1, 2, 2, 1)
        layers = zip(sizes[:-1], sizes[1:], strides, strict=True)
        self.encoder = nn.ModuleList(nn.Conv1d(a, b, 3, stride, padding=1) for a, b, stride in layers)
        self.rnn = nn.LSTMCell(128, 128)
        self.out = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        real, imaginary = self.stft(functional.pad(x, (0, 64), mode="reflect")[:, None]).chunk(2, dim=1)
        x = (real**2 + imaginary**2).sqrt()
        for convolution in self.encoder:
            x = convolution(x).relu()
        hidden, cell = self.rnn(x.squeeze(-1), (state[0], state[1]))
        speech = self.out(hidden[:, :, None].relu()).sigmoid()
        return speech.squeeze(1).mean(dim=1, keepdim=True), torch.stack([hidden, cell])


def _silero_state(script: Path) -> dict[str, Tensor]:
    """The tensors of the 16 kHz network under the names that `SileroVad` has for them."""
    renamed = {
        "_model.stft.forward_basis_buffer": "stft.weight",
        "_model.encoder.": "encoder.",
        "_model.decoder.rnn.": "rnn.",
        "_model.decoder.decoder.2.": "out.",
    }
    state = {}
    for name, tensor in torch.jit.load(str(script), map_location="cpu").state_dict().items():
        for old, new in renamed.items():
            if name.startswith(old):
                state[new + name.removeprefix(old).replace("reparam_conv.", "")] = tensor
    return state


def _architecture(name: str) -> nn.Module:
    match name:
        case "mtcnn_pnet":
            return PNet()
        case "mtcnn_rnet":
            return RNet()
        case "mtcnn_onet":
            return ONet()
        case "crepe_tiny":
            return Crepe((128, 16, 16, 16, 32, 64))
        case "crepe_full":
            return Crepe((1024, 128, 128, 128, 256, 512))
        case "silero_vad_jit":
            return SileroVad()
    raise KeyError(f"no architecture for {name!r}")


def build(name: str, weights: Path) -> nn.Module:
    """The model `name` of the manifest in inference mode, with the weights in the file `weights`."""
    model = _architecture(name)
    scripted = weights.suffix == ".jit"
    model.load_state_dict(_silero_state(weights) if scripted else torch.load(weights, weights_only=True))
    return model.eval()
