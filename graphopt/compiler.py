"""`optimize` and `lower`: from a model to a better model of the same kind, and to something that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, overload

from graphopt.errors import GraphoptError, ModelError, PipelineError, RegistryError
from graphopt.ir.load import load_model
from graphopt.ir.model import Model, as_path
from graphopt.job import Job, run_on_model, run_on_program
from graphopt.pipeline.backend import Backend
from graphopt.pipeline.instrument import Instrument
from graphopt.pipeline.pass_ import Pass
from graphopt.pipeline.pipeline import Pipeline, make_passes
from graphopt.pipeline.registry import backends
from graphopt.pipeline.report import Report
from graphopt.pipeline.spec import DEFAULT_PASSES
from graphopt.program.program import Program
from graphopt.verify.budget import Budget
from graphopt.verify.calibration import Calibration
from graphopt.verify.verifier import LEVELS


class Optimized:
    """The result of `optimize`."""

    def __init__(self, model: Model, report: Report) -> None:
        self._model = model
        self.report = report
        """What happened: per pass and rule what was applied, undone and refused, with the evidence. Printable."""

    @property
    def model(self) -> Any:
        """The optimised model in the kind that was given: ModelProto in, ModelProto out. A path gives an
        onnx_ir.Model."""
        return self._model.export()

    def save(self, path: str | Path) -> None:
        """Write the model; see `graphopt.save`."""
        self._model.save(as_path(path))

    def lower(self, backend: str = "onnxruntime", **options: Any) -> Callable[..., Any]:
        """The optimised model as a callable; see `graphopt.lower`."""
        return make_backend(backend).lower(self._model, **options)


class OptimizedProgram:
    """The result of `optimize` on a sampling program. Called as the program is."""

    def __init__(self, program: Program, report: Report) -> None:
        self.program = program
        """The optimised program."""
        self.report = report
        """What happened: per pass, graph and rule what was applied, undone and refused, with the evidence."""

    @property
    def model(self) -> Program:
        """The optimised program: what goes in comes out."""
        return self.program

    def lower(self, backend: str = "onnxruntime", **options: Any) -> Callable[..., Any]:
        """The optimised program compiled; see `Program.lower`."""
        return self.program.lower(backend, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample; see `Program.__call__`."""
        return self.program(*args, **kwargs)


@overload
def optimize(
    model: Program,
    passes: str | Sequence[str | Pass] = ...,
    *,
    target: str | None = None,
    verify: str = "match",
    prove: bool = False,
    budget: Budget | float | None = None,
    calibration: Any = None,
    limit: int | None = None,
    skip: Iterable[str] = (),
    instruments: Sequence[Instrument] = (),
    repro: str | Path | None = None,
) -> OptimizedProgram: ...


@overload
def optimize(
    model: Any,
    passes: str | Sequence[str | Pass] = ...,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    target: str | None = None,
    verify: str = "match",
    prove: bool = False,
    budget: Budget | float | None = None,
    calibration: Any = None,
    limit: int | None = None,
    skip: Iterable[str] = (),
    instruments: Sequence[Instrument] = (),
    repro: str | Path | None = None,
) -> Optimized: ...


def optimize(
    model: Any,
    passes: str | Sequence[str | Pass] = DEFAULT_PASSES,
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    target: str | None = None,
    verify: str = "match",
    prove: bool = False,
    budget: Budget | float | None = None,
    calibration: Any = None,
    limit: int | None = None,
    skip: Iterable[str] = (),
    instruments: Sequence[Instrument] = (),
    repro: str | Path | None = None,
) -> Optimized | OptimizedProgram:
    """Rewrite `model` with `passes`, every application verified on its own and undone alone if it fails.

    Args:
        model: path of an .onnx file, onnx.ModelProto, onnx_ir.Model, onnx_graphsurgeon.Graph, torch.nn.Module,
            torch.export.ExportedProgram, torch.fx.GraphModule, what `graphopt.load` or this function returns, or a
            sampling program (`graphopt.Sampler`), of which graph passes rewrite every graph. Never modified.
        passes: pipeline text, or a sequence of texts and pass objects; "clean-up,fuse-conv-bn,clean-up" unless given.
        example_inputs: inputs to trace a torch module with: a tuple of positional ones, a dict of keyword ones, or
            a pair of both. For an ONNX model, a dict of arrays to run end-to-end checks on.
        dynamic_shapes: as torch.export takes them.
        target: name of the backend that the result is for. Without it only standard ops are emitted. A program is
            first converted to the storage that the target runs.
        verify: "match" (every application in isolation), "model" (that and one run of the whole model, with
            bisection if it fails), "structure" (types only) or "off".
        prove: whether what verification lets through is also proved by algebra, where it can be; see
            `graphopt.rewrite.contract.Proof`. Only with verify="match" or "model".
        budget: what approximate passes may spend together: a `graphopt.Budget`, or the limit of the relative error
            (of a program: of the relative mean square error of its final samples). They never run without one.
        calibration: real inputs, or a `graphopt.Calibration` of them. Approximate passes tune on one part of them and
            are judged on the other; the end-to-end check of verify="model" runs the first batch. For a program,
            dicts of its conditions, with "noise" or without; None draws noise and conditions from a seed.
        limit: keep at most this many applications.
        skip: ids of applications to leave out ("fuse-conv-bn/conv-batch-norm#3").
        instruments: observers of the pipeline.
        repro: folder in which every undone application leaves a folder that reproduces it.

    Raises:
        ModelError, UnsupportedError, PipelineError, RegistryError, MissingExtraError: see `graphopt.errors`.
        RuleError: a pass is broken, as one that leaves the model beyond the budget is.
        VerificationError: with verify="model", the result as a whole does not agree; the message names the
            application that bisection found.
    """
    model = _model_of(model)
    skip = check_arguments(verify, prove, limit, skip, instruments, repro)
    job = Job(
        Pipeline(make_passes(passes), instruments),
        verify,
        target,
        make_backend(target).features if target is not None else frozenset(),
        Budget.of(budget, "trajectory-mse" if isinstance(model, Program) else "relative-error"),
        Calibration.of(calibration),
        frozenset(skip),
        repro,
        prove,
    )
    if isinstance(model, Program):
        _refuse_shapes(dynamic_shapes)
        return OptimizedProgram(*run_on_program(model, job, limit))

    def load_fresh() -> Model:
        taken = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
        return taken.clone() if taken is model else taken

    result, report = run_on_model(load_fresh, describe_source(model), example_inputs, job, limit)
    report.notes[:0] = _notes_on(model)
    return Optimized(result, report)


def check_arguments(verify: Any, prove: Any, limit: Any, skip: Any, instruments: Any, repro: Any) -> list[str]:
    """Raises PipelineError for what `optimize` cannot take. Returns the ids to leave out."""
    if verify not in LEVELS:
        raise PipelineError(f"verify={verify!r}: expected one of {', '.join(LEVELS)}")
    if not isinstance(prove, bool):
        raise PipelineError(f"prove={prove!r}: expected True or False")
    if prove and verify in ("off", "structure"):
        raise PipelineError(f"prove=True with verify={verify!r}: a proof stands beside executed checks; use 'match'")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, Integral) or limit < 0):
        raise PipelineError(f"limit={limit!r}: expected how many applications to keep at most, 0 or more, or None")
    ids = None if isinstance(skip, str) or not isinstance(skip, Iterable) else list(skip)
    if ids is None or not all(isinstance(i, str) for i in ids):
        raise PipelineError(
            f"skip={skip!r}: expected a list of ids of applications, as 'fuse-conv-bn/conv-batch-norm#3', of the report"
        )
    if not isinstance(instruments, Sequence) or not all(isinstance(i, Instrument) for i in instruments):
        raise PipelineError(f"instruments={instruments!r}: expected a list of graphopt.pipeline.instrument.Instrument")
    if repro is not None and not isinstance(repro, str | PathLike):
        raise PipelineError(f"repro={repro!r}: expected the path of a folder, or None")
    if repro is not None and Path(repro).exists() and not Path(repro).is_dir():
        raise PipelineError(f"repro={str(repro)!r}: expected the path of a folder, got a file; choose another name")
    return ids


def _model_of(given: Any) -> Any:
    """`given`, or of what `optimize` returned the model."""
    if isinstance(given, OptimizedProgram):
        return given.program
    return given._model if isinstance(given, Optimized) else given


def _refuse_shapes(dynamic_shapes: Any) -> None:
    """Raises ModelError if they are given for a sampling program."""
    if dynamic_shapes is not None:
        raise ModelError(
            f"dynamic_shapes={dynamic_shapes!r}: the sizes of a sampling program are fixed, those of the "
            "example_inputs of graphopt.Sampler; leave them out"
        )


def _no_program(model: Any) -> Any:
    """`model`; raises ModelError if it is a sampling program."""
    if isinstance(model, Program):
        raise ModelError(
            "a sampling program is no model: its graphs are in `bodies`, dump() shows it, and "
            "program.lower('onnxruntime').save(path) writes the whole loop"
        )
    return model


def make_backend(name: str) -> Backend:
    """The backend registered under `name`.

    Raises:
        PipelineError: unknown name; RegistryError: its plug-in cannot be loaded, or is no backend.
    """
    if not isinstance(name, str):
        raise PipelineError(f"{name!r} is no name of a backend; expected one of {', '.join(backends())}")
    found = backends().get(name)
    owner = backends().owner(name)
    try:
        backend = found() if isinstance(found, type) else found
    except GraphoptError:
        raise  # says what to do already
    except Exception as error:  # whatever a plug-in raises
        raise RegistryError(f"backend {name!r}, {owner}, cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(backend, Backend):
        raise RegistryError(
            f"{name!r}, {owner}, is not a backend: expected a subclass of graphopt.Backend, got {found!r}"
        )
    return backend


def lower(
    model: Any,
    backend: str = "onnxruntime",
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Callable[..., Any]:
    """`model` as a callable on `backend`: it takes and returns what the original took and returned.

    An ONNX model becomes a callable that takes arrays by position or by input name and returns the list of outputs;
    a torch model one with the module's own signature, tensors in and out.

    Raises:
        UnsupportedError: the backend has no kernel for an op, whose name is in the message, or takes no such model.
        PipelineError: an unknown backend, or an option or value that it does not have.
        ModelError, MissingExtraError, RegistryError: see `graphopt.errors`.
    """
    model = _model_of(model)
    if isinstance(model, Program):
        _refuse_shapes(dynamic_shapes)
        return model.lower(backend, **options)
    taken = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return make_backend(backend).lower(taken, **options)


def load(source: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> Model:
    """A model ready to be dumped, optimised or saved; see `optimize` for what `source` may be.

    Raises:
        ModelError, UnsupportedError, MissingExtraError: see `graphopt.ir.load.load_model`.
    """
    return load_model(_no_program(_model_of(source)), example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)


def save(model: Any, path: str | Path) -> None:
    """Write `model` (a model that `optimize` takes without example inputs, or what it returns for one) to `path`: an
    ONNX model as .onnx, a torch model as `torch.export.save` does.

    The file is written under a temporary name and moved into place; the weights of an ONNX model go to `<path>.data`
    beside it when the file would pass 2 GB, or to `<path>.1.data` if `<path>.data` is there and another model's.

    Raises:
        ModelError: no such model, or a torch model is to be an .onnx file.
    """
    place = as_path(path)
    load_model(_no_program(_model_of(model))).save(place)


def _notes_on(source: Any) -> list[str]:
    """What is to be said of a model before anything else: that it is one in training."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(source, torch.nn.Module):
        return []
    kinds = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
    training = [name for name, part in source.named_modules() if isinstance(part, kinds) and part.training]
    if not training:
        return []
    return [f"{training[0]!r} is in training mode and stays so: call eval() on the module before it is optimised"]


def describe_source(source: Any) -> str:
    """A short name for a model in reports."""
    if isinstance(source, str | Path):
        return Path(source).name
    name = getattr(getattr(source, "graph", None), "name", None)
    return name if isinstance(name, str) and name else type(source).__name__
