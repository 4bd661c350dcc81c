"""Rules by themselves: applied to graphs made from their own patterns, right ones are proved and wrong ones not."""

from __future__ import annotations

from itertools import islice

import pytest

from graphopt.passes.fuse_conv_bn import ConvBatchNorm
from graphopt.rewrite.contract import Approximate, Exact, Rounding
from graphopt.rewrite.pattern import any_, const, opt
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.rule_proofs import prove_rule
from graphopt.verify.samples import samples


class Folds:
    def pattern(self, op, x, w, b, s):
        fields = dict.fromkeys(("stride", "pads", "dilation", "groups"), any_)
        return op.mul(op.conv(x, const(w), opt(const(b)), **fields).named("conv"), const(s))

    def check(self, m):
        if m.s.ndim:
            m.fail("not a single number")

    def rewrite(self, m, build):
        bias = None if m.b is None else m.b * m.s
        return build.conv(m.x, m.w * m.s, bias, like=m.out, **m.conv.fields)


@rule(contract=Rounding())
class ForgetsTheBias(Folds):
    def rewrite(self, m, build):
        return build.conv(m.x, m.w * m.s, m.b, like=m.out, **m.conv.fields)


@rule(contract=Rounding())
class ForgetsThePads(Folds):
    def rewrite(self, m, build):
        bias = None if m.b is None else m.b * m.s
        fields = {**m.conv.fields, "pads": tuple(reversed(m.conv.fields["pads"]))}
        return build.conv(m.x, m.w * m.s, bias, like=m.out, **fields)


@rule(contract=Exact())
class DropsTheOrder:
    def pattern(self, op, x):
        return op.transpose(op.transpose(x, perm=any_), perm=any_)

    def rewrite(self, m, build):
        return m.x


@rule(contract=Rounding())
class Raises(Folds):
    def rewrite(self, m, build):
        raise KeyError("no such thing")


@rule(contract=Approximate())
class Lossy(Folds):
    pass


@rule(contract=Rounding())
class OfOneStorage:
    def pattern(self, op, x):
        return op.raw("com.example::Thing", x)

    def rewrite(self, m, build):
        return m.x


Right = rule(contract=Rounding())(Folds)


@pytest.mark.parametrize("right", [Right, ConvBatchNorm], ids=lambda r: r.name)
def test_right_rules_are_proved_for_all_weights(right: Rule) -> None:
    found = prove_rule(right)
    assert found.for_all_weights and found.graphs == 8, found
    assert str(found) == "proof for all weights, on 8 graphs made from its pattern"


@pytest.mark.parametrize("wrong", [ForgetsTheBias, ForgetsThePads, DropsTheOrder], ids=lambda r: r.name)
def test_wrong_rules_are_not(wrong: Rule) -> None:
    found = prove_rule(wrong)
    assert found.claim == "not proved" and found.graphs and found.reason, found


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Raises, "it raised KeyError: 'no such thing'"),
        (Lossy, "it is approximate: what it gives is not equal"),
        (OfOneStorage, "of the graphs made from its pattern it applies to none"),
    ],
)
def test_what_cannot_be_tried_says_why(one: Rule, reason: str) -> None:
    assert str(prove_rule(one)) == f"not proved: {reason}"


def test_graphs_are_the_same_each_time() -> None:
    first, again = ([s and s[0].fingerprint() for s in islice(samples(Right), 20)] for _ in range(2))
    assert first == again and len({f for f in first if f}) > 5


@rule(contract=Rounding())
class FoldsManyChannels(Folds):
    def pays(self, m):
        if m.w.shape[0] < 1000:
            m.fail("{} channels", m.w.shape[0])


@rule(contract=Rounding())
class ForgetsTheBiasOfManyChannels(ForgetsTheBias.definition.__class__):
    pays = FoldsManyChannels.definition.__class__.pays


def test_what_a_rule_asks_to_pay_is_left_out_of_its_proof():
    assert prove_rule(FoldsManyChannels).for_all_weights
    wrong = prove_rule(ForgetsTheBiasOfManyChannels)
    assert wrong.graphs and not wrong.for_all_weights
