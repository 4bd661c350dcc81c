"""Evidence with a proof beside it: the executed checks come first and decide; what they let through is then proved.

Fragments of the same signature are proved once: for a model of fifty equal blocks that is one proof and forty-nine
look-ups.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import replace

from graphopt.ir.graph import Call, CannotEmit
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import FLOATS, Array, Deferred, Number, TensorRef
from graphopt.rewrite.change import Change, Rejected, Verifier
from graphopt.rewrite.contract import Approximate, Evidence, Proof
from graphopt.rewrite.driver import sort_nodes, write_match
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import Refused
from graphopt.verify.algebra.sides import spelled, weights_of
from graphopt.verify.fragment import Fragment, Side, cut
from graphopt.verify.inputs import KINDS, NoInputs, draw
from graphopt.verify.proof_sizes import proof_sizes
from graphopt.verify.prove import SMALL, prove


class Proved:
    """A verifier that adds what algebra says to the evidence of another.

    Args:
        seed: of the random points; drawn anew for each proof if absent, and recorded in it.
    """

    def __init__(self, inner: Verifier, seed: int | None = None) -> None:
        self._inner = inner
        self._seed = seed
        self._proofs: dict[str, Proof] = {}

    def verify(self, change: Change) -> Evidence:
        evidence = self._inner.verify(change)
        if not change.journal.replaced or isinstance(change.contract, Approximate):
            return evidence
        proof = self._proof(change)
        if proof.level == "refuted":
            raise Rejected(f"algebra refutes it: {proof.reason}", replace(evidence, proof=proof))
        return replace(evidence, proof=proof)

    def _proof(self, change: Change) -> Proof:
        found = Proof("undecided", "no sizes to try")
        for fragment in _versions(change):
            calls = [c for n in fragment.before.nodes if isinstance(c := fragment.graph.call(n), Call)]
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

    def _cached(self, fragment: Fragment, feeds: list[Array], *, reduced: bool) -> Proof:
        key = signature(fragment, feeds)
        proof = self._proofs.get(key)
        if proof is None:
            proof = prove(fragment, feeds, seed=self._seed)
            if proof.weights != "none":
                self._proofs[key] = proof
        else:
            proof = replace(proof, milliseconds=0.0)
        if reduced and proof.holds:
            proof = replace(proof, reduced=True, level="proof@reduced" if proof.level == "proof" else proof.level)
        return proof


def _versions(change: Change) -> Iterator[Fragment]:
    """What to prove: the rule's work on a copy that keeps weights as expressions, and the change as it was written.

    Torch has no deferred weights, so that of a change there only the copy tells how new weights follow from old ones.
    """
    fragment = cut(change)
    if fragment.graph.storage == "fx":
        if (twin := _twin(change, fragment)) is not None:
            yield twin
        yield fragment
    else:
        yield fragment
        if (twin := _twin(change, fragment)) is not None:
            yield twin


def _twin(change: Change, fragment: Fragment) -> Fragment | None:
    """The rule of `change` applied to a copy of its fragment; None if there is no rule, or it does not apply there."""
    if change.rule is None or change.match is None:
        return None
    side = fragment.before
    try:
        scratch, nodes = transcribe(fragment.graph, side.nodes, fragment.inputs, side.outputs, declared=side.declared)
        match = change.rule.match(scratch, nodes[next(iter(change.match.calls))])
        if isinstance(match, NoMatch):
            return None
        journal, ordered = Journal(scratch), sort_nodes(scratch, match)
        write_match(change.rule, match, ordered, journal)
    except (CannotEmit, Refused):
        return None
    made = cut(Change(change.id, scratch, tuple(ordered), journal, change.contract, change.rule, match))
    return Fragment(scratch, tuple(scratch.inputs()), made.before, made.after)


# ---- signatures ----------------------------------------------------------------------------------------------------


def signature(fragment: Fragment, feeds: list[Array]) -> str:
    """A hash of all that a proof of the fragment for all of its large weights can depend on."""
    namer = _Namer(fragment)
    lines = [f"{feed.dtype}{feed.shape}" if feed.dtype.name in FLOATS else _digest(feed) for feed in feeds]
    lines += [*namer.side(fragment.before), "becomes", *namer.side(fragment.after)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Namer:
    def __init__(self, fragment: Fragment) -> None:
        self.graph = fragment.graph
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
        if isinstance(data, Deferred):
            operands = [self.constant(o) for o in data.operands]
            return f"{data.op}{operands}{spelled(data.fields)}"
        if isinstance(data, Number):
            return f"{data.dtype} {data.value!r}"
        if data.identity not in self.variables or data.dtype not in FLOATS:
            return _digest(data.numpy())
        number = self.numbers.setdefault(data.identity, len(self.numbers))
        return f"weight {number} {data!r}{_digest(data.numpy()) if data.size <= SMALL else ''}"


def _digest(array: Array) -> str:
    return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
