"""How much memory a model takes whose weights lie in a file of their own.

    python -m benchmarks.memory [--gigabytes N] [--limit MB] [--folder DIR]

Writes a chain of linear layers, linear layers with batch norms and convolutions with batch norms, optimises it with
fuse-conv-bn and clean-up in a process of its own, saves the result, and prints the peak of that process's resident
memory. Exit code 1 if the peak is more than the limit above the tensors that were rewritten.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper
from rich.table import Table

from benchmarks.console import wide_console

MEGABYTE = 1_000_000
WIDTH = 4096
"""Features of a linear layer: its weight has 67 MB."""
CHANNELS = 1024
"""Channels of a convolution: its 3 x 3 weight has 38 MB."""
BLOCK = 1_000_003
"""Random numbers that a weight repeats. A prime, so that no axis is in step with it."""


class Chain:
    """A model under construction whose weights are streamed into `<name>.data`."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.data = path.with_name(path.name + ".data").open("wb")
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.bytes = 0
        self._rng = np.random.default_rng(seed)
        self._block = self._rng.standard_normal(BLOCK, np.float32)

    def weight(self, *shape: int, positive: bool = False) -> str:
        """The name of a new weight of about unit gain."""
        name = f"w{len(self.tensors)}"
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = math.prod(shape)
        for key, value in (("location", self.data.name), ("offset", self.bytes), ("length", 4 * size)):
            tensor.external_data.add(key=key, value=Path(value).name if key == "location" else str(value))
        fan_in = max(1, math.prod(shape[1:]))
        block = np.roll(self._block, len(self.tensors)) / np.float32(math.sqrt(fan_in))
        self._write(np.abs(block) + np.float32(0.5) if positive else block, size)
        self.tensors.append(tensor)
        return name

    def _write(self, block: np.ndarray, size: int) -> None:
        for start in range(0, size, block.size):
            self.data.write(block[: size - start].tobytes())
        self.bytes += 4 * size

    def node(self, op: str, operand: str, *weights: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [operand, *weights], [name], name=name, **attributes))
        return name

    def batch_norm(self, operand: str, channels: int) -> str:
        statistics = [self.weight(channels, positive=i == 3) for i in range(4)]
        return self.node("BatchNormalization", operand, *statistics)

    def save(self, inputs: Sequence[Any], outputs: Sequence[str]) -> None:
        declared = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "chain", list(inputs), declared, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        self.data.close()
        self.path.write_bytes(model.SerializeToString())


def write_chain(path: Path, size: int, *, width: int = WIDTH, channels: int = CHANNELS) -> int:
    """Write a model of about `size` bytes of weights; returns the bytes of those that the passes rewrite.

    Of every eight linear layers one has a batch norm, which is folded; so is the one of each of two convolutions.
    """
    chain = Chain(path)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", channels, 16, 16])
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])
    rewritten, end = 0, "image"
    for _ in range(2):
        end = chain.node("Conv", end, chain.weight(channels, channels, 3, 3), pads=[1, 1, 1, 1])
        end = chain.node("Relu", chain.batch_norm(end, channels))
        rewritten += 4 * channels * channels * 9
    outputs, end = [end], "features"
    layer = 0
    while chain.bytes < size:
        end = chain.node("MatMul", end, chain.weight(width, width))
        if layer % 8 == 0:
            end = chain.batch_norm(end, width)
            rewritten += 4 * width * width
        end = chain.node("Relu", end)
        layer += 1
    chain.save([image, features], [*outputs, end])
    return rewritten


def resident() -> tuple[int, int]:
    """Resident memory of this process now, and its peak, in bytes.

    Linux counts into `ru_maxrss` what the parent had when it started this process, so /proc is asked first.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def measure(path: Path, output: Path, verify: str = "match") -> dict[str, Any]:
    """Optimise and save in a process of its own; its memory before and at the peak, in bytes, and the report."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(path), str(output), verify]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode != 0:
        raise RuntimeError(f"the measured process failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _child(path: Path, output: Path, verify: str) -> None:
    """What `measure` runs. A small model goes first, so that code that is loaded once is not counted."""
    import graphopt

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.onnx"
        write_chain(small, 10_000, width=16, channels=4)
        graphopt.optimize(small, verify=verify).save(Path(folder) / "out.onnx")
    before, _ = resident()
    result = graphopt.optimize(path, verify=verify)
    _, optimised = resident()
    result.save(output)
    _, saved = resident()
    report = result.report
    print(
        json.dumps(
            {
                "before": before,
                "optimised": optimised,
                "saved": saved,
                "kept": [a.id for a in report.kept],
                "undone": [
                    f"{a.id}: {a.reason}" for p in report.passes for a in p.applications if a.status == "undone"
                ],
                "seconds": report.seconds,
            }
        )
    )


def main(
    gigabytes: Annotated[float, typer.Option(help="Size of the weights, in 10^9 bytes.")] = 3.0,
    limit: Annotated[int, typer.Option(help="Megabytes allowed above the tensors that are rewritten.")] = 300,
    folder: Annotated[Path | None, typer.Option(help="Where to write the model; it is deleted.")] = None,
    verify: Annotated[str, typer.Option(help="Level of verification.")] = "match",
) -> None:
    """Measure the peak of resident memory while a model with external data is optimised and saved."""
    console = wide_console()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / "chain.onnx"
        rewritten = write_chain(source, int(gigabytes * 1e9))
        size = sum(p.stat().st_size for p in Path(scratch).iterdir())
        measured = measure(source, Path(scratch) / "out.onnx", verify)
    peak = measured["saved"] - measured["before"]
    table = Table("", "MB", title=f"memory of fuse-conv-bn and clean-up, verify={verify}")
    rows = {
        "weights in the file": size,
        "tensors that are rewritten": rewritten,
        "process before the model": measured["before"],
        "peak of the rewriting above that": measured["optimised"] - measured["before"],
        "peak of rewriting and saving above that": peak,
        "peak above the rewritten tensors": peak - rewritten,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value / MEGABYTE:,.0f}")
    console.print(table)
    console.print(
        f"{len(measured['kept'])} applications kept in {measured['seconds']:.1f} s, undone: {measured['undone']}"
    )
    if peak - rewritten > limit * MEGABYTE:
        console.print(f"[red]missed[/] more than {limit} MB above the tensors that are rewritten", highlight=False)
        raise typer.Exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        typer.run(main)
