"""Torch-Pruning, with its defaults, on one tiny model.

    python -m benchmarks.torch_pruning_peer MODEL SECONDS

Asks for half of the channels by group magnitude, output layers left out, and runs what comes back. Prints one line of
JSON for each step that begins, and one for the outcome: a process that is stopped was at the step printed last. Source:
Fang et al. 2023, DepGraph: Towards Any Structural Pruning; github.com/VainF/Torch-Pruning.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.pruning_inputs import Example
from benchmarks.pruning_models import find

RATIO = 0.5
_CONTRACTING = (nn.Linear, nn.modules.conv._ConvNd, nn.LSTM)
"""What Torch-Pruning takes for the root of a group, unless told otherwise."""


def output_layers(module: nn.Module, example: Example) -> list[nn.Module]:
    """The layers whose output channels reach an output without another such layer between: pruning them would change
    the shape of the output."""
    made: dict[Any, nn.Module] = {}

    def remember(layer: nn.Module, _: Any, result: Any) -> None:
        made.update((t.grad_fn, layer) for t in _tensors(result))

    layers = [m for m in module.modules() if isinstance(m, _CONTRACTING)]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    args, kwargs = example
    pending = [t.grad_fn for t in _tensors(module(*args, **kwargs))]
    for hook in hooks:
        hook.remove()
    found: dict[nn.Module, None] = {}
    seen = set()
    while pending:
        step = pending.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in made:
            found[made[step]] = None
        else:
            pending.extend(earlier for earlier, _ in step.next_functions)
    return list(found)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def prune(module: nn.Module, example: Example, begin: Callable[[str], None]) -> dict[str, Any]:
    """Prune `module` in place; `begin` is told the name of each step. Raises whatever Torch-Pruning or the pruned
    model raises."""
    import torch_pruning

    args, kwargs = example
    before = _size(module)
    shapes = [t.shape for t in _tensors(module(*args, **kwargs))]
    ignored = output_layers(module, example)
    begin("build")
    pruner = torch_pruning.pruner.BasePruner(
        module,
        kwargs or args,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
    )
    begin("prune")
    pruner.step()
    begin("forward")
    found = [t.shape for t in _tensors(module(*args, **kwargs))]
    if found != shapes:
        raise ValueError(f"outputs of {[list(s) for s in found]} instead of {[list(s) for s in shapes]}")
    after = _size(module)
    return {"result": "nothing pruned" if after == before else "ok", "parameters": [before, after]}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def processor_limit(seconds: int) -> Iterator[None]:
    """The kernel ends this process after `seconds` more of processor time; code that hangs in C does not matter."""
    limit = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main(model: str, seconds: str) -> None:
    """Print what became of MODEL within SECONDS of processor time: "result" is "ok", "nothing pruned", or the step that
    failed, with the reason."""
    torch.set_num_threads(1)
    module, example = find(model).build()
    step = "run"

    def begin(name: str) -> None:
        nonlocal step
        step = name
        print(json.dumps({"model": model, "step": name}), flush=True)

    started = time.process_time()
    with processor_limit(int(seconds)):
        try:
            outcome = prune(module, example, begin)
        except Exception as error:  # what a tool raises is what is to be found out
            lines = str(error).strip().splitlines() or [""]
            outcome = {"result": step, "detail": f"{type(error).__name__}: {lines[0]}"}
    print(json.dumps({"model": model, **outcome, "seconds": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
