"""graphopt: a compiler for inference graphs whose every rewrite is verified.

    import graphopt

    result = graphopt.optimize("model.onnx", passes=["fuse-conv-bn", "clean-up"])
    print(result.report)
    result.save("model.optimised.onnx")

Names are imported when they are first used, so that `import graphopt` is quick and needs no runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.compiler import Optimized, OptimizedProgram, load, lower, optimize, save
    from graphopt.errors import (
        GraphoptError,
        InputError,
        MissingExtraError,
        ModelError,
        PipelineError,
        RegistryError,
        RuleError,
        UnsupportedError,
        VerificationError,
    )
    from graphopt.ir.graph import Graph
    from graphopt.ir.model import Model
    from graphopt.pipeline.backend import Backend
    from graphopt.pipeline.pass_ import GraphPass, Pass, ProgramPass, RulePass
    from graphopt.pipeline.registration import register
    from graphopt.pipeline.report import Report
    from graphopt.program.experts import Experts
    from graphopt.program.guidance import Guidance
    from graphopt.program.program import Program
    from graphopt.program.sampler import Sampler
    from graphopt.program.schedule import Schedule
    from graphopt.rewrite.contract import Approximate, Exact, Rounding
    from graphopt.rewrite.pattern import any_, any_of, const, many, opt
    from graphopt.rewrite.rule import Rule, rule
    from graphopt.verify.budget import Budget
    from graphopt.verify.calibration import Calibration
    from graphopt.verify.metrics import Frechet

_HOME = {
    "graphopt.compiler": ("Optimized", "OptimizedProgram", "load", "lower", "optimize", "save"),
    "graphopt.errors": (
        "GraphoptError",
        "InputError",
        "MissingExtraError",
        "ModelError",
        "PipelineError",
        "RegistryError",
        "RuleError",
        "UnsupportedError",
        "VerificationError",
    ),
    "graphopt.ir.graph": ("Graph",),
    "graphopt.ir.model": ("Model",),
    "graphopt.pipeline.backend": ("Backend",),
    "graphopt.pipeline.pass_": ("GraphPass", "Pass", "ProgramPass", "RulePass"),
    "graphopt.pipeline.registration": ("register",),
    "graphopt.pipeline.report": ("Report",),
    "graphopt.program.experts": ("Experts",),
    "graphopt.program.guidance": ("Guidance",),
    "graphopt.program.program": ("Program",),
    "graphopt.program.sampler": ("Sampler",),
    "graphopt.program.schedule": ("Schedule",),
    "graphopt.rewrite.contract": ("Approximate", "Exact", "Rounding"),
    "graphopt.rewrite.pattern": ("any_", "any_of", "const", "many", "opt"),
    "graphopt.rewrite.rule": ("Rule", "rule"),
    "graphopt.verify.budget": ("Budget",),
    "graphopt.verify.calibration": ("Calibration",),
    "graphopt.verify.metrics": ("Frechet",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Approximate",
    "Backend",
    "Budget",
    "Calibration",
    "Exact",
    "Experts",
    "Frechet",
    "Graph",
    "GraphPass",
    "GraphoptError",
    "Guidance",
    "InputError",
    "MissingExtraError",
    "Model",
    "ModelError",
    "Optimized",
    "OptimizedProgram",
    "Pass",
    "PipelineError",
    "Program",
    "ProgramPass",
    "RegistryError",
    "Report",
    "Rounding",
    "Rule",
    "RuleError",
    "RulePass",
    "Sampler",
    "Schedule",
    "UnsupportedError",
    "VerificationError",
    "any_",
    "any_of",
    "const",
    "load",
    "lower",
    "many",
    "opt",
    "optimize",
    "register",
    "rule",
    "save",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if name == "diffusers":
        return importlib.import_module("graphopt.diffusers")
    if module is None:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
