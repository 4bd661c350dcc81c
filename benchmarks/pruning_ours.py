"""graphopt's structured pruning on one tiny model.

    python -m benchmarks.pruning_ours MODEL

Prints one line of JSON for each step that begins, and the fields of an `Outcome` for the outcome.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from benchmarks.pruning_inputs import TinyModel
from benchmarks.pruning_models import find


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
    coupled: int
    """A norm over the axis makes the two differ; the pruned model runs and gives outputs of the same shapes."""
    wrong: int
    """Neither: another result, or none."""
    untried: int
    """Left out, because a model has very many."""
    half_runs: bool
    """All axes pruned to half at once: the model runs and gives outputs of the same shapes."""
    half_parameters: int
    """What is left of `parameters` then."""
    parameters: int
    details: tuple[str, ...] = ()
    """One line for each axis that went wrong, and for what kept all at once from running."""


def measure(model: TinyModel) -> Outcome:
    """Analyse and prune `model`."""
    raise NotImplementedError(f"{model.name}: the pass 'prune' is not measured yet; run with --no-ours")


def main(model: str) -> None:
    """Print what became of MODEL."""
    print(json.dumps({"model": model, "step": "run"}), flush=True)
    print(json.dumps({"model": model, **asdict(measure(find(model)))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
