"""Mutants of proved rewrites: the after side with one thing changed, and whether that changes any number.

What is proved of a mutant although its float64 results differ is a fault of the prover, unless both are the same real
numbers and differ by overflow or NaN alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.mutant_checks import rejection
from benchmarks.mutant_families import other_op
from benchmarks.mutant_keys import Namer
from benchmarks.mutant_weights import altered
from graphopt.ir.graph import Literal
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.scratch import ScratchGraph, float64_leaf
from graphopt.ir.weights import FLOATS, Array, ArrayRef, Deferred, TensorRef, numpy_dtype
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.prove import prove

WORDS = (("DCR", "CRD"), ("none", "tanh"), ("constant", "edge", "reflect"), ("trunc", "floor"))
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Mutant:
    """A fragment whose after side was changed, and how."""

    fragment: Fragment
    change: str


def mutants(fragment: Fragment, rng: random.Random) -> Iterator[Mutant]:
    """Endlessly many mutants of `fragment` with one change or two; its graph is a scratch graph and grows."""
    count = len(fragment.after.nodes)
    while count:
        places = rng.sample(range(count), 2 if count > 1 and rng.random() < 0.3 else 1)
        made = _Writer(fragment, rng).mutant(places)
        if made is not None:
            yield made


class _Writer:
    def __init__(self, fragment: Fragment, rng: random.Random) -> None:
        self.fragment = fragment
        self.rng = rng
        self.graph: ScratchGraph = fragment.graph  # type: ignore[assignment]
        self.values: dict[Any, Any] = {}
        self.nodes: list[Any] = []

    def mutant(self, places: Sequence[int]) -> Mutant | None:
        """The after side written anew with a change at each of these nodes; None if that cannot be written."""
        changes = []
        for i, node in enumerate(self.fragment.after.nodes):
            call = node.call
            operands = [self.values.get(o, o) for o in call.operands]
            if i in places:
                change = self._changed(call, operands)
                if not change:
                    return None
                changes.append(f"node {i}, {change}")
            else:
                self._write(call.op, operands, call.fields, call.outputs)
        outputs = tuple(self.values.get(o, o) for o in self.fragment.after.outputs)
        side = Side(tuple(self.nodes), outputs)
        return Mutant(Fragment(self.graph, self.fragment.inputs, self.fragment.before, side), "; ".join(changes))

    def _write(self, op: str, operands: Sequence[Any], fields: Any, outputs: Sequence[Any]) -> Any:
        node = self.graph.append_call(op, operands, fields, [])
        self.nodes.append(node)
        self.values.update(zip(outputs, node.call.outputs, strict=False))
        return node.call.outputs[0]

    def _changed(self, call: Any, operands: list[Any]) -> str:
        kinds = (
            self._constant, self._weight, self._attribute, self._swap, self._bypass, self._other_op,
            self._other_operand,
        )  # fmt: skip
        return self.rng.choice(kinds)(call, operands)

    def _constant(self, call: Any, operands: list[Any]) -> str:
        """One constant operand is one percent larger."""
        found = [i for i, o in enumerate(operands) if o is not None and self._real_constant(o)]
        if not found:
            return ""
        i = self.rng.choice(found)
        if self.rng.random() < 0.5:
            data = self.graph.constant(operands[i])
            assert data is not None
            larger = ArrayRef(np.asarray(data.numpy().astype(np.float64) * 1.01, numpy_dtype(data.dtype)))
            operands[i] = self.graph.add_constant(larger, "c")[0]
        else:
            operands[i] = self._write("mul", [operands[i], Literal(1.01, "float32")], {}, [])
        self._write(call.op, operands, call.fields, call.outputs)
        return f"{call.op}: operand {i} * 1.01"

    def _weight(self, call: Any, operands: list[Any]) -> str:
        """One step is another in the arithmetic by which a weight follows from others."""
        found = [(i, d) for i, o in enumerate(operands) if isinstance(d := self._data(o), Deferred)]
        if not found:
            return ""
        i, data = self.rng.choice(found)
        made = altered(data, self.rng)
        if made is None:
            return ""
        operands[i] = self.graph.add_constant(made[0], "c")[0]
        self._write(call.op, operands, call.fields, call.outputs)
        return f"{call.op}: operand {i}, {made[1]}"

    def _data(self, value: Any) -> TensorRef | None:
        return None if value is None else self.graph.constant(value)

    def _real_constant(self, value: Any) -> bool:
        data = self._data(value)
        return data is not None and data.dtype in FLOATS

    def _attribute(self, call: Any, operands: list[Any]) -> str:
        names = [k for k, v in call.fields.items() if v is not None and k != "dtype"]
        if not names:
            return ""
        name = self.rng.choice(sorted(names))
        value = self._altered(call.fields[name])
        if value is None:
            return ""
        self._write(call.op, operands, {**call.fields, name: value}, call.outputs)
        return f"{call.op}: {name} {call.fields[name]} to {value}"

    def _altered(self, value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return value + self.rng.choice((-1, 1))
        if isinstance(value, float):
            return value * self.rng.choice((1.01, 10.0, -1.0))
        if isinstance(value, str):
            others = [w for words in WORDS if value in words for w in words if w != value]
            return self.rng.choice(others) if others else None
        if not isinstance(value, tuple) or not value or not isinstance(value[0], int):
            return None
        turned = list(value)
        if self.rng.random() < 0.5:
            self.rng.shuffle(turned)
        else:
            turned[self.rng.randrange(len(turned))] += self.rng.choice((-1, 1))
        return tuple(turned) if tuple(turned) != value else None

    def _swap(self, call: Any, operands: list[Any]) -> str:
        given = [i for i, o in enumerate(operands) if o is not None]
        if len(given) < 2:
            return ""
        i, j = self.rng.sample(given, 2)
        operands[i], operands[j] = operands[j], operands[i]
        self._write(call.op, operands, call.fields, call.outputs)
        return f"{call.op}: operands {i} and {j} swapped"

    def _bypass(self, call: Any, operands: list[Any]) -> str:
        given = given_values(operands)
        if not given:
            return ""
        self._write("identity", [self.rng.choice(given)], {}, call.outputs[:1])
        return f"{call.op}: bypassed"

    def _other_op(self, call: Any, operands: list[Any]) -> str:
        other = other_op(call.op, self.rng)
        if other is None:
            return ""
        fields = {k: v for k, v in call.fields.items() if k in OPS[other].fields}
        self._write(other, operands, fields, call.outputs)
        return f"{call.op}: {other}"

    def _other_operand(self, call: Any, operands: list[Any]) -> str:
        """Another value that is there already, or none at all where an operand may be absent."""
        given = [i for i, o in enumerate(operands) if o is not None]
        if not given:
            return ""
        i = self.rng.choice(given)
        spec = OPS[call.op]
        if not spec.variadic and spec.operands[i] in spec.optional and self.rng.random() < 0.5:
            operands[i] = None
            self._write(call.op, operands, call.fields, call.outputs)
            return f"{call.op}: operand {i} dropped"
        there = [
            v for v in (*self.fragment.inputs, *self.values.values(), *given_values(operands)) if v is not operands[i]
        ]
        if not there:
            return ""
        operands[i] = self.rng.choice(there)
        self._write(call.op, operands, call.fields, call.outputs)
        return f"{call.op}: another operand {i}"


def given_values(operands: Sequence[Any]) -> list[Any]:
    return [o for o in operands if o is not None]


# ---- what they compute -------------------------------------------------------------------------------------------


def evaluated(fragment: Fragment, side: Side, feeds: Sequence[Array]) -> list[Any]:
    """The outputs of one side in float64. Whatever its meanings raise passes through."""
    domain = Float64()
    env: dict[Any, Any] = {
        v: f.astype(np.float64) if f.dtype.name in FLOATS else f for v, f in zip(fragment.inputs, feeds, strict=True)
    }

    def fetch(value: Any) -> Any:
        if value not in env:
            data = fragment.graph.constant(value)
            assert data is not None
            env[value] = data.evaluate(float64_leaf, domain)
        return env[value]

    with np.errstate(all="ignore"):
        for node in side.nodes:
            call = node.call
            results = OPS[call.op].meaning(
                domain, *(None if o is None else fetch(o) for o in call.operands), **call.fields
            )
            results = results if isinstance(results, tuple | list) else (results,)
            env.update(zip(call.outputs, results, strict=False))
        return [fetch(o) for o in side.outputs]


def drawn(fragment: Fragment, feeds: Sequence[Array], rng: np.random.Generator) -> Iterator[list[Array]]:
    """Inputs on which mutants are told apart: normal ones, large ones, positive ones."""
    for change in (lambda x: x, lambda x: 4.0 * x, np.abs):
        yield [change(rng.standard_normal(f.shape)).astype(np.float32) if f.dtype.name in FLOATS else f for f in feeds]


def differ(xs: Sequence[Any], ys: Sequence[Any]) -> str:
    """ "" if results agree up to rounding; "number" if finite ones differ; "special" if only NaN or infinities do."""
    found = ""
    for x, y in zip(xs, ys, strict=True):
        a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if a.shape != b.shape:
            return "number"
        finite = np.isfinite(a) & np.isfinite(b)
        scale = np.max(np.abs(np.where(finite, a, 0.0)), initial=1e-300)
        if np.any(np.abs(np.where(finite, a - b, 0.0)) > TOLERANCE * scale):
            return "number"
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            found = "special"
    return found


@dataclass
class Tally:
    """What a hunt has found. No mutant counts twice, whatever the seeds that drew it."""

    made: int = 0
    failing: int = 0
    """Could not be computed at all."""
    equal: int = 0
    differing: int = 0
    special: int = 0
    """Of those that differ: by NaN or infinities alone."""
    repeated: int = 0
    """Drawn again, and left out."""
    wrong: list[str] = field(default_factory=list)
    """Proved although finite numbers differ."""
    beyond: list[str] = field(default_factory=list)
    """Proved, and different in NaN or infinities alone: which the executed checks catch, and why they reject it."""
    missed: list[str] = field(default_factory=list)
    """The same, and the executed checks let it through."""
    namer: Namer = field(default_factory=Namer)
    met: set[tuple[str, str, str]] = field(default_factory=set)
    """Rewrite, expression before and expression after of each mutant."""


class Hunt:
    """The hunt for mutants of one proved rewrite. What the rewrite itself writes is no mutant.

    Raises ValueError if its own sides differ in float64: then nothing can be said of its mutants.
    """

    def __init__(self, name: str, fragment: Fragment, feeds: Sequence[Array], seed: int, tally: Tally) -> None:
        self.name, self.fragment, self.feeds, self.tally = name, fragment, feeds, tally
        self.rng = random.Random(f"{name} {seed}")
        self.inputs = list(drawn(fragment, feeds, np.random.default_rng(seed)))
        self.right = [evaluated(fragment, fragment.before, given) for given in self.inputs]
        after = [evaluated(fragment, fragment.after, given) for given in self.inputs]
        if any(map(differ, self.right, after)):
            raise ValueError(f"{name}: both sides differ in float64")
        self.source = mutants(fragment, self.rng)
        before = tally.namer.name(fragment, fragment.before)
        self._key = (name, before)
        tally.met.add((*self._key, tally.namer.name(fragment, fragment.after)))

    def make(self, count: int) -> int:
        """Draw mutants until there are `count` new ones, and note what is proved of those that differ; gives up after
        20 draws for each, and returns how many there were."""
        new = 0
        for _ in range(20 * count):
            mutant = next(self.source, None) if new < count else None
            if mutant is None:
                break
            new += self._judge(mutant)
        return new

    def _judge(self, mutant: Mutant) -> bool:
        """Whether it is a new one."""
        tally, side = self.tally, mutant.fragment.after
        key = (*self._key, tally.namer.name(mutant.fragment, side))
        if key in tally.met:
            tally.repeated += 1
            return False
        tally.met.add(key)
        tally.made += 1
        try:
            kinds = {
                differ(expected, evaluated(mutant.fragment, side, given))
                for given, expected in zip(self.inputs, self.right, strict=True)
            }
        except Exception:  # wrong shapes, indices beyond the end: such a graph cannot be run
            tally.failing += 1
            return True
        if kinds == {""}:
            tally.equal += 1
            return True
        tally.differing += 1
        tally.special += "number" not in kinds
        proof = prove(mutant.fragment, self.feeds, seed=self.rng.getrandbits(60))
        if proof.holds:
            line = f"{self.name}: {mutant.change} ({proof.level}, weights {proof.weights})"
            if "number" in kinds:
                tally.wrong.append(line)
            elif (reason := rejection(mutant.fragment)) is not None:
                tally.beyond.append(f"{line}; rejected by the executed checks: {reason}")
            else:
                tally.missed.append(line)
        return True
