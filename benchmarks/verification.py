"""What verification costs: the 53 conv-BN matches of a ResNet-50, each run on both sides, on both storages.

    python -m benchmarks.verification [--rounds 3]

The network is transformers' ResNet-50 with random weights and statistics, at 224 x 224.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import typer

from graphopt.ir.convert import from_scratch
from graphopt.ir.load import load_model
from graphopt.ir.model import Model
from graphopt.ir.transcribe import transcribe
from graphopt.passes.fuse_conv_bn import FuseConvBn
from graphopt.pipeline.context import Context
from graphopt.rewrite.change import Verifier
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.verifier import MatchVerifier, Structural


def resnet() -> tuple[Any, Any]:
    """ResNet-50 with statistics that a trained network could have, and an input."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig()).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_()
    return model, torch.randn(1, 3, 224, 224)


def loaded(storage: str) -> Model:
    """The network in `storage`; to ONNX it goes through the vocabulary, since torch's exporter would fold it."""
    module, x = resnet()
    model = load_model(module, example_inputs=(x,))
    if storage == "fx":
        return model
    graph = model.main
    scratch, _ = transcribe(graph, list(graph.nodes()), graph.inputs(), graph.outputs())
    return from_scratch(scratch, "onnx")


def seconds(model: Model, verifier: Verifier) -> tuple[float, int]:
    """Wall time of the pass and the number of applications kept."""
    context = Context(model, verifier, Ledger())
    context.ledger.open_pass("fuse-conv-bn")
    started = time.perf_counter()
    FuseConvBn().run(context)
    return time.perf_counter() - started, context.ledger.kept


def main(rounds: Annotated[int, typer.Option(help="Timed runs on each storage.")] = 3) -> None:
    """Time the pass with and without verification, interleaved."""
    for storage in ("fx", "onnx"):
        runs = []
        for _ in range(rounds):
            plain, _ = seconds(loaded(storage), Structural("none"))
            verified, kept = seconds(loaded(storage), MatchVerifier())
            runs.append((verified, plain, kept))
        verified = statistics.median(r[0] for r in runs)
        plain = statistics.median(r[1] for r in runs)
        print(
            f"{storage}: {runs[0][2]} applications, {verified:.2f} s verified (median of {rounds}), "
            f"{plain:.2f} s without verification, {1000 * (verified - plain) / runs[0][2]:.1f} ms a match"
        )


if __name__ == "__main__":
    typer.run(main)
