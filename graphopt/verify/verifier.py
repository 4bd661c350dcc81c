"""The verifier: every change is cut out and must pass three checks, each of which sees what the others cannot.

A, the twin: the same rule on a float64 copy of the fragment (is the rule right?). Once per structure.
B, the reader: the original run natively against the vocabulary's float64 meaning (is what we matched what it says?).
   Once per structure.
C, the writer: the new fragment run natively keeps shapes, dtypes and the contract (is what we wrote what we meant?).
   For every application, since it depends on the weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from typing import Literal as OneOf

import numpy as np

from graphopt.ir.graph import Call, Dim, Literal
from graphopt.ir.weights import FLOATS, Array
from graphopt.rewrite.change import Change, Rejected
from graphopt.rewrite.contract import Approximate, Evidence, Exact, Rounding
from graphopt.rewrite.rule import Rule
from graphopt.verify.branches import COPIED, copies_taken_branch
from graphopt.verify.compare import EPS, bit_equal, mismatch, relative_error, rounding_ratio
from graphopt.verify.execute import CannotRun, Runner, note_of, side_runner
from graphopt.verify.floats import shake
from graphopt.verify.fragment import Fragment, cut
from graphopt.verify.inputs import (
    KINDS,
    NoInputs,
    Sizes,
    draw,
    draws_of,
    has_free_integers,
    multiple_of,
    size_choices,
)
from graphopt.verify.threads import ThreadPools
from graphopt.verify.twin import Meaning, NoTwin, TwinFailed, check_twin

Level = OneOf["off", "structure", "match", "model"]
LEVELS: tuple[Level, ...] = ("off", "structure", "match", "model")
FINITE_ONLY = "not promised: anything for inputs with NaN or infinities"
"""What the evidence says of a change whose contract leaves special inputs out."""
READER_FACTOR = 64.0
"""Check B allows this many units of rounding, on top of what a perturbation of the inputs by one unit does."""


class Structural:
    """Verification reduced to what construction guarantees: types are compared before a change gets here."""

    def __init__(self, kind: str) -> None:
        self._evidence = Evidence(kind)

    def verify(self, change: Change) -> Evidence:
        return self._evidence


@dataclass
class _Run:
    """The original on one set of inputs: native results and, if the vocabulary can say it, float64 ones."""

    kind: str
    feeds: list[Array]
    native: list[Array]
    reference: list[Array] | None
    again: bool = False
    """Whether it is one of several draws, which are one set of inputs together."""


class MatchVerifier:
    """Checks A, B and C for every change. Deterministic: seeds derive from the structure of the fragment."""

    def __init__(self) -> None:
        self._twins: dict[tuple[Rule | None, str], float | None] = {}
        """By rule and structure: two rules may have one name."""
        self._pools = ThreadPools()
        self.executed = 0
        """Fragments executed, for cost accounting."""

    def verify(self, change: Change) -> Evidence:
        if not change.journal.replaced:
            return _check_removal(change)
        with self._pools.limited_to_one():
            return self._check(change)

    def _check(self, change: Change) -> Evidence:
        _check_declared(change)
        fragment = cut(change)
        calls = [change.graph.call(n) for n in fragment.before.nodes]
        readable = [c for c in calls if isinstance(c, Call)]
        structure = _structure(change, fragment)
        seed = zlib.crc32(structure.encode())
        wide = not isinstance(change.contract, Exact)
        meaning = _meaning(fragment) if wide or (change.rule, structure) not in self._twins else None
        try:
            before = side_runner(fragment, fragment.before)
            sizes, first = _first_run(fragment, readable, before, seed, meaning)
        except (NoInputs, CannotRun) as error:
            if copies_taken_branch(change):
                return Evidence("construction", notes=(COPIED,))
            raise Rejected(f"the original cannot be run to compare with: {error}", Evidence("none")) from error
        twin, notes = self._per_structure(change, fragment, structure, first, meaning)
        finite = isinstance(change.contract, Rounding) and not change.contract.special
        judge = meaning if wide else None
        runs = [first, *_more_runs(fragment, readable, sizes, before, seed, judge, finite=finite)]
        self.executed += 1
        notes = (*notes, *note_of(before), *([FINITE_ONLY] if finite else []))
        return _check_results(change, fragment, runs, twin, notes)

    def _per_structure(
        self, change: Change, fragment: Fragment, structure: str, run: _Run, meaning: Meaning | None
    ) -> tuple[float | None, tuple[str, ...]]:
        """Checks A and B, once for all fragments of one structure."""
        key = change.rule, structure
        if key in self._twins:
            return self._twins[key], ()
        notes: tuple[str, ...] = ()
        twin: float | None = None
        if change.rule is not None:
            try:
                twin = check_twin(change, fragment, run.feeds)
            except NoTwin as error:
                notes = (f"no float64 twin: {error}",)
            except TwinFailed as error:
                raise Rejected(str(error), Evidence("executed", 1, float("inf"), error.error)) from error
        if meaning is not None and run.reference is not None:
            _check_reader(_in_float32(fragment, run), meaning)
        self._twins[key] = twin
        return twin, notes


def _check_declared(change: Change) -> None:
    """Declared weights stand for constants that the nodes read, of the same shape and dtype; under rounding they may
    differ from these by no more than that."""
    graph, contract = change.graph, change.contract
    if change.declared and not isinstance(contract, Approximate | Rounding):
        raise Rejected(f"{contract} allows no declared change of weights", Evidence("none"))
    read = {o for node in change.nodes for o in graph.raw_call(node).operands if o is not None}
    for value, ref in change.declared.items():
        data = graph.constant(value)
        if data is None or value not in read:
            raise Rejected(f"{graph.name(value)} is declared and is no weight of the change", Evidence("none"))
        if (data.dtype, data.shape) != (ref.dtype, ref.shape):
            raise Rejected(f"{graph.name(value)} is {data!r} and is declared as {ref!r}", Evidence("none"))
        if isinstance(contract, Rounding):
            moved = relative_error(data.numpy().astype(np.float64), ref.numpy().astype(np.float64))
            if not moved <= contract.factor * EPS[data.dtype]:
                reason = f"{graph.name(value)} is declared with an error of {moved:.1e}, which is more than rounding"
                raise Rejected(reason, Evidence("none"))


def _check_removal(change: Change) -> Evidence:
    """A change that only removes: right by construction if nothing reads the nodes and none has effects."""
    graph = change.graph
    inside = set(change.nodes)
    for node in change.nodes:
        if not graph.is_pure(node):
            raise Rejected(f"{graph.node_name(node)} has effects", Evidence("none"))
        for output in graph.results(node):
            if output is None:
                continue
            if graph.is_output(output) or any(u not in inside for u in graph.users(output)):
                raise Rejected(f"nothing is replaced, and {graph.name(output)} is still read", Evidence("none"))
    return Evidence("construction", notes=("nothing reads what was removed",))


def _first_run(
    fragment: Fragment, calls: Sequence[Call], before: Runner, seed: int, meaning: Meaning | None
) -> tuple[Sizes, _Run]:
    """Normal data at the first sizes that the original accepts."""
    failure: CannotRun | None = None
    for sizes in size_choices(fragment, calls):
        feeds = draw(fragment, sizes, calls, KINDS[0], seed)
        try:
            return sizes, _run(before, KINDS[0], feeds, meaning)
        except CannotRun as error:
            failure = failure or error
    raise failure or CannotRun("no sizes to try")


def _more_runs(
    fragment: Fragment,
    calls: Sequence[Call],
    sizes: Sizes,
    before: Runner,
    seed: int,
    meaning: Meaning | None,
    *,
    finite: bool,
) -> list[_Run]:
    """The other kinds of data, `finite` or not; then empty and other sizes where a dimension is symbolic; then all
    kinds again where inputs have few numbers. What the original itself does not accept is not required of the rewrite.

    Empty axes are kept from what onnxruntime 1.32 ends the process at: an Einsum, an LSTM with an empty batch, and
    ops outside of the vocabulary (an LSTM in a branch of an If).
    """
    runs = []
    varied = _any_float(fragment) or has_free_integers(fragment, calls)
    kinds = KINDS if varied else KINDS[:1]
    plans = [(kind, sizes) for kind in kinds[1:]]
    if symbolic := _symbolic(fragment, sizes):
        for size in (1, 0) if _takes_empty_axes(fragment, calls) else (1,):
            shapes = {v: _resized(fragment, v, s, symbolic, size) for v, s in sizes.items()}
            plans.append((KINDS[0], shapes))
    once = len(plans)
    plans += [(kind, sizes) for _ in range(draws_of(sizes) - 1) for kind in kinds]
    for i, (kind, shapes) in enumerate(plans):
        try:
            feeds = draw(fragment, shapes, calls, kind, seed + 1 + i, finite=finite, one_of_many=i >= once)
            runs.append(replace(_run(before, kind, feeds, meaning), again=i >= once))
        except (CannotRun, NoInputs):
            continue
    return runs


def _takes_empty_axes(fragment: Fragment, calls: Sequence[Call]) -> bool:
    read = len(calls) == len(fragment.before.nodes)
    return read and not (fragment.graph.storage == "onnx" and any(c.op in ("einsum", "gru", "lstm") for c in calls))


def _any_float(fragment: Fragment) -> bool:
    types = [fragment.graph.type(v) for v in fragment.inputs]
    return any(t is not None and t.dtype in FLOATS for t in types)


def _symbolic(fragment: Fragment, sizes: Sizes) -> frozenset[Dim]:
    """Names of a symbolic size at the front of inputs: batch-like, so that 0 and 1 are fair sizes for it. Several
    names if the original may need them to be equal, being run with equal ones."""
    front: dict[Dim, int] = {}
    for value in fragment.inputs:
        type_ = fragment.graph.type(value)
        if type_ is not None and type_.shape and isinstance(type_.shape[0], str):
            factor, name = multiple_of(type_.shape[0])
            front.setdefault(name, sizes[value][0] // factor)
    first = next(iter(front.values()), None)
    return frozenset(name for name, size in front.items() if size == first)


def _resized(
    fragment: Fragment, value: Any, shape: tuple[int, ...], symbols: frozenset[Dim], size: int
) -> tuple[int, ...]:
    type_ = fragment.graph.type(value)
    if type_ is None or type_.shape is None:
        return shape
    multiples = [multiple_of(d) for d in type_.shape]
    pairs = zip(multiples, shape, strict=True)
    return tuple(factor * size if name in symbols else given for (factor, name), given in pairs)


def _meaning(fragment: Fragment) -> Meaning | None:
    """What the original means in float64, if the vocabulary can say it: for check B, and to judge anything but bits."""
    try:
        return Meaning(fragment, fragment.before)
    except NoTwin:
        return None


def _run(before: Runner, kind: str, feeds: list[Array], meaning: Meaning | None) -> _Run:
    native = before(feeds)
    return _Run(kind, feeds, native, None if meaning is None else meaning(feeds))


def _in_float32(fragment: Fragment, run: _Run) -> _Run:
    """The same run in float32 if it was in less: a low precision would hide most faults of a reader."""
    graph = fragment.graph
    types = [graph.type(v) for v in (*fragment.inputs, *fragment.before.outputs)]
    if not any(t is not None and t.dtype in ("float16", "bfloat16") for t in types):
        return run
    try:
        native = side_runner(fragment, fragment.before, wide=True)(run.feeds)
    except CannotRun:
        return run
    return _Run(run.kind, run.feeds, native, run.reference)


def _check_reader(run: _Run, meaning: Meaning) -> None:
    """B: the original's native result must be its float64 meaning up to rounding.

    The yardstick is what a relative perturbation of the inputs by one unit of rounding does to the float64 result,
    so that cancellation in the original is not held against the reader.
    """
    assert run.reference is not None
    if (reason := mismatch(_shapes_only(run.reference, run.native), run.native)) is not None:
        raise Rejected(f"the original is not what it was read as: {reason}", Evidence("executed", 1, float("inf")))
    pairs = zip(run.reference, run.native, strict=True)
    if all(np.array_equal(ref, native, equal_nan=native.dtype.name in FLOATS) for ref, native in pairs):
        return
    eps = [EPS.get(n.dtype.name, 0.0) for n in run.native]
    rng = np.random.default_rng(len(run.feeds))
    unit = max(eps, default=0.0)
    shaken = [shake(f, unit, rng) for f in run.feeds]
    moved = meaning(shaken)
    for ref, native, other, e in zip(run.reference, run.native, moved, eps, strict=True):
        if native.dtype.name not in FLOATS:
            worst = 0.0 if np.array_equal(ref, native) else float("inf")
        else:
            sensitivity = rounding_ratio(ref, ref.astype(np.float64), other, e, 1.0)
            worst = rounding_ratio(ref, ref, native, e, READER_FACTOR * max(1.0, sensitivity))
        if not worst <= 1.0:
            raise Rejected(
                f"the original is not what it was read as: its native result is {worst:.1e} times further from its "
                "float64 meaning than rounding allows",
                Evidence("executed", 1, worst),
            )


def _shapes_only(reference: Sequence[Array], native: Sequence[Array]) -> list[Array]:
    return [np.broadcast_to(np.zeros((), n.dtype), r.shape) for r, n in zip(reference, native, strict=True)]


def _check_results(
    change: Change, fragment: Fragment, runs: Sequence[_Run], twin: float | None, notes: tuple[str, ...]
) -> Evidence:
    """C: the new side, run natively, keeps shapes, dtypes and the contract on every set of inputs."""
    worst, equal = 0.0, True
    try:
        after = side_runner(fragment, fragment.after)
        results = [after(run.feeds) for run in runs]
    except CannotRun as error:
        raise Rejected(f"the rewritten fragment cannot be run: {error}", Evidence("none", twin=twin)) from error
    sets = sum(not run.again for run in runs)
    drawn: dict[tuple[str, int | None], list[tuple[_Run, list[Array]]]] = {}
    for number, (run, result) in enumerate(zip(runs, results, strict=True)):
        if (reason := mismatch(run.native, result)) is not None:
            raise Rejected(reason, Evidence("executed", sets, float("inf"), twin, notes))
        equal = equal and all(map(bit_equal, run.native, result))
        drawn.setdefault((run.kind, None if run.again else number), []).append((run, result))
    settled = equal and isinstance(change.contract, Exact)
    for (kind, _), together in () if settled else drawn.items():
        for old, new, wide in _joined(together):
            ratio = _contract_ratio(change, old, new, wide)
            worst = max(worst, ratio)
            if not ratio <= 1.0:
                evidence = Evidence("executed", sets, ratio, twin, notes)
                found = f"the error is {ratio:.3g} times what {change.contract} allows"
                if isinstance(change.contract, Exact):
                    found = "the results are not the same bits, which exact promises"
                raise Rejected(f"on {kind} inputs {found}", evidence)
    return Evidence("bit-equal" if equal else "executed", sets, worst, twin, notes)


def _joined(drawn: Sequence[tuple[_Run, list[Array]]]) -> Iterator[tuple[Array, Array, Array | None]]:
    """Each result of both sides, and in float64, as one array for all these draws: of few numbers each may be nearly
    zero, and an error is judged by what it is beside the largest."""
    for i in range(len(drawn[0][1])):
        old = [run.native[i].reshape(-1) for run, _ in drawn]
        new = [result[i].reshape(-1) for _, result in drawn]
        wide = [run.reference[i].reshape(-1) for run, _ in drawn if run.reference is not None]
        yield _one_array(old), _one_array(new), _one_array(wide) if wide else None


def _one_array(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _contract_ratio(change: Change, old: Array, new: Array, wide: Array | None) -> float:
    contract = change.contract
    if old.dtype.name not in FLOATS or isinstance(contract, Exact):
        return 0.0 if bit_equal(old, new) else float("inf")
    # What an approximate change declares is in `old` already; all else is rounding.
    factor = contract.factor if isinstance(contract, Rounding) else Rounding().factor
    ref = old.astype(np.float64) if wide is None else wide
    divides = isinstance(contract, Approximate)  # into factors: what were infinities of one sign are of both
    return rounding_ratio(ref, old, new, EPS[old.dtype.name], factor, loses_infinities=divides)


def _structure(change: Change, fragment: Fragment) -> str:
    """Everything of a fragment but names and weight data: equal structures need checks A and B only once. What is
    declared is data of the rule, so that such a change is a structure of its own."""
    graph = fragment.graph
    labels: dict[Any, str] = {v: f"in{i}:{graph.type(v)}" for i, v in enumerate(fragment.inputs)}
    lines = [change.rule.name if change.rule else change.id.rpartition("#")[0]]
    if change.declared:
        lines.append(change.id)
    for node in fragment.before.nodes:
        call = graph.call(node) or graph.raw_call(node)
        assert isinstance(call, Call)
        operands = [labels.get(o) or _constant_label(fragment, o) for o in call.operands]
        lines.append(f"{call.op}{operands}{sorted((k, repr(v)) for k, v in call.fields.items())}")
        labels.update({o: f"{len(lines)}.{i}:{graph.type(o)}" for i, o in enumerate(call.outputs) if o is not None})
    return "\n".join(lines)


def _constant_label(fragment: Fragment, value: Any) -> str:
    """Shape and dtype of a weight; the value itself of a small one, on which a rule's decisions may depend."""
    if value is None:
        return "absent"
    if isinstance(value, Literal):
        return repr(value)
    data = fragment.graph.constant(value)
    if data is None:
        return "outer"
    content = data.numpy().tobytes().hex() if data.size <= 16 else ""
    return f"const:{data.dtype}{data.shape}{content}"
