"""Layers around attention to few keys are multiplied into keys and values, and only where the two are equal and it
pays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from conv_graphs import Layers, assert_refused, fuse, kept
from diffusers.models.attention_processor import Attention
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import ArrayRef
from graphopt.passes import absorb_projections
from graphopt.passes.absorb_projections import RULES
from graphopt.verify.execute import evaluate

SOME = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEW = settings(SOME, max_examples=8)
SPLIT = (0, 2, 1, 3)
CORES = ("attention", "matmul", "einsum")
LAYERS = ("linear", "linear untransposed", "matmul", "matmul and sum", "no bias")


@dataclass
class Case:
    """Attention between two linear layers, to keys and values that are inputs. Weights are small, as trained ones are:
    from large scores even the original's softmax keeps few digits."""

    core: str = "attention"
    layer: str = "linear"
    batch: Any = 2
    queries: Any = 12
    keys: Any = 2
    heads: int = 2
    features: int = 6
    values: int = 5
    into: int = 7
    out: int = 8
    mask: bool = False
    causal: bool = False
    shared: str = ""
    """The value or weight that something else reads too."""
    tied: bool = False
    dtype: str = "float32"
    names: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> Layers:
        graph = Layers((self.batch, self.queries, self.into), dtype=self.dtype)
        self.linear(graph, self.heads * self.features, "projection")
        self.heads_apart(graph)
        self.attend(graph)
        graph.then("transpose", shape=(self.batch, self.queries, self.heads, self.values), perm=SPLIT)
        self.reshape(graph, self.heads * self.values)
        self.linear(graph, self.out, "second")
        if self.shared:
            graph.add_output(self.names[self.shared])
        return graph.done()

    def reshape(self, graph: Layers, *last: int) -> None:
        """To [batch, queries, *last]; the batch is left open where it is no number."""
        graph.shape = (self.batch, self.queries, *last)
        target = (self.batch if isinstance(self.batch, int) else -1, *graph.shape[1:])
        types = [TensorType(graph.dtype, graph.shape)]
        graph.end = graph.append("reshape", graph.end, types=types, shape=target)

    def linear(self, graph: Layers, out: int, name: str) -> None:
        shape, into = (*graph.shape[:-1], out), graph.shape[-1]
        shape_of_weight = (out, into) if self.layer in ("linear", "no bias") else (into, out)
        weight = graph.add_constant(ArrayRef(graph.rng.normal(0, 0.3, shape_of_weight).astype(graph.dtype)), name)[0]
        weight = self.names["projection weight"] if self.tied and self.names else weight
        self.names[f"{name} weight"] = weight
        if self.layer.startswith("matmul"):
            graph.then("matmul", weight, shape=shape)
            if self.layer == "matmul and sum":
                graph.then("add", graph.ref(out))
        else:
            bias = None if self.layer == "no bias" else graph.ref(out)
            graph.then("linear", weight, bias, shape=shape, trans_w=self.layer != "linear untransposed")
        self.names[name] = graph.end

    def heads_apart(self, graph: Layers) -> None:
        self.reshape(graph, self.heads, self.features)
        if self.core != "einsum":
            graph.then("transpose", shape=(self.batch, self.heads, self.queries, self.features), perm=SPLIT)
        self.names["queries"] = graph.end

    def attend(self, graph: Layers) -> None:
        keys, values = ((self.batch, self.heads, self.keys, width) for width in (self.features, self.values))
        k, v = (graph.add_input(TensorType(graph.dtype, shape)) for shape in (keys, values))
        scores = (self.batch, self.heads, self.queries, self.keys)
        mask = graph.add_input(TensorType(graph.dtype, scores)) if self.mask else None
        sums = (self.batch, self.heads, self.queries, self.values)
        if self.core == "attention":
            graph.then("attention", k, v, mask, shape=sums, scale=0.4, causal=self.causal, gqa=False)
            return
        if self.core == "einsum":
            graph.then("einsum", k, shape=scores, equation="bihd,bhjd->bhij")
        else:
            turned = TensorType(graph.dtype, (self.batch, self.heads, self.features, self.keys))
            graph.then("matmul", graph.append("transpose", k, types=[turned], perm=(0, 1, 3, 2)), shape=scores)
        graph.then("mul", graph.ref(1))
        if mask is not None:
            graph.then("add", mask)
        graph.then("softmax", shape=scores, axis=3)
        self.names["weights"] = graph.end
        if self.core == "einsum":
            graph.then("einsum", v, shape=sums, equation="bhij,bhjd->bhid")
        else:
            graph.then("matmul", v, shape=sums)


CASES = st.builds(
    Case, core=st.sampled_from(CORES), layer=st.sampled_from(LAYERS), batch=st.integers(1, 3),
    queries=st.integers(8, 14), keys=st.integers(1, 2), heads=st.integers(1, 3), features=st.integers(4, 6),
    values=st.integers(4, 6), into=st.integers(4, 9), out=st.integers(4, 9),
)  # fmt: skip


def test_any_sizes_and_spelling_give_the_same_numbers() -> None:
    """One case in a hundred draws scores of which a softmax keeps few digits, and is undone for that."""
    outcomes: list[str] = []

    @SOME
    @given(CASES)
    def check(case: Case) -> None:
        graph = case.graph()
        ledger = fuse(graph, RULES)
        (application,) = ledger.applications
        assert application.evidence.twin is not None and application.evidence.twin < 1e-12
        outcomes.append(application.status)
        if application.status == "kept":
            assert "attention" not in graph.ops and "linear" not in graph.ops
        else:
            assert "times what rounding" in application.reason

    check()
    assert outcomes.count("kept") >= len(outcomes) - 2


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@FEW
@given(case=CASES)
def test_both_storages_run_it(storage: str, case: Case) -> None:
    # ONNX has linear layers of matrices only, and attention from opset 23 on.
    case.core = "matmul" if storage == "onnx" and case.core == "attention" else case.core
    case.layer = "matmul and sum" if storage == "onnx" or case.layer == "linear untransposed" else case.layer
    graph = case.graph()
    rng = np.random.default_rng(3)
    feeds = [rng.standard_normal(v.type.shape).astype(np.float32) for v in graph.inputs()]
    (wanted,) = evaluate(graph, [x.astype(np.float64) for x in feeds])
    result = graphopt.optimize(from_scratch(graph, storage), "absorb-projections")
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    got = (
        result.model(*map(torch.from_numpy, feeds)) if storage == "fx" else result.lower("onnxruntime")(*feeds)
    )
    got = np.asarray(got[0] if isinstance(got, tuple | list) else got)
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("core", CORES)
def test_the_batch_may_be_dynamic(core: str) -> None:
    graph = Case(core=core, batch="b").graph()
    feeds = [np.random.default_rng(1).standard_normal((3, *v.type.shape[1:])) for v in graph.inputs()]
    before = evaluate(graph, feeds)
    assert len(kept(fuse(graph, RULES, compare=False))) == 1
    np.testing.assert_allclose(evaluate(graph, feeds)[0], before[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layer", ["linear", "matmul and sum", "no bias"])
@pytest.mark.parametrize("core", CORES)
def test_it_is_proved_where_it_applies(core: str, layer: str) -> None:
    model = from_scratch(Case(core=core, layer=layer).graph(), "fx")
    (application,) = graphopt.optimize(model, "absorb-projections", prove=True).report.kept
    assert application.evidence.proof is not None and application.evidence.proof.holds, application.evidence


# ---- models that nobody here wrote ---------------------------------------------------------------------------


class CrossAttention(torch.nn.Module):
    """diffusers' attention of an image to the few tokens of another."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention(32, 24, heads=4, dim_head=8, bias=bias)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.attention(x, tokens)


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_of_diffusers_is_absorbed(bias: bool, storage: str) -> None:
    module, given = CrossAttention(bias=bias).eval(), (torch.randn(2, 64, 32), torch.randn(2, 4, 24))
    if storage == "onnx":
        model: Any = torch.onnx.export(module, given, dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(model, "clean-up,absorb-projections")
        got = torch.from_numpy(result.lower("onnxruntime")(*(x.numpy() for x in given))[0])
    else:
        result = graphopt.optimize(module, "clean-up,absorb-projections", example_inputs=given)
        got = result.model(*given)
    absorbed = [a for a in result.report.applications if a.rule.startswith("attention-then")]
    assert [a.status for a in absorbed] == ["kept"], result.report.why_not()
    torch.testing.assert_close(got, module(*given), rtol=1e-5, atol=1e-5)


def test_a_program_computes_keys_and_values_once_a_request() -> None:
    from graphopt.tools.digits.models import load_unet, scheduler
    from graphopt.tools.digits.sampling import noise

    x, label = noise(2, 0), torch.tensor([3, 5])
    example = {"sample": x, "timestep": torch.tensor(1), "class_labels": label}
    program = graphopt.Sampler(load_unet(), scheduler(), 4, example_inputs=example)
    result = graphopt.optimize(program, "absorb-projections,hoist")
    absorbed = [a for a in result.report.applications if a.rule == "attention-then-linear"]
    assert [a.status for a in absorbed] == ["kept"] * 4  # of the self-attention beside them none
    (body,) = result.program.bodies.values()
    shapes = {tuple(t.shape) for t in body.result_types("prologue")}
    assert (2, 40, 2 * 4) in shapes, shapes
    wanted, got = program(x, class_labels=label), result.program(x, class_labels=label)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


# ---- what is wrong is caught ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["scale", "heads", "keys"])
def test_a_wrong_product_is_undone(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    writing = absorb_projections._Writing

    def keys(self: Any) -> Any:
        side = self.found.k if wrong != "keys" else self.found.v
        if wrong == "scale":
            return self.build.mul(self.ordered(side, (0, 1, 3, 2)), self.build.const(1.01, "c", "float32"))
        return self.ordered(side, (0, 1, 3, 2)) if wrong == "keys" else self.build.transpose(
            self.build.reshape(side.value, shape=(2, self.keys, 2, -1)), perm=(0, 2, 3, 1))  # fmt: skip

    monkeypatch.setattr(writing, "turned_keys", keys)
    graph = Case(values=6).graph()
    before = graph.fingerprint()
    (application,) = fuse(graph, RULES, compare=False).applications
    assert application.status == "undone" and graph.fingerprint() == before


# ---- refusals ------------------------------------------------------------------------------------------------

REFUSED = [
    (Case(queries=0), "not numbers above 0"),
    (Case(tied=True, values=6, into=12, out=12), "stored twice"),
    (Case(dtype="float16"), "range of float16"),
    (Case(keys=12), "multiply-adds a sample become"),
    (Case(mask=True), "mask"),
    (Case(core="matmul", mask=True), "mask"),
    (Case(causal=True), "causal"),
    (Case(shared="projection weight"), "output of the graph"),
    (Case(shared="second weight"), "output of the graph"),
    (Case(shared="projection"), "output"),
    (Case(shared="queries"), "output"),
    (Case(core="matmul", shared="weights"), "output"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_it_is_refused_with_the_reason(case: Case, reason: str) -> None:
    assert_refused(case.graph(), RULES, "attention-then-linear", reason)
