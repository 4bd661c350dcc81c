"""Random layers as scratch graphs: what the tests of fuse-conv-bn rewrite."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.change import Editor
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.execute import evaluate
from graphopt.verify.verifier import MatchVerifier


class Layers(ScratchGraph):
    """A scratch graph that makes up weights and remembers how many channels it has at its end."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.shape = shape
        self.end: Any = self.add_input(TensorType(dtype, shape))

    def ref(self, *shape: int) -> ArrayRef:
        return ArrayRef(self.rng.standard_normal(shape).astype(self.dtype))

    def positive(self, *shape: int) -> ArrayRef:
        return ArrayRef(self.rng.uniform(0.5, 2.0, shape).astype(self.dtype))

    def then(self, op: str, *operands: Any, shape: tuple[int, ...] | None = None, **fields: Any) -> Any:
        """Append `op` on the graph's end."""
        self.shape = shape or self.shape
        types = [TensorType(self.dtype, self.shape)]
        self.end = self.append(op, self.end, *operands, types=types, **fields)
        return self.end

    def conv(
        self,
        out: int,
        kernel: int = 3,
        *,
        groups: int = 1,
        pads: int = 1,
        bias: bool = True,
        weight: Any = None,
    ) -> Any:
        n = len(self.shape) - 2
        weight = weight or self.ref(out, self.shape[1] // groups, *[kernel] * n)
        size = [s + 2 * pads - kernel + 1 for s in self.shape[2:]]
        fields = window(n, pads) | {"groups": groups}
        return self.then(
            "conv", weight, self.ref(out) if bias else None, shape=(self.shape[0], out, *size), **fields
        )

    def conv_transpose(
        self, out: int, kernel: int = 3, *, groups: int = 1, pads: int = 0, bias: bool = True
    ) -> Any:
        n = len(self.shape) - 2
        weight = self.ref(self.shape[1], out // groups, *[kernel] * n)
        size = [s - 1 + kernel - 2 * pads for s in self.shape[2:]]
        fields = window(n, pads) | {"groups": groups, "output_padding": (0,) * n}
        return self.then(
            "conv_transpose",
            weight,
            self.ref(out) if bias else None,
            shape=(self.shape[0], out, *size),
            **fields,
        )

    def linear(self, out: int, *, bias: bool = True, trans_w: bool = True) -> Any:
        inner = self.shape[-1]
        weight = self.ref(out, inner) if trans_w else self.ref(inner, out)
        shape = (*self.shape[:-1], out)
        return self.then("linear", weight, self.ref(out) if bias else None, shape=shape, trans_w=trans_w)

    def batch_norm(
        self,
        *,
        affine: bool = True,
        eps: float = 1e-5,
        training: bool = False,
        var: Any = None,
        mean: Any = None,
    ) -> Any:
        channels = self.shape[1]
        scale, shift = (self.ref(channels), self.ref(channels)) if affine else (None, None)
        mean, var = mean or self.ref(channels), var or self.positive(channels)
        return self.then("batch_norm", scale, shift, mean, var, eps=eps, training=training)

    def done(self) -> Layers:
        self.add_output(self.end)
        return self

    @property
    def ops(self) -> list[str]:
        return [self.key(n) for n in self.nodes()]


def window(n: int, pads: int) -> dict[str, tuple[int, ...]]:
    return {"stride": (1,) * n, "pads": (pads,) * 2 * n, "dilation": (1,) * n}


def fuse(graph: Any, rules: Any, *, compare: bool = True) -> Ledger:
    """Run `rules` on `graph`, everything verified; with `compare`, the graph's meaning in float64 must
    stay."""
    ledger = Ledger()
    ledger.open_pass("test")
    driver = Driver(rules, Editor(graph, ledger, MatchVerifier()))
    if not compare:
        driver.run()
        return ledger
    feeds = [np.random.default_rng(7).standard_normal(v.type.shape) for v in graph.inputs()]
    before = evaluate(graph, feeds)
    driver.run()
    tolerance = 2.0**-9 if graph.dtype == "float16" else 2.0**-18
    for old, new in zip(before, evaluate(graph, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=tolerance * np.abs(old).max(initial=1e-30))
    return ledger


def kept(ledger: Ledger) -> list[str]:
    """Rules of the applications that were kept, in order."""
    return [a.rule for a in ledger.applications if a.status == "kept"]


def reasons(ledger: Ledger, rule: str) -> str:
    """Everything that was said about why `rule` did not apply."""
    undone = [a.reason for a in ledger.applications if a.status != "kept"]
    return "; ".join([*ledger.rule(rule).refused, *undone])


def assert_refused(graph: Layers, rules: Any, rule: str, reason: str) -> None:
    """`rule` is refused for this reason, and nothing is applied to or changed in the finished `graph`."""
    before = graph.fingerprint()
    ledger = fuse(graph, rules, compare=False)
    assert kept(ledger) == []
    assert reason in reasons(ledger, rule)
    assert graph.fingerprint() == before
