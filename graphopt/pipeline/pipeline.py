"""Running passes one after the other on a model, observed by instruments and written into a report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from graphopt.errors import GraphoptError, PipelineError, RuleError
from graphopt.ir.model import Model
from graphopt.pipeline.context import Context, RunContext
from graphopt.pipeline.flops import count_flops
from graphopt.pipeline.instrument import Instrument, model_fingerprint
from graphopt.pipeline.pass_ import GraphPass, Pass, RulePass, instantiate
from graphopt.pipeline.registry import Registry
from graphopt.pipeline.registry import passes as registered_passes
from graphopt.pipeline.report import PassRecord, Report, Size, Spending
from graphopt.pipeline.spec import parse_pipeline


def make_passes(passes: str | Sequence[str | Pass], registry: Registry | None = None) -> list[Pass]:
    """Passes from pipeline text, pass objects, or a mixture of both.

    Raises:
        PipelineError: unknown pass, bad option, or something that is not a pass.
    """
    registry = registry or registered_passes()
    if isinstance(passes, Mapping | set | frozenset | bytes):
        raise PipelineError(
            f"passes is a {type(passes).__name__}: expected text or passes in order, with options in braces, as in "
            "'fuse-conv-bn,clean-up{rounds=2}' or ['fuse-conv-bn', 'clean-up{rounds=2}']"
        )
    made: list[Pass] = []
    for item in passes if isinstance(passes, Iterable) and not isinstance(passes, str) else [passes]:
        if isinstance(item, Pass):
            if not isinstance(getattr(item, "name", None), str):
                raise PipelineError(f"{type(item).__qualname__} has no name; write name: ClassVar[str] = 'its-name'")
            made.append(item)
        elif isinstance(item, str):
            made += [instantiate(spec, registry) for spec in parse_pipeline(item)]
        else:
            raise PipelineError(
                f"a pass is given as text or as an object, not as {type(item).__name__}: {item!r}; "
                "write passes=['clean-up'] or passes=[CleanUp()]"
            )
    return made


class Pipeline:
    """A sequence of passes and those who watch them."""

    def __init__(self, passes: Sequence[Pass], instruments: Sequence[Instrument] = ()) -> None:
        self.passes = tuple(passes)
        self.instruments = tuple(instruments)

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    def run(self, context: Context, name: str, verify: str) -> Report:
        """Run every pass on `context.model`.

        Raises:
            PipelineError: a pass requires a property that nothing before it ensures.
            PipelineError: an approximate pass without a budget or without calibration data.
            RuleError: a pass changed the model without an application to show for it, or left it beyond the budget.
        """
        report = Report(model=name, pipeline=str(self), verify=verify)
        started = time.perf_counter()
        self.check_order(context.model.storage)
        watched = _Watched(context.model, self.passes)
        for instrument in self.instruments:
            instrument.enter_pipeline(watched)
        try:
            for pass_ in self.passes:
                if all([i.should_run(pass_, context.model) for i in self.instruments]):
                    report.passes.append(self.run_pass(pass_, context))
                else:
                    report.notes.append(f"{pass_} was held back by an instrument")
        finally:
            for instrument in self.instruments:
                instrument.exit_pipeline(watched)
        report.seconds = time.perf_counter() - started
        return report

    def run_pass(self, pass_: Pass, context: Context) -> PassRecord:
        """Run one pass on `context.model`, watched by the instruments.

        Raises:
            PipelineError: an approximate pass without a budget or without calibration data.
            RuleError: the pass changed the model without an application to show for it, or left it beyond the budget.
        """
        model = context.model
        for instrument in self.instruments:
            instrument.before_pass(pass_, model)
        before, fingerprint = size_of(model), model_fingerprint(model)
        context.open_pass(pass_.name)
        kept = context.ledger.kept
        started = time.perf_counter()
        with raising(pass_):
            _run(pass_, context)
        if context.ledger.kept == kept and model_fingerprint(model) != fingerprint:
            raise RuleError(
                f"pass {pass_.name} changed the model and reported no change; it must edit through the journal"
            )
        model.refresh()
        spending = _spending_of(pass_, context, kept)
        record = record_of(pass_, context, before, size_of(model), started)
        record.spending = spending
        for instrument in self.instruments:
            instrument.after_pass(pass_, model, record)
        return record

    def check_order(self, storage: str) -> None:
        """Raise PipelineError if a pass requires a property that nothing before it ensures."""
        properties = {storage}
        for pass_ in self.passes:
            missing = [r for r in pass_.requires if r not in properties]
            if missing:
                raise PipelineError(
                    f"{pass_.name} requires {missing[0]!r}, which no pass before it ensures; properties at that point: "
                    f"{', '.join(sorted(properties))}"
                )
            properties.update(pass_.ensures)


@contextmanager
def raising(pass_: Pass) -> Iterator[None]:
    """What a pass raises that is no error of graphopt's is a RuleError that names the pass."""
    try:
        yield
    except GraphoptError:
        raise
    except Exception as error:
        raise RuleError(f"pass {pass_.name} raised {type(error).__name__}: {error}") from error


def _run(pass_: Pass, context: Context) -> None:
    if isinstance(pass_, RulePass):
        context.run_rules(pass_.rules())
    elif isinstance(pass_, GraphPass):
        pass_.run(context)
    else:
        raise PipelineError(
            f"{pass_.name} works on sampling programs, and this is a graph; build one with graphopt.Sampler"
        )


def _spending_of(pass_: Pass, context: Context, kept: int) -> Spending | None:
    """What an approximate pass has spent of the budget, by the pipeline's own measure; None for other passes.

    Raises:
        RuleError: the pass leaves a model that is beyond the budget.
    """
    opened = context.opened
    if opened is None:
        return None
    changed = context.ledger.kept != kept
    opened.finish(context.model if changed else None, context.ledger.kept)
    if context.approximated and not opened.spent <= opened.limit:
        said = "has not measured" if opened.settled is None else f"settled on {opened.settled:.3g}"
        raise RuleError(
            f"pass {pass_.name} leaves {opened.metric} at {opened.spent:.3g} on held-out data, above the limit of "
            f"{opened.limit:.3g}, and {said}; an approximate pass must keep only what "
            "context.approximation(self).measure allows"
        )
    return Spending(opened.metric, opened.limit, opened.before, opened.spent, context.approximated)


def record_of(pass_: Pass, context: RunContext, before: Size, after: Size, started: float) -> PassRecord:
    """What `pass_`, which has just run, left in its context; `started` is of `time.perf_counter`."""
    return PassRecord(
        text=str(pass_),
        before=before,
        after=after,
        rules=dict(context.ledger.stats),
        applications=list(context.ledger.applications),
        seconds=time.perf_counter() - started,
        notes=list(context.notes),
    )


class _Watched:
    """What instruments may see of a run."""

    def __init__(self, model: Model, passes: Sequence[Pass]) -> None:
        self.model = model
        self.passes = passes


def size_of(model: Model) -> Size:
    """Nodes of all regions, stored weights and floating-point operations."""
    weights = model.weights()
    return Size(
        nodes=sum(1 for region in model.regions() for _ in region.nodes()),
        parameters=sum(elements for _, elements, _ in weights),
        bytes=sum(size for _, _, size in weights),
        flops=count_flops(model.main),
    )
