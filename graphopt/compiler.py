"""`optimize` and `lower`: from a model to a better model of the same kind, and to something that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

from graphopt.errors import PipelineError, VerificationError
from graphopt.ir.load import load_model
from graphopt.ir.model import Model
from graphopt.pipeline.backend import Backend
from graphopt.pipeline.context import Context, RunContext
from graphopt.pipeline.instrument import Instrument
from graphopt.pipeline.pass_ import Pass
from graphopt.pipeline.pipeline import Pipeline, make_passes
from graphopt.pipeline.registry import backends
from graphopt.pipeline.report import Report
from graphopt.program.optimize import Contexts, ProgramCheck, run_passes
from graphopt.program.program import Program
from graphopt.rewrite.change import Verifier
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.approximation import Account, ModelApproximation, Reference
from graphopt.verify.bisect import first_bad
from graphopt.verify.budget import Budget
from graphopt.verify.calibration import Calibration, inputs_of
from graphopt.verify.verifier import LEVELS, MatchVerifier, Structural
from graphopt.verify.whole import WholeCheck


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
        self._model.save(Path(path))

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
    budget: Budget | float | None = None,
    calibration: Any = None,
    limit: int | None = None,
    skip: Iterable[str] = (),
    instruments: Sequence[Instrument] = (),
    repro: str | Path | None = None,
) -> Optimized: ...


def optimize(
    model: Any,
    passes: str | Sequence[str | Pass] = ("fuse-conv-bn", "clean-up"),
    *,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    target: str | None = None,
    verify: str = "match",
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
            torch.export.ExportedProgram, torch.fx.GraphModule, or a sampling program (`graphopt.Sampler`), of which
            graph passes rewrite every graph. Never modified.
        passes: pipeline text ("fuse-conv-bn,clean-up"), or a sequence of texts and pass objects.
        example_inputs: inputs to trace a torch module with: a tuple of positional ones, a dict of keyword ones, or
            a pair of both. For an ONNX model, a dict of arrays to run end-to-end checks on.
        dynamic_shapes: as torch.export takes them.
        target: name of the backend that the result is for. Without it only standard ops are emitted. A program is
            first converted to the storage that the target runs.
        verify: "match" (every application in isolation), "model" (that and one run of the whole model, with
            bisection if it fails), "structure" (types only) or "off".
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
        ModelError, PipelineError, RegistryError, MissingExtraError: see `graphopt.errors`.
        RuleError: a pass is broken, as one that leaves the model beyond the budget is.
        VerificationError: with verify="model", the result as a whole does not agree; the message names the
            application that bisection found.
    """
    if verify not in LEVELS:
        raise PipelineError(f"verify={verify!r}: expected one of {', '.join(LEVELS)}")
    pipeline = Pipeline(make_passes(passes), instruments)
    agreed = Budget.of(budget, "trajectory-mse" if isinstance(model, Program) else "relative-error")
    data = Calibration.of(calibration)
    features = make_backend(target).features if target is not None else frozenset()
    shared: dict[str, Any] = {
        "verify": verify, "target": target, "features": features, "budget": agreed, "calibration": data,
    }  # fmt: skip

    def verifier() -> Verifier:
        return make_verifier(verify, str(pipeline), repro)

    def load_fresh() -> Model:
        return load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)

    def attempt_model(most: int | None, observers: Sequence[Instrument]) -> tuple[Model, Report]:
        fresh = load_fresh()
        if agreed is not None and data is not None and not references:
            references.append(Reference(fresh, agreed, data))
        approximate = partial(ModelApproximation, Account(agreed), references[0]) if agreed and references else None
        context = Context(fresh, verifier(), Ledger(most, skip), approximate=approximate, **shared)
        return fresh, Pipeline(pipeline.passes, observers).run(context, describe_source(model), verify)

    def attempt_program(most: int | None, observers: Sequence[Instrument]) -> tuple[Program, Report]:
        ledger, judge = Ledger(most, skip), verifier()
        contexts = Contexts(
            lambda: RunContext(judge, ledger, **shared), lambda unit: Context(unit, judge, ledger, **shared)
        )
        converted = model if target is None else model.convert(target)
        return run_passes(Pipeline(pipeline.passes, observers), converted, contexts, verify)

    references: list[Reference] = []
    if isinstance(model, Program):
        program, report = attempt_program(limit, instruments)
        if verify == "model":
            _check_whole(ProgramCheck(model), program, report, attempt_program)
        return OptimizedProgram(program, report)
    result, report = attempt_model(limit, instruments)
    if verify == "model" and report.approximated:
        _check_whole(references[0], result, report, attempt_model)
    elif verify == "model":
        original = load_fresh()
        first = None if data is None else list(data.batches(inputs_of(original))[0].values())
        _check_whole(WholeCheck(original, example_inputs, first), result, report, attempt_model)
    return Optimized(result, report)


def _check_whole(
    check: Any,
    result: Any,
    report: Report,
    attempt: Callable[[int | None, Sequence[Instrument]], tuple[Any, Report]],
) -> None:
    """Compare the result end to end; if it fails, find the application at fault.

    Args:
        check: has `compare(result)`, which returns a verdict: one of rounding, or of the budget where approximate
            passes changed something.
        attempt: runs the pipeline again with a limit on applications.
    """
    verdict = check.compare(result)
    report.notes.append(f"end to end: {verdict}")
    if verdict.ok:
        return
    kept = len(report.kept)
    bad = first_bad(kept, lambda k: check.compare(attempt(k, ())[0]).ok)
    culprit = report.kept[bad - 1].id if bad is not None else "no single application"
    raise VerificationError(
        f"the optimised model does not agree with the original end to end: {verdict}. Bisection over {kept} "
        f"applications found {culprit}. Run again with skip=[{culprit!r}] to leave it out, and with repro=DIR to keep "
        "what reproduces it"
    )


def make_verifier(level: str, pipeline: str, repro: str | Path | None) -> Verifier:
    """The verifier for a level."""
    if level in ("match", "model"):
        verifier: Verifier = MatchVerifier()
        if repro is not None:
            from graphopt.verify.repro import Recorded

            verifier = Recorded(verifier, Path(repro), pipeline)
        return verifier
    return Structural("types" if level == "structure" else "none")


def make_backend(name: str) -> Backend:
    """The backend registered under `name`.

    Raises:
        PipelineError: unknown name; RegistryError: its plug-in cannot be loaded.
    """
    found = backends().get(name)
    backend: Backend = found() if isinstance(found, type) else found
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
        UnsupportedError: the backend has no kernel for an op; the message names it.
    """
    if isinstance(model, Optimized | OptimizedProgram | Program):
        return model.lower(backend, **options)
    taken = load_model(model, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)
    return make_backend(backend).lower(taken, **options)


def load(source: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> Model:
    """A model ready to be dumped, optimised or saved; see `optimize` for what `source` may be."""
    return load_model(source, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes)


def save(model: Any, path: str | Path) -> None:
    """Write `model` (anything that `optimize` takes or returns) to `path`.

    The file is written under a temporary name and moved into place; weights go to `<path>.data` beside it when the
    file would pass 2 GB.
    """
    if isinstance(model, Optimized):
        model.save(path)
    else:
        load_model(model).save(Path(path))


def describe_source(source: Any) -> str:
    """A short name for a model in reports."""
    if isinstance(source, str | Path):
        return Path(source).name
    name = getattr(getattr(source, "graph", None), "name", None)
    return name if isinstance(name, str) and name else type(source).__name__
