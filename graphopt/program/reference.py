"""The reference: a program's graphs run as they are on the runtime of their storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.ir.model import Model
from graphopt.program.program import Program
from graphopt.program.runner import Observe, Runner, RunUnit, Units


def reference_runner(program: Program, observe: Observe | None = None) -> Runner:
    """A runner that uses torch for FX graphs and onnxruntime without optimisations for ONNX graphs."""
    return runner_with(program, unit_runners(program), observe)


def unit_runners(program: Program, *, but: tuple[str, str] | None = None) -> dict[tuple[str, str], RunUnit]:
    """What runs the units of `program` on the runtime of its storage, by body and unit name; `but` one is left out."""
    return {
        (body_name, name): run_unit(unit.model)
        for body_name, body in program.bodies.items()
        for name, unit in body.units()
        if (body_name, name) != but
    }


def runner_with(program: Program, units: Units, observe: Observe | None = None) -> Runner:
    """A runner of `program` whose units are run by what `unit_runners` or `run_unit` made."""
    return Runner(program, units, "torch" if program.storage == "fx" else "numpy", observe)


def run_unit(model: Model) -> RunUnit:
    """A model's outputs for its inputs in order: tensors for an FX model, arrays for an ONNX one."""
    if model.storage == "fx":
        return _run_fx(model)
    from graphopt.verify.execute import model_runner

    return model_runner(model)


def _run_fx(model: Any) -> RunUnit:
    import torch

    main = model.main
    main.module.recompile()
    inputs = list(main.inputs())
    # What a placeholder stands for: a weight, an input, or a constant such as `return_dict=False`.
    slots = [inputs.index(n) if n in inputs else None for n in main.graph.find_nodes(op="placeholder")]
    fixed = [
        main.weights[n].tensor if n in main.weights else n.meta.get("val")
        for n in main.graph.find_nodes(op="placeholder")
    ]

    def run(feeds: Sequence[Any]) -> Sequence[Any]:
        arguments = [value if slot is None else feeds[slot] for slot, value in zip(slots, fixed, strict=True)]
        with torch.no_grad():
            outputs: Sequence[Any] = main.module(*arguments)
            return outputs

    return run
