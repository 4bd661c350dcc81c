"""Proofs at smaller sizes: the rule runs again on a smaller copy, and only what holds for all weights counts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef, TensorRef
from graphopt.passes.fuse_conv_bn import ConvBatchNorm
from graphopt.rewrite.change import Change, Editor
from graphopt.rewrite.contract import Evidence, Proof, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.pattern import const
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify import proved
from graphopt.verify.fragment import cut
from graphopt.verify.proof_sizes import proof_sizes
from graphopt.verify.proved import Proved
from graphopt.verify.shrink import shrunk

RNG = np.random.default_rng(0)


def weight(*shape: int) -> TensorRef:
    return ArrayRef(RNG.uniform(0.5, 2.0, shape).astype(np.float32))


def conv_bn(*channels: int, groups: int = 1) -> ScratchGraph:
    """Convolutions from each number of channels to the next, each followed by its batch norm."""
    g = ScratchGraph()
    x = g.add_input(TensorType("float32", (1, channels[0], 20, 20)))
    fields: dict[str, Any] = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": groups}
    for given, made in pairwise(channels):
        type_ = TensorType("float32", (1, made, 20, 20))
        x = g.append("conv", x, weight(made, given // groups, 3, 3), types=[type_], **fields)
        x = g.append("batch_norm", x, *(weight(made) for _ in range(4)), eps=1e-5, types=[type_])
    g.add_output(x)
    return g


def linear_of_sum(rows: int = 40, features: int = 96) -> ScratchGraph:
    """matmul(x + b, w)"""
    g = ScratchGraph()
    type_ = TensorType("float32", (rows, features))
    x = g.add_input(type_)
    shifted = g.append("add", x, weight(features), types=[type_])
    g.add_output(g.append("matmul", shifted, weight(features, 112), types=[TensorType("float32", (rows, 112))]))
    return g


class Kept:
    """Keeps every change unchecked."""

    def verify(self, change: Change) -> Evidence:
        return Evidence("executed")


class Recorded(Proved):
    """Remembers what was proved."""

    def __init__(self) -> None:
        super().__init__(Kept())
        self.proofs: list[Proof | None] = []

    def verify(self, change: Change) -> Evidence:
        evidence = super().verify(change)
        self.proofs.append(evidence.proof)
        return evidence


class Shrinks(Kept):
    """Keeps what `shrunk` makes of a change."""

    def verify(self, change: Change) -> Evidence:
        fragment = cut(change)
        calls = [fragment.graph.call(n) for n in fragment.before.nodes]
        sizes, _ = next(proof_sizes(fragment, calls))  # type: ignore[arg-type]
        self.found = shrunk(change, fragment, sizes)
        return Evidence("executed")


def apply(scratch: ScratchGraph, storage: str, verifier: Any, one: Rule, limit: int = 1) -> None:
    ledger = Ledger(limit)
    ledger.open_pass("test")
    Driver((one,), Editor(from_scratch(scratch, storage).main, ledger, verifier)).run()


def proof_of(scratch: ScratchGraph, one: Rule, storage: str = "onnx") -> Proof:
    verifier = Recorded()
    apply(scratch, storage, verifier, one)
    (proof,) = verifier.proofs
    assert proof is not None
    return proof


def sizes_of(scratch: ScratchGraph, one: Rule) -> Any:
    verifier = Shrinks()
    apply(scratch, "onnx", verifier, one)
    return verifier.found


class Sum:
    """(x + b) @ w is x @ w + b @ w."""

    def pattern(self, op, x, b, w):
        return op.matmul(op.add(x, const(b)), const(w))

    def rewrite(self, m, build):
        product = m.b.reshape(1, m.b.shape[0]) @ m.w
        return build.add(build.matmul(m.x, m.w, like=m.out), product.reshape(m.w.shape[1]))


SumOfProducts = rule(contract=Rounding())(Sum)


@rule(contract=Rounding())
class ReadsNumbers(Sum):
    """Right for the weights at hand alone: it writes the numbers themselves."""

    def rewrite(self, m, build):
        product = (m.b.numpy() @ m.w.numpy()).astype(np.float32)
        return build.add(build.matmul(m.x, m.w, like=m.out), ArrayRef(product))


@rule(contract=Rounding())
class WrongWhereLarge(Sum):
    """Another rewrite for many features, and a wrong one."""

    def rewrite(self, m, build):
        if m.b.shape[0] < 64:
            return Sum.rewrite(self, m, build)
        return build.matmul(m.x, m.w, like=m.out)


@rule(contract=Rounding())
class AnotherNumberWhereLarge(Sum):
    def rewrite(self, m, build):
        factor = 1.0 if m.b.shape[0] < 64 else 1.5
        product = (m.b.reshape(1, m.b.shape[0]) @ m.w) * factor
        return build.add(build.matmul(m.x, m.w, like=m.out), product.reshape(m.w.shape[1]))


@rule(contract=Rounding())
class ForgetsTheSum(Sum):
    def rewrite(self, m, build):
        return build.matmul(m.x, m.w, like=m.out)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_a_convolution_is_proved_with_few_channels(storage: str) -> None:
    proof = proof_of(conv_bn(48, 64), ConvBatchNorm, storage)
    assert (proof.level, proof.weights, proof.reduced) == ("proof@reduced", "all", True), proof


def test_sizes_are_small_and_pairwise_different() -> None:
    fragment, feeds = sizes_of(conv_bn(48, 64), ConvBatchNorm)
    (shape,) = [f.shape for f in feeds]
    weights = [d.shape for n in fragment.before.nodes for o in fragment.graph.call(n).operands
               if o is not None and (d := fragment.graph.constant(o))]  # fmt: skip
    made, given = weights[0][:2]
    assert shape[1] == given and {made, given} == {2, 4}  # 3 is the kernel's
    assert weights[1:] == [(made,)] * 4


def test_channels_of_groups_keep_their_size() -> None:
    assert sizes_of(conv_bn(16, 32, groups=4), ConvBatchNorm) is None
    proof = proof_of(conv_bn(16, 32, groups=4), ConvBatchNorm)
    assert proof.holds and proof.weights == "all"


def test_features_of_a_product_are_made_few() -> None:
    proof = proof_of(linear_of_sum(), SumOfProducts)
    assert proof.level == "proof@reduced" and proof.weights == "all", proof


@pytest.mark.parametrize("wrong", [WrongWhereLarge, AnotherNumberWhereLarge, ForgetsTheSum])
def test_a_rule_that_is_wrong_at_the_models_sizes_is_not_proved(wrong: Rule) -> None:
    proof = proof_of(linear_of_sum(), wrong)
    assert proof.level == "undecided" and "differ" in proof.reason, proof


def test_numbers_that_a_rule_has_read_are_no_proof_for_all_weights() -> None:
    proof = proof_of(linear_of_sum(), ReadsNumbers)
    assert not (proof.holds and proof.weights == "all"), proof


@rule(contract=Rounding())
class PlusZero:
    def pattern(self, op, x):
        return op.add(x, const(0.0))

    def rewrite(self, m, build):
        return m.x


def test_an_axis_that_a_constant_has_keeps_its_size() -> None:
    """At another size than the constant's the sum would be broadcast, and the rule be wrong there."""
    g = ScratchGraph()
    type_ = TensorType("float32", (2, 7, 48))
    zeros = ArrayRef(np.zeros(48, np.float32))
    g.add_output(g.append("relu", g.append("add", g.add_input(type_), zeros, types=[type_]), types=[type_]))
    assert proof_of(g, PlusZero).holds


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    made: list[Any] = []
    real = proved.prove

    def counted(*arguments: Any, **options: Any) -> Proof:
        made.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(proved, "prove", counted)
    yield made


def test_what_is_proved_once_costs_nothing_again(calls: list[Any]) -> None:
    """Convolutions to more channels and those to fewer: two proofs, whatever the numbers and the sizes."""
    verifier = Recorded()
    apply(conv_bn(48, 64, 48, 64, 96, 32), "onnx", verifier, ConvBatchNorm, limit=5)
    found = [p for p in verifier.proofs if p is not None]
    assert len(found) == 5 and all(p.holds and p.weights == "all" for p in found)
    assert len(calls) == 2 == sum(p.milliseconds > 0 for p in found)
