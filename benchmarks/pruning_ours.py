"""graphopt's structured pruning on one tiny model.

    python -m benchmarks.pruning_ours MODEL

Prints one line of JSON for each step that begins, and the fields of an `Outcome` for the outcome.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

import graphopt
from benchmarks.pruning_inputs import Example, TinyModel
from benchmarks.pruning_models import find
from benchmarks.pruning_onnx import Compared, compare, exported, root_cause
from benchmarks.sharpen import sharpen
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import FreeAxis, analyse, free_axes
from graphopt.axes.terms import Mask
from graphopt.ir.fx.run import compute
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.journal import Journal
from graphopt.verify.compare import relative_error

ALLOWED = 1e-10
"""Relative error between masked and pruned, in float64."""
HALVES = 8
"""Choices of what stays, of which one at the least must differ from the same shifted by one: behind a relu, few units
may all be silent."""


@dataclass(frozen=True)
class Outcome:
    """What pruning found in one model. Weights are sharpened (`benchmarks.sharpen`), arithmetic is float64."""

    nodes: int
    """Of the graph that is analysed."""
    seconds: float
    """Processor time of the analysis: from the graph to its axes."""
    axes: int
    """Axes that may be pruned. Each is pruned alone, to half; what came of that adds up to this number:"""
    exact: int
    """The pruned model computes what the original does with zeros in place of what was removed."""
    idle: int
    """Exact ones on which the outputs do not depend: with zeros in all of their slices they stay the same."""
    coupled: int
    """A norm over the axis makes the two differ; the pruned model runs and gives outputs of the same shapes."""
    wrong: int
    """Neither: another result, or none."""
    half_runs: bool
    """All axes pruned to half at once: the model runs and gives outputs of the same shapes."""
    half_parameters: int
    """What is left of `parameters` then."""
    parameters: int
    onnx: Compared | None
    """The same axes in the ONNX file that torch.onnx.export makes; None if it makes none."""
    details: tuple[str, ...] = ()
    """One line for each axis that went wrong, for what kept all at once from running, and for each axis that the torch
    model or the ONNX file has alone."""


def measure(model: TinyModel) -> Outcome:
    """Analyse and prune `model`."""
    module, example = model.build()
    loaded = graphopt.load(sharpen(module), example_inputs=example)
    seconds = min(_analysis_seconds(loaded) for _ in range(3))
    parameters = sum(size for _, size, _ in loaded.weights())
    inputs = [value.astype(np.float64) if value.dtype.kind == "f" else value for value in loaded.examples() or ()]
    counts, details = Counter({"exact": 0, "coupled": 0, "wrong": 0, "idle": 0}), []
    found = analyse(loaded.main)
    for axis in found:
        result, reason = _alone(loaded, axis.name, inputs)
        counts[result] += 1
        if reason:
            details.append(f"{axis.name} ({axis.size}): {reason}")
    half_runs, half_parameters, reasons = _all_by_half(loaded, inputs, parameters)
    onnx, differences = _beside_onnx(loaded, module, example)
    return Outcome(
        nodes=sum(1 for _ in loaded.main.nodes()), seconds=seconds, axes=len(found),
        exact=counts["exact"] + counts["idle"], idle=counts["idle"], coupled=counts["coupled"], wrong=counts["wrong"],
        half_runs=half_runs, half_parameters=half_parameters, parameters=parameters, onnx=onnx,
        details=(*details, *reasons, *differences),
    )  # fmt: skip


def _beside_onnx(loaded: Model, module: torch.nn.Module, example: Example) -> tuple[Compared | None, tuple[str, ...]]:
    try:
        file, notes = exported(module, example)
    except Exception as error:  # the exporter wraps whatever goes wrong in several classes of its own
        return None, (f"ONNX: not exported: {root_cause(error)}",)
    found, differences = compare(loaded, file)
    return found, (*notes, *differences)


def _analysis_seconds(model: Model) -> float:
    started = time.process_time()
    analyse(model.main)
    return time.process_time() - started


def half(size: int, seed: int = 0) -> Mask:
    """Half of the indices, one at the least, drawn."""
    keep = np.zeros(size, bool)
    keep[np.random.default_rng([seed, size]).permutation(size)[: max(1, size // 2)]] = True
    return keep


def _alone(model: Model, name: str, inputs: Sequence[Array]) -> tuple[str, str]:
    """Prune one axis of a copy; what it is, and what is wrong with it. Where other slices could have gone with the same
    result, other halves are tried."""
    for seed in range(HALVES):
        found, reason = _to_half(model.copy(), name, inputs, seed)
        if found != "unseen":
            return found, reason
    copy = model.copy()
    axes, axis = _find(copy, name)
    without = zeroed(copy, axes, axis, np.zeros(axis.size, bool))
    idle = distance(run_float64(copy, inputs), without(inputs)) <= ALLOWED
    return ("idle", "") if idle else ("wrong", "a wrong choice would not be seen")


def _find(model: Model, name: str) -> tuple[Axes, FreeAxis]:
    axes = Axes(model.main)
    return axes, next(axis for axis in free_axes(axes) if axis.name == name)


def _to_half(model: Model, name: str, inputs: Sequence[Array], seed: int) -> tuple[str, str]:
    axes, axis = _find(model, name)
    keep = half(axis.size, seed)
    zeros = zeroed(model, axes, axis, keep)
    shifted = zeroed(model, axes, axis, np.roll(keep, 1))
    try:
        shorten_checked(axes, axis, keep, Journal(model.main))
    except (Rejected, CannotEmit) as error:
        return "wrong", str(error)
    pruned = run_float64(model, inputs)
    if [p.shape for p in pruned] != [z.shape for z in zeros(inputs)]:
        return "wrong", "other shapes"
    if not axis.exact:
        return "coupled", ""
    error = distance(zeros(inputs), pruned)
    if not error <= ALLOWED:
        return "wrong", f"differs from the masked original by {error:.1e}"
    return ("exact" if distance(shifted(inputs), pruned) > ALLOWED else "unseen"), ""


def zeroed(model: Model, axes: Axes, axis: FreeAxis, keep: Mask) -> Callable[[Sequence[Array]], list[Array]]:
    """The model as it is now, in float64 on torch, with zeros in what goes."""
    graph: Any = model.main
    weights = {node: _double(weight.tensor) for node, weight in graph.weights.items()}
    for member in axis.members:
        mask = torch.from_numpy(axes.space.mask(axes.dims(member.value)[member.dim], {axis.leaf: keep}))
        shape = [-1 if i == member.dim else 1 for i in range(weights[member.value].ndim)]
        weights[member.value] = weights[member.value] * mask.reshape(shape)
    frozen = model.copy()
    matched = dict(zip(graph.weights, frozen.main.weights, strict=True))  # type: ignore[attr-defined]
    given = {matched[node]: tensor for node, tensor in weights.items()}
    return lambda inputs: _computed(frozen, given, inputs)


def run_float64(model: Model, inputs: Sequence[Array]) -> list[Array]:
    """A model's outputs, in float64 on torch."""
    graph: Any = model.main
    return _computed(model, {node: _double(weight.tensor) for node, weight in graph.weights.items()}, inputs)


def _computed(model: Model, weights: Mapping[Any, Any], inputs: Sequence[Array]) -> list[Array]:
    graph: Any = model.main
    fed = dict(zip(graph.inputs(), map(torch.from_numpy, inputs), strict=True))
    with torch.no_grad(), Doubling(), made_in_float64():
        return [o.double().numpy() for o in compute(graph, {**weights, **fed})]


@contextmanager
def made_in_float64() -> Iterator[None]:
    """Divided integers, and whatever else names no dtype, are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Doubling(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped for mypy
    """Lets casts to float32, and what is made in float32, be float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*[torch.float64 if a is torch.float32 else a for a in args], **wide)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.double() if tensor.is_floating_point() else tensor


def distance(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """Largest relative error of any output."""
    return max((relative_error(e, g) for e, g in zip(expected, got, strict=True)), default=0.0)


def _all_by_half(model: Model, inputs: Sequence[Array], parameters: int) -> tuple[bool, int, tuple[str, ...]]:
    """Every axis by half, one after the other."""
    copy = model.copy()
    axes = Axes(copy.main)
    shapes = [o.shape for o in run_float64(model, inputs)]
    try:
        for axis in free_axes(axes):
            shorten_checked(axes, axis, half(axis.size), Journal(copy.main))
        copy.refresh()
        runs = [o.shape for o in run_float64(copy, inputs)] == shapes
    except (Rejected, CannotEmit, RuntimeError) as error:
        return False, parameters, (f"all by half: {error}",)
    return runs, sum(size for _, size, _ in copy.weights()), ()


def main(model: str) -> None:
    """Print what became of MODEL."""
    print(json.dumps({"model": model, "step": "run"}), flush=True)
    print(json.dumps({"model": model, **asdict(measure(find(model)))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
