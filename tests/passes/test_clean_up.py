"""The pass as a whole: rounds, interfaces, bodies, limits and skips, both storages, determinism."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from clean_up_graphs import applications, assert_same_results, clean, kept_rules, onnx_model, op_types

from graphopt.errors import PipelineError
from graphopt.passes.clean_up import RULES, CleanUp
from graphopt.pipeline.pipeline import make_passes

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
MIXED = """
    agraph (float[N, 4] x) => (float[N, 4] y)
    <float one = {1}, float[4] w = {1, 2, 3, 4}> {
        a = Identity(x)
        b = Mul(a, one)
        c = Transpose <perm = [1, 0]> (b)
        d = Relu(c)
        e = Transpose <perm = [1, 0]> (d)
        f = Exp(w)
        g = Exp(w)
        h = Add(f, g)
        i = Mul(e, h)
        j = Sigmoid(i)
        y = Identity(i)
    }
"""


def test_everything_together_reaches_a_fixed_point() -> None:
    model = onnx_model(MIXED)
    result = clean(model)
    assert op_types(result.model) == ["Relu", "Mul"]
    assert all(a.status == "kept" and a.evidence.counts for a in applications(result))
    assert_same_results(model, result.model, {"x": X})
    assert applications(clean(result.model)) == []


def test_results_and_ids_are_the_same_every_time() -> None:
    first, second = clean(onnx_model(MIXED)), clean(onnx_model(MIXED))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert [a.id for a in applications(first)] == [a.id for a in applications(second)]


def test_the_input_is_not_modified() -> None:
    model = onnx_model(MIXED)
    before = model.SerializeToString()
    clean(model)
    assert model.SerializeToString() == before


def test_a_limit_is_kept_to() -> None:
    everything = sum(kept_rules(clean(onnx_model(MIXED))).values())
    for limit in range(everything):
        result = clean(onnx_model(MIXED), limit=limit)
        assert sum(kept_rules(result).values()) == limit
        assert_same_results(onnx_model(MIXED), result.model, {"x": X})


@pytest.mark.parametrize("rule", ["fold-constants", "merge-equal-nodes", "dead-code"])
def test_a_skipped_application_is_recorded_once_and_the_rest_happens(rule: str) -> None:
    skipped = f"clean-up/{rule}#1"
    result = clean(onnx_model(MIXED), skip=[skipped])
    statuses = [a.status for a in applications(result) if a.id == skipped]
    assert statuses == ["skipped"]
    assert [a for a in applications(result) if a.rule == rule and a.status == "kept"] == []
    assert kept_rules(result)["multiply-by-one"] == 1


def test_names_of_inputs_and_outputs_stay_when_nothing_is_between_them() -> None:
    model = onnx_model("agraph (float[N, 4] x) => (float[N, 4] y) { a = Neg(x) b = Neg(a) y = Identity(b) }")
    result = clean(model)
    assert op_types(result.model) == ["Identity"]
    assert_same_results(model, result.model, {"x": X})


def test_low_precision_casts_to_and_fro_disappear() -> None:
    model = onnx_model("""
        agraph (float16[N, 4] x) => (float16[N, 4] y) {
            a = Cast <to = 1> (x)
            b = Cast <to = 10> (a)
            y = Relu(b)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Relu"]
    assert_same_results(model, result.model, {"x": X.astype(np.float16)})


def test_rules_run_inside_bodies() -> None:
    model = onnx_model("""
        agraph (bool c, float[3, 4] x) => (float[3, 4] y) {
            y = If (c) <
                then_branch = yes () => (float[3, 4] p) {
                    one = Constant <value = float {1}> ()
                    a = Mul(x, one)
                    p = Neg(a)
                },
                else_branch = no () => (float[3, 4] q) {
                    b = Relu(x)
                    d = Relu(b)
                    q = Neg(d)
                }
            >
        }
    """)
    result = clean(model)
    bodies = {a.name: [n.op_type for n in a.g.node] for a in result.model.graph.node[0].attribute}
    assert bodies == {"then_branch": ["Neg"], "else_branch": ["Relu", "Neg"]}
    for condition in (True, False):
        assert_same_results(model, result.model, {"c": np.asarray(condition), "x": X})


def test_constants_of_a_function_body_stay_nodes() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        agraph (float[3, 4] x) => (float[3, 4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 18]>
        twice (a) => (b) { two = Constant <value = float {2}> () b = Mul(a, two) }
    """
    model = onnx.parser.parse_model(text)
    result = clean(model)
    assert [n.op_type for n in result.model.functions[0].node] == ["Constant", "Mul"]
    assert_same_results(model, result.model, {"x": X})


def test_torch_modules_are_cleaned_up_with_torch_kernels() -> None:
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            folded = self.weight.t() * 2 + torch.arange(4.0)
            unused = x.exp()
            y = torch.relu(torch.relu(x * 1.0).transpose(0, 1).transpose(0, 1))
            del unused
            return y @ folded + y @ folded

    module, x = Module().eval(), torch.from_numpy(X)
    result = clean(module, example_inputs=(x,))
    rules = kept_rules(result)
    expected = {"multiply-by-one", "relu-twice", "transpose-twice", "fold-constants", "merge-equal-nodes"}
    assert expected <= set(rules)
    assert all(a.evidence.counts for a in applications(result))
    with torch.no_grad():
        assert torch.equal(result.model(x), module(x))


def test_the_pass_is_registered_and_checks_its_option() -> None:
    assert make_passes("clean-up{rounds=2}") == [CleanUp(rounds=2)]
    with pytest.raises(PipelineError, match="rounds"):
        make_passes("clean-up{rounds=0}")


def test_every_rule_says_its_mathematics() -> None:
    assert all(rule.doc and "=" in rule.doc for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)
