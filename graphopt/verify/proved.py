"""Evidence with a proof beside it: the executed checks come first and decide; what they let through is then proved.

Fragments of the same signature are proved once: for a model of fifty equal blocks that is one proof and forty-nine
look-ups.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from graphopt.ir.graph import Call
from graphopt.ir.weights import FLOATS, Array, Deferred, Number, TensorRef
from graphopt.rewrite.change import Change, Verifier
from graphopt.rewrite.contract import Approximate, Evidence, Proof
from graphopt.verify.algebra.sides import is_finite, spelled, weights_of
from graphopt.verify.fragment import Fragment, Side, cut
from graphopt.verify.inputs import KINDS, NoInputs, draw
from graphopt.verify.proof_sizes import proof_sizes
from graphopt.verify.prove import SMALL, prove
from graphopt.verify.rerun import twin
from graphopt.verify.shrink import shrunk

Observer = Callable[[Fragment, Sequence[Array], Proof], None]


class Proved:
    """A verifier that adds what algebra says to the evidence of another.

    Args:
        seed: of the random points; drawn anew for each proof if absent, and recorded in it.
        observe: is told each fragment that is judged, the inputs it is judged at (float ones only give their shape),
            and the proof, be it made or found again. The fragment is whole until the change is decided.
    """

    def __init__(self, inner: Verifier, seed: int | None = None, observe: Observer | None = None) -> None:
        self._inner = inner
        self._seed = seed
        self._observe = observe
        self._proofs: dict[str, Proof] = {}

    def verify(self, change: Change) -> Evidence:
        evidence = self._inner.verify(change)
        if evidence.kind == "construction" or isinstance(change.contract, Approximate):
            return evidence
        return replace(evidence, proof=self._proof(change))

    def _proof(self, change: Change) -> Proof:
        original = cut(change)
        small = self._shrunk(change, original)
        if small is not None:
            return small
        found = Proof("undecided", "no sizes to try")
        for fragment in _versions(change, original):
            calls = _calls(fragment)
            try:
                for sizes, reduced in proof_sizes(fragment, calls):
                    feeds = draw(fragment, sizes, calls, KINDS[0], zlib.crc32(change.id.encode()))
                    found = self._cached(fragment, feeds, reduced=reduced)
                    if found.holds:
                        return found
                    if found.log2_error is not None:  # both sides were evaluated: other sizes would not help
                        break
            except NoInputs as error:
                found = Proof("undecided", str(error))
        return found

    def _shrunk(self, change: Change, fragment: Fragment) -> Proof | None:
        """The proof on a smaller copy, if there is one for all weights."""
        try:
            sizes, _ = next(iter(proof_sizes(fragment, _calls(fragment))))
        except NoInputs:
            return None
        small = shrunk(change, fragment, sizes)
        proof = None if small is None else self._cached(*small, reduced=True)
        return proof if proof is not None and proof.holds and proof.weights == "all" else None

    def _cached(self, fragment: Fragment, feeds: list[Array], *, reduced: bool) -> Proof:
        keys = {weights: signature(fragment, feeds, weights=weights) for weights in ("all", "large")}
        known = next((self._proofs[key] for key in keys.values() if key in self._proofs), None)
        proof = prove(fragment, feeds, seed=self._seed) if known is None else replace(known, milliseconds=0.0)
        if known is None and proof.weights != "none":
            self._proofs[keys[proof.weights if proof.holds else "large"]] = proof
        if self._observe is not None:
            self._observe(fragment, feeds, proof)
        if reduced and proof.holds and proof.log2_error is not None:  # equal expressions are so at all sizes
            return replace(proof, reduced=True, level="proof@reduced" if proof.level == "proof" else proof.level)
        return proof


def _calls(fragment: Fragment) -> list[Call]:
    return [c for n in fragment.before.nodes if isinstance(c := fragment.graph.call(n), Call)]


def _versions(change: Change, fragment: Fragment) -> Iterator[Fragment]:
    """What to prove: the rule's work on a copy that keeps weights as expressions, and the change as it was written.

    Torch has no deferred weights, so that of a change there only the copy tells how new weights follow from old ones.
    """
    if fragment.graph.storage == "fx":
        if (copy := twin(change, fragment)) is not None:
            yield copy
        yield fragment
    else:
        yield fragment
        if (copy := twin(change, fragment)) is not None:
            yield copy


# ---- signatures ----------------------------------------------------------------------------------------------------


def signature(fragment: Fragment, feeds: Sequence[Array], *, weights: str = "large") -> str:
    """A hash of all that a proof of the fragment can depend on that holds for all of its weights ("all") or for all of
    its large ones ("large"). It is like no other where an op has effects or control-flow bodies."""
    namer = _Namer(fragment, SMALL if weights == "large" else 0)
    lines = [f"{feed.dtype}{feed.shape}" if feed.dtype.name in FLOATS else _digest(feed) for feed in feeds]
    lines += [*namer.side(fragment.before), "becomes", *namer.side(fragment.after)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Namer:
    def __init__(self, fragment: Fragment, small: int) -> None:
        self.graph = fragment.graph
        self.small = small
        """Elements up to which a weight's numbers are part of the signature."""
        self.after = fragment.after
        self.names: dict[object, str] = {v: f"input {i}" for i, v in enumerate(fragment.inputs)}
        self.variables = weights_of(fragment.graph, fragment.before)
        self.numbers: dict[object, int] = {}
        self.met: list[TensorRef] = []
        """Weights so far, which stay alive so that no other gets their identities."""

    def side(self, side: Side) -> Iterator[str]:
        for n, node in enumerate(side.nodes):
            call = self.graph.call(node) or self.graph.raw_call(node)
            assert isinstance(call, Call)
            operands = ["absent" if o is None else self.name(o, side) for o in call.operands]
            types = [str(self.graph.type(o)) for o in call.outputs if o is not None]
            own = "" if self.graph.is_pure(node) and not self.graph.subgraphs(node) else self.alone(node)
            yield f"{call.op}{operands}{spelled(call.fields)}{types}{own}"
            place = f"{'after' if side is self.after else 'before'} {n}"
            self.names.update({o: f"{place}.{i}" for i, o in enumerate(call.outputs) if o is not None})
        yield f"out {[self.name(o, side) for o in side.outputs]}"

    def name(self, value: object, side: Side) -> str:
        if value in self.names:
            return self.names[value]
        data = side.declared.get(value) or self.graph.constant(value)
        return self.alone(value) if data is None else self.constant(data)

    @staticmethod
    def alone(thing: object) -> str:
        """A name for what no other fragment has."""
        return f"{secrets.token_hex(8)} {thing!r}"

    def constant(self, data: TensorRef) -> str:
        self.met.append(data)
        if data.identity in self.variables and data.dtype in FLOATS:
            number = self.numbers.setdefault(data.identity, len(self.numbers))
            numbers = _digest(data.numpy()) if data.size <= self.small else ""
            return f"weight {number} {data.dtype}{list(data.shape)}{numbers}{'' if is_finite(data) else ' infinite'}"
        if isinstance(data, Deferred):
            operands = [self.constant(o) for o in data.operands]
            return f"{data.op}{operands}{spelled(data.fields)}"
        if isinstance(data, Number):
            return f"{data.dtype} {data.value!r}"
        return _digest(data.numpy())


def _digest(array: Array) -> str:
    return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
