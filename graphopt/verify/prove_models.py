"""Proof of two whole models: files from anywhere, so that nothing is known of how the one was made from the other.

Weights are numbers here. Those that both files store with the same bytes are first left open; the others are the exact
dyadic rationals that the files hold. If the models do not agree so, constants are read as the simple numbers that they
are close to, and what follows from constants alone is computed as the runtime computes it: a proof by that is
called "proof~const". What is proved, and what not, is as for rewrites (see `prove`).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.rewrite.contract import Proof
from graphopt.verify.algebra.domain import Field
from graphopt.verify.algebra.folding import same_when_folded
from graphopt.verify.algebra.lifting import Table
from graphopt.verify.algebra.running import Running
from graphopt.verify.algebra.sides import equal
from graphopt.verify.algebra.tensor import FieldTensor, Order, Point, Undecided, lift, open_facts, random
from graphopt.verify.algebra.terms import same_expressions
from graphopt.verify.pairs import Pair, drawn, pair, shapes
from graphopt.verify.prove import ENOUGH, SMALL, derived, log2_error, moduli, other_orders
from graphopt.verify.replay import compare_executed, refute

WORK = 2 * 10**9
"""Multiplications that the models may take in each field, for each attempt."""


TRIALS = 4
"""Points at which models of a high degree are compared."""
LARGER, LATER = ((2, 4), (4, 8)), 100
"""Ranges from which integers without examples are drawn again, and the number of the first point of that."""


@dataclass(frozen=True)
class ModelProof:
    """What is known of two models.

    `proof.level` is as for rewrites, or "executed" if no output depends on an input that was left open, so that all
    outputs were but compared as the runtime computes them.
    """

    proof: Proof
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The shapes that inputs had."""
    executed: tuple[str, ...] = ()
    """Outputs that were compared as numbers: they follow from constants, or from integers that were drawn."""
    constants: Mapping[float, str] = field(default_factory=dict)
    """Numbers that were read as others, and as which."""
    computed: tuple[str, ...] = ()
    """Ops of constants alone whose results are the runtime's."""
    folded: int = 0
    """Convolutions of the second model whose numbers, with what follows folded in, were read as those of the first."""
    units: float = 0.0
    """By how many units of rounding of float32 those numbers differ from what they were read as, at most."""
    counterexample: Mapping[str, Array] | None = None
    """Inputs for which the models differ in float64."""
    milliseconds: float = 0.0

    @property
    def level(self) -> str:
        return self.proof.level


@dataclass(frozen=True)
class _Setting:
    """How an attempt reads what the files hold."""

    tokens: bool
    """Integers and truth values of inputs are left open."""
    lifted: bool
    shared: bool
    """Weights that both files store are left open."""
    law: bool


@dataclass
class _Outcome:
    reason: str | None
    proof: Proof
    executed: tuple[str, ...] = ()
    table: Table | None = None
    computed: frozenset[str] = frozenset()
    met: bool = False
    """Whether weights were left open."""


def compare_models(
    before: Any,
    after: Any,
    *,
    examples: Mapping[str, Array] | None = None,
    seed: int | None = None,
    work: int = WORK,
    seconds: float = 60.0,
) -> ModelProof:
    """Whether two ONNX models compute the same real numbers, for every input.

    It runs here; `prove_models` does the same in a process of its own, since a runtime may crash.

    Args:
        before, after: paths or `onnx.ModelProto`s with the same names of inputs and outputs.
        examples: of some inputs. Their shapes are taken, and of integers and truth values the numbers too.
        seed: of the random points; drawn from the system's own source if absent.
        work: multiplications of residues that an attempt may take.
        seconds: after which no new attempt is made.

    Raises:
        ModelError: no models, or the interfaces differ.
    """
    started = time.perf_counter()
    seed = secrets.randbits(63) if seed is None else seed
    both = pair(before, after)
    found = ModelProof(Proof("undecided", "no sizes to try"))
    for sizes in shapes(both, examples):
        comparison = _Comparison(both, sizes, examples, seed, work, started + seconds)
        with np.errstate(all="ignore"):
            found = comparison.decide()
        if found.proof.level != "undecided" or found.proof.log2_error is not None:
            break
    took = 1e3 * (time.perf_counter() - started)
    return replace(found, proof=replace(found.proof, seed=seed, milliseconds=took), milliseconds=took)


class _Comparison:
    def __init__(
        self,
        both: Pair,
        sizes: Mapping[str, tuple[int, ...]],
        examples: Mapping[str, Array] | None,
        seed: int,
        work: int,
        end: float,
    ) -> None:
        self.pair, self.sizes, self.examples = both, sizes, examples
        self.feeds = drawn(both, sizes, examples, seed)
        self.seed, self.work, self.end = seed, work, end
        self.digests: dict[object, bytes] = {}

    def decide(self) -> ModelProof:
        first: _Outcome | None = None
        if self.pair.is_constant:
            return self._proved(_Outcome(None, Proof("undecided"), self.pair.outputs))
        if (same := self._same() or self._same_when_folded()) is not None:
            return same
        for setting in self._settings():
            outcome = self._attempt(setting)
            if outcome.reason is None:
                return self._proved(outcome)
            first = first or outcome
            self._last, self._last_setting = outcome, setting
        assert first is not None
        if time.perf_counter() > self.end:
            return ModelProof(first.proof, self.sizes)
        refuted = refute(self.pair, self.sizes, self.feeds, self.seed)
        if refuted is not None:
            reason, example = refuted
            return ModelProof(replace(first.proof, level="refuted", reason=reason), self.sizes, counterexample=example)
        return ModelProof(first.proof, self.sizes)

    def _same(self) -> ModelProof | None:
        mains = self.pair.before.main, self.pair.after.main
        computed = same_expressions(*mains, self.sizes, lambda: time.perf_counter() > self.end)
        if computed is None or _types_of(mains[0]) != _types_of(mains[1]):
            return None
        proof = Proof("proof~const" if computed else "proof", "both are the same expression")
        return ModelProof(proof, self.sizes, computed=tuple(sorted(computed)))

    def _same_when_folded(self) -> ModelProof | None:
        mains = self.pair.before.main, self.pair.after.main
        found = same_when_folded(*mains, self.sizes, lambda: time.perf_counter() > self.end)
        if found is None or _types_of(mains[0]) != _types_of(mains[1]):
            return None
        computed, readings = found
        proof = Proof("proof~const", "both are the same expression, but for what was folded into convolutions")
        return ModelProof(
            proof, self.sizes, computed=tuple(sorted(computed)), folded=len(readings.read), units=readings.units
        )

    def _settings(self) -> Iterator[_Setting]:
        """The attempts, those first that say more. Each is looked at only if the one before it has failed."""
        open_first = (True, False) if any(t.dtype not in FLOATS for t in self.pair.inputs.values()) else (True,)
        for tokens in open_first:
            for lifted in (False, True):
                for shared in (True, False):
                    yield _Setting(tokens, lifted, shared, False)
                    if {"exp", "tanh"} & set(self._last.proof.functions):
                        yield replace(self._last_setting, law=True)
                    if time.perf_counter() > self.end:
                        return
                    if not self._last.met:
                        break
                if time.perf_counter() > self.end:
                    return

    def _proved(self, outcome: _Outcome) -> ModelProof:
        proof = outcome.proof
        if outcome.executed:
            reason = compare_executed(self.pair, self.feeds, outcome.executed)
            if reason is not None:
                return ModelProof(replace(proof, level="undecided", reason=reason), self.sizes, outcome.executed)
            if len(outcome.executed) == len(self.pair.outputs):
                proof = Proof("executed", "no output depends on an input that was left open")
        moved = {} if outcome.table is None else outcome.table.moved
        return ModelProof(proof, self.sizes, outcome.executed, moved, tuple(sorted(outcome.computed)))

    # ---- one attempt -----------------------------------------------------------------------------------------

    def _attempt(self, setting: _Setting) -> _Outcome:
        """At as many points as it takes: models that differ must agree at each of them by chance."""
        outcome = self._in_all_orders(setting)
        error, trials = outcome.proof.log2_error, 1
        while outcome.reason is None and error is not None and error > ENOUGH:
            if trials == TRIALS or time.perf_counter() > self.end:
                reason = f"by chance the models may agree with a probability of 2^{error:.0f}: their degree is too high"
                return replace(outcome, reason=reason, proof=replace(outcome.proof, level="undecided", reason=reason))
            outcome = self._at_point(setting, derived(self.seed, -trials))
            error, trials = error + (outcome.proof.log2_error or 0.0), trials + 1
            outcome = replace(outcome, proof=replace(outcome.proof, log2_error=error))
        return outcome if outcome.reason or setting.tokens else self._for_other_integers(setting, outcome)

    def _for_other_integers(self, setting: _Setting, outcome: _Outcome) -> _Outcome:
        """`outcome`, unless the models differ for larger integers, where they accept such."""
        given = self.examples or {}
        if all(name in given for name, t in self.pair.inputs.items() if t.dtype not in (*FLOATS, "bool")):
            return outcome
        for turn, (least, below) in enumerate(LARGER, LATER):
            feeds = drawn(self.pair, self.sizes, self.examples, derived(self.seed, turn), least, below)
            other = self._at_point(setting, derived(self.seed, turn), feeds=feeds)
            if other.reason is not None and other.proof.log2_error is not None:
                return other
        return outcome

    def _in_all_orders(self, setting: _Setting) -> _Outcome:
        """What holds for one order of numbers that are sorted must hold for others."""
        outcome = self._at_point(setting, self.seed)
        for seed, order in other_orders(outcome.proof, self.seed):
            other = self._at_point(setting, seed, order=order)
            if other.reason is not None:
                return other
        return outcome

    def _at_point(
        self, setting: _Setting, seed: int, *, order: Order = "own", feeds: Mapping[str, Array] | None = None
    ) -> _Outcome:
        point = Point(moduli(seed), seed, limit=self.work, order=order)
        domain = Field(point, exp_law=setting.law)
        table = Table(point) if setting.lifted else None
        leaf = _Leaf(point, table, self._shared() if setting.shared else frozenset(), self._digest)
        runs = [Running(domain, leaf, table, self.end) for _ in range(2)]
        results: list[list[Any]] = []
        executed: tuple[str, ...] = ()
        error = None
        try:
            for model, run in zip((self.pair.before, self.pair.after), runs, strict=True):
                self._feed(model, run, point, setting, self.feeds if feeds is None else feeds)
                results.append(self.pair.results(model, run.run(model.main)))
                point.closed = True
            executed = self._fixed(runs, results)
            reason = self._difference(runs, results, executed, point)
            error = log2_error(point, *map(_flat, results), law=bool(domain.laws))
        except Undecided as undecided:
            reason = str(undecided)
        sampled = set(point.sampled)
        if not setting.tokens:
            sampled.add("integer and truth inputs")
        level = "proof~const" if setting.lifted else "proof+exp" if domain.laws else "proof"
        proof = Proof(
            "undecided" if reason else level,
            reason or "",
            error,
            tuple(sorted(point.functions)),
            tuple(sorted(domain.laws)),
            "large" if leaf.met else "none",
            tuple(sorted(sampled)),
        )
        return _Outcome(reason, proof, executed, table, frozenset().union(*(r.computed for r in runs)), bool(leaf.met))

    def _feed(
        self, model: Any, run: Running, point: Point, setting: _Setting, feeds: Mapping[str, Array]
    ) -> None:
        for name, value in self.pair.values(model).items():
            feed, type_ = feeds[name], replace(self.pair.inputs[name], shape=self.sizes[name])
            if setting.tokens or type_.dtype in FLOATS:
                facts = open_facts(type_.dtype)
                made = random(point, feed.shape, f"input {name}", facts)
                run.give(value, made, type_, token=facts.kind == "int")
            else:
                run.give(value, feed, type_)

    def _fixed(self, runs: Sequence[Running], results: Sequence[Sequence[Any]]) -> tuple[str, ...]:
        """Outputs that are numbers on both sides: they follow from constants, or from integers that were drawn."""
        found = []
        values = [self.pair.results(m, m.main.outputs()) for m in (self.pair.before, self.pair.after)]
        for i, name in enumerate(self.pair.outputs):
            ends = [(run, v[i], r[i]) for run, v, r in zip(runs, values, results, strict=True)]
            floats = all(v not in run.known.opened for run, v, _ in ends) and isinstance(ends[0][2], FieldTensor)
            integers = all(not isinstance(r, FieldTensor | tuple) for _, _, r in ends)
            # Places of sorted numbers are integers that depend on what is open: they are compared in several orders.
            if floats or (integers and any(v in run.known.varying - run.known.opened for run, v, _ in ends)):
                found.append(name)
        return tuple(found)

    def _difference(
        self, runs: Sequence[Running], results: Sequence[Sequence[Any]], executed: Sequence[str], point: Point
    ) -> str | None:
        values = [self.pair.results(m, m.main.outputs()) for m in (self.pair.before, self.pair.after)]
        for i, name in enumerate(self.pair.outputs):
            types = [run.type(v[i]) for run, v in zip(runs, values, strict=True)]
            if types[0] != types[1]:
                return f"output {name!r} was {types[0]} and becomes {types[1]}"
            if name in executed:
                continue
            items = [_flat([side[i]]) for side in results]
            if len(items[0]) != len(items[1]):
                return f"output {name!r} was a sequence of {len(items[0])} and becomes one of {len(items[1])}"
            for before, after in zip(*items, strict=True):
                if (reason := equal(before, after, point)) is not None:
                    return f"output {name!r}: {reason}"
        return None

    def _shared(self) -> frozenset[bytes]:
        """Digests of the large float weights that both files store."""
        sides = []
        for model in (self.pair.before, self.pair.after):
            refs = [model.main.constant(v) for v in model.ir.graph.initializers.values()]
            sides.append({self._digest(r) for r in refs if r is not None and r.dtype in FLOATS and r.size > SMALL})
        return frozenset(sides[0] & sides[1])

    def _digest(self, data: TensorRef) -> bytes:
        if data.identity not in self.digests:
            said = hashlib.sha256(f"{data.dtype}{data.shape}".encode())
            said.update(data.numpy().tobytes())
            self.digests[data.identity] = said.digest()
        return self.digests[data.identity]


def _flat(results: Sequence[Any]) -> list[Any]:
    """Tensors, the items of sequences among them."""
    return [t for r in results for t in (r if isinstance(r, tuple) else (r,))]


def _types_of(graph: Any) -> dict[str, str | None]:
    return {graph.name(v): None if (t := graph.type(v)) is None else t.dtype for v in graph.outputs()}


class _Leaf:
    """What stored float tensors are at a point: variables if they are shared, else numbers."""

    def __init__(
        self, point: Point, table: Table | None, shared: frozenset[bytes], digest: Callable[[TensorRef], bytes]
    ) -> None:
        self.point, self.table, self.shared, self.digest = point, table, shared, digest
        self.met: set[bytes] = set()
        self._made: dict[bytes, FieldTensor] = {}

    def __call__(self, data: TensorRef) -> tuple[FieldTensor, bool]:
        digest = self.digest(data)
        variable = digest in self.shared
        if variable:
            self.met.add(digest)
        if digest not in self._made:
            self._made[digest] = self._variable(data, digest) if variable else self._number(data)
        return self._made[digest], not variable

    def _variable(self, data: TensorRef, digest: bytes) -> FieldTensor:
        return random(self.point, data.shape, f"weight {digest.hex()}", open_facts(data.dtype))

    def _number(self, data: TensorRef) -> FieldTensor:
        if self.table is not None:
            return self.table.tensor(data.numpy(), data.dtype)
        return lift(self.point, data.numpy(), data.dtype)
