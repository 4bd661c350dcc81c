"""What no fragment can show on torch graphs, and the engine therefore excludes: mutation, written buffers, training."""

from __future__ import annotations

import pytest
import torch

from graphopt.ir.fx.load import load_torch
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.pattern import any_, const, opt
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.verifier import MatchVerifier


@rule(contract=Rounding())
class Silu:
    """x * sigmoid(x)."""

    def pattern(self, op, x):
        return op.mul(x, op.sigmoid(x))

    def rewrite(self, m, build):
        return build.silu(m.x)


@rule(contract=Exact())
class MulOne:
    """x * 1."""

    def pattern(self, op, x):
        return op.mul(x, const(1.0))

    def rewrite(self, m, build):
        return m.x


@rule(contract=Exact())
class DropCopy:
    """identity(x)."""

    def pattern(self, op, x):
        return op.identity(x)

    def rewrite(self, m, build):
        return m.x


@rule(contract=Rounding())
class CarelessFold:
    """Folds a batch norm in whatever mode."""

    def pattern(self, op, x, w, b, scale, shift, mean, var):
        conv = op.conv(x, const(w), opt(const(b)), stride=any_, pads=any_, dilation=any_, groups=any_).named("conv")
        return op.batch_norm(conv, const(scale), const(shift), const(mean), const(var), eps=any_, training=any_).named(
            "bn"
        )

    def rewrite(self, m, build):
        s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
        return build.conv(m.x, m.w * s.reshape(-1, 1, 1, 1), (m.b - m.mean) * s + m.shift, **m.conv.fields)


def kept(module: torch.nn.Module, inputs: tuple, *rules: Rule) -> tuple[int, torch.nn.Module]:
    model = load_torch(module, inputs)
    ledger = Ledger()
    ledger.open_pass("test")
    Driver(rules, Editor(model.main, ledger, MatchVerifier())).run()
    return ledger.kept, model.export()


def test_a_rule_does_not_fire_across_a_mutation_through_a_view():
    class M(torch.nn.Module):
        def forward(self, x):
            y = x.clone()
            t = torch.sigmoid(y)
            y.view(-1).add_(1)
            return y * t

    x = torch.randn(4, 5)
    count, result = kept(M(), (x,), Silu)
    assert count == 0
    assert torch.equal(result(x), M()(x))


def test_a_buffer_that_is_written_is_no_constant():
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("one", torch.ones(4))

        def forward(self, x):
            y = x * self.one
            self.one.add_(1)
            return y

    x = torch.randn(4)
    count, result = kept(M(), (x,), MulOne)
    assert count == 0
    reference = M()
    for _ in range(3):
        assert torch.equal(result(x), reference(x))


def test_a_buffer_that_nothing_writes_is_a_constant():
    class M(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("one", torch.ones(4))

        def forward(self, x):
            return torch.sin(x * self.one)

    assert kept(M(), (torch.randn(4),), MulOne)[0] == 1


def test_a_contiguous_copy_in_front_of_a_view_may_go():
    """Removing the copy changes the layout of memory, which a view would have rejected when it is run."""

    class M(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x.permute(0, 2, 1).contiguous().view(2, -1))

    x = torch.randn(2, 3, 4)
    count, result = kept(M(), (x,), DropCopy)
    assert count == 1
    assert torch.equal(result(x), M()(x))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_in_training_mode_is_not_folded(training: bool):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train(training)
    count, _ = kept(module, (torch.randn(2, 3, 8, 8),), CarelessFold)
    assert count == (0 if training else 1)
    assert module.training is training


def test_numbers_are_drawn_with_imaginary_parts():
    class Conjugated(torch.nn.Module):
        def forward(self, x):
            return torch.neg(torch.conj_physical(x))

    @rule(contract=Exact(), name="wrong")
    class ConjugateLost:
        def pattern(self, op, x):
            return op.raw("aten._conj_physical.default", x)

        def rewrite(self, m, build):
            return m.x

    model = load_torch(Conjugated(), torch.zeros(3, 4, dtype=torch.complex64))
    ledger = Ledger(None)
    ledger.open_pass("test")
    Driver([ConjugateLost], Editor(model.main, ledger, MatchVerifier())).run()
    assert [a.status for a in ledger.applications] == ["undone"]
