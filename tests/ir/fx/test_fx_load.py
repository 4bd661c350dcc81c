"""Taking torch models in every kind, and giving the same kind back."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import graphopt
from graphopt.errors import MissingExtraError, ModelError, UnsupportedError
from graphopt.ir.fx.load import load_torch
from graphopt.ir.graph import Unreadable
from graphopt.ir.text import graph_text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 2)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y = self.last(torch.relu(self.norm(self.first(x))))
        return {"y": y if scale is None else y * scale, "x": x}


X, SCALE = torch.rand(3, 4), torch.tensor(2.0)


def same(a: Any, b: Any) -> bool:
    return bool(
        torch.utils._pytree.tree_all(lambda pair: pair, torch.utils._pytree.tree_map(torch.equal, a, b))
    )


def test_a_module_comes_back_as_a_module_with_the_names_of_its_weights() -> None:
    module = Net().eval()
    exported = load_torch(module, (X,)).export()
    assert isinstance(exported, nn.Module)
    assert same(exported(X), module(X))
    assert list(exported(X)) == ["y", "x"]
    kept = set(module.state_dict()) - {"unused.weight", "unused.bias", "norm.num_batches_tracked"}
    assert set(exported.state_dict()) == kept
    assert {n for n, _ in exported.named_parameters()} == {n for n in kept if "running" not in n}


@pytest.mark.parametrize("example", [((X,), {"scale": SCALE}), {"x": X, "scale": SCALE}])
def test_keyword_inputs_stay_keyword_inputs(example: Any) -> None:
    module = Net().eval()
    exported = load_torch(module, example).export()
    args, kwargs = example if isinstance(example, tuple) else ((), example)
    assert same(exported(*args, **kwargs), module(*args, **kwargs))


def test_one_tensor_is_one_positional_input() -> None:
    module = nn.Linear(4, 2)
    assert same(load_torch(module, X).export()(X), module(X))


def test_an_exported_program_comes_back_as_a_valid_one() -> None:
    module = Net().eval()
    program = torch.export.export(module, (X,), strict=False)
    printed = str(program)
    exported = load_torch(program).export()
    assert isinstance(exported, ExportedProgram)
    exported.validate()
    assert same(exported.module()(X), module(X))
    assert str(program) == printed


def test_a_graph_module_comes_back_as_one_and_needs_example_inputs_if_it_carries_no_types() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).eval()
    traced = torch.fx.symbolic_trace(module)
    code = traced.code
    with pytest.raises(ModelError, match="example_inputs="):
        load_torch(traced)
    exported = load_torch(traced, X).export()
    assert isinstance(exported, torch.fx.GraphModule)
    assert same(exported(X), module(X))
    assert set(exported.state_dict()) == set(module.state_dict())
    assert traced.code == code


def test_a_graph_module_that_carries_types_needs_no_example_inputs() -> None:
    module = Net().eval()
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}, "scale": None}
    program = torch.export.export(module, (X,), {"scale": SCALE}, dynamic_shapes=dynamic, strict=False)
    exported = load_torch(program.module()).export()
    assert isinstance(exported, torch.fx.GraphModule)
    larger = torch.rand(6, 4)
    assert same(exported(larger, scale=SCALE), module(larger, scale=SCALE))


def test_what_came_out_can_go_in_again() -> None:
    module = Net().eval()
    once = load_torch(module, X).export()
    twice = load_torch(once, X).export()
    assert same(twice(X), module(X))
    assert set(twice.state_dict()) == set(once.state_dict())


@pytest.mark.parametrize("training", [False, True])
def test_the_input_is_not_modified(training: bool) -> None:
    module = Net().train(training)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    model = load_torch(module, (X,))
    exported = model.export()
    exported(X)
    assert module.training is training
    assert same(module.state_dict(), state)
    assert all(t is tensors[n] for n, t in (*module.named_parameters(), *module.named_buffers()))
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_a_clone_computes_the_same_is_called_the_same_and_is_of_its_own() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": torch.relu(self.linear(x)) * scale}

    module, x, scale = Both(), torch.randn(2, 4), torch.tensor(2.0)
    model = load_torch(module, ((x,), {"scale": scale}))
    before = graph_text(model.main)
    copy = model.clone()
    assert graph_text(copy.main) == before
    relu = next(n for n in copy.main.nodes() if copy.main.call(n).op == "relu")
    (twice,), _, _ = copy.main.insert("neg", [copy.main.call(relu).operands[0]], {}, before=relu, types=[None])
    copy.main.replace(copy.main.results(relu)[0], twice)
    assert graph_text(model.main) == before
    torch.testing.assert_close(model.export()(x, scale=scale), module(x, scale=scale), rtol=0, atol=0)
    torch.testing.assert_close(copy.export()(x, scale=scale)["y"], -module.linear(x) * scale)


def test_training_mode_is_exported_as_it_is() -> None:
    module, reference = Net().train(), Net().train()
    reference.load_state_dict(module.state_dict())
    exported = load_torch(module, (X,)).export()
    assert same(exported(X), reference(X))
    assert torch.equal(exported.state_dict()["norm.running_mean"], reference.norm.running_mean)
    assert not torch.equal(exported.state_dict()["norm.running_mean"], module.norm.running_mean)


def test_a_report_says_that_a_module_was_in_training_where_that_matters() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    note = "'1' is in training mode and stays so: call eval() on the module before it is optimised"
    assert graphopt.optimize(module, [], example_inputs=X).report.notes == [note]
    assert graphopt.optimize(module.eval(), [], example_inputs=X).report.notes == []
    assert graphopt.optimize(nn.Linear(4, 4).train(), [], example_inputs=X).report.notes == []


def test_dynamic_shapes_are_passed_through() -> None:
    module = Net().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    model = load_torch(module, (X,), {"x": {0: batch}})
    larger = torch.rand(9, 4)
    assert same(model.export()(larger), module(larger))
    assert isinstance(model.main.type(model.main.inputs()[0]).shape[0], str)
    assert model.program().range_constraints


def test_assertions_on_intermediate_results_move_to_the_inputs() -> None:
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu((x * 2).to(torch.float32))

    model = load_torch(Casts(), X)
    graph = model.main
    mul = next(n for n in graph.nodes() if graph.key(n) == "mul")
    assert [graph.key(n) for n in graph.users(mul)] == ["relu"]
    with pytest.raises(RuntimeError, match="dtype"):
        model.program().module()(X.double())


def test_save_writes_an_exported_program_and_leaves_nothing_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("torch"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("torch.export"), "propagate", True)
    module = Net().eval()
    path = tmp_path / "model.pt2"
    load_torch(module, (X,)).save(path)
    assert same(torch.export.load(path).module()(X), module(X))
    assert list(tmp_path.iterdir()) == [path]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_script_module_is_converted_if_torch_can() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).eval()
    exported = load_torch(torch.jit.trace(module, X), X).export()
    assert same(exported(X), module(X))
    assert set(exported.state_dict()) == set(module.state_dict())


def test_a_script_module_that_keeps_state_is_refused_by_the_names_of_its_attributes() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last_size = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last_size = x.size(0)
            return x + 1

    with pytest.raises(UnsupportedError, match="last_size"):
        load_torch(torch.jit.script(Counts()), X)


@pytest.mark.parametrize(
    ("source", "example", "message"),
    [
        (object(), None, "expected a torch.nn.Module"),
        (nn.Linear(4, 2), None, "pass example_inputs="),
        (nn.Linear(4, 2), torch.rand(3, 7), "cannot trace Linear"),
    ],
)
def test_what_cannot_be_taken_is_a_model_error(source: Any, example: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_torch(source, example)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"graphopt\[torch\]"):
        load_torch(object())


def test_the_entry_point_is_imported_without_torch() -> None:
    script = "import sys, graphopt.ir.fx.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_weights_are_counted_and_unused_ones_dropped() -> None:
    model = load_torch(Net().eval(), X)
    model.refresh()
    names = [name for name, _, _ in model.weights()]
    assert "unused.weight" not in names
    assert ("first.weight", 20, 80) in model.weights()


def test_every_node_is_read_or_has_a_reason() -> None:
    graph = load_torch(Net().train(), X).main
    for node in graph.nodes():
        call = graph.call(node)
        assert call or (isinstance(call, Unreadable) and call.reason)
        assert not call or call.op == graph.key(node)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "batch_first": True}, {"bias": False}])
def test_a_stack_of_recurrent_layers_is_one_after_the_other_and_computes_the_same_bits(
    settings: dict[str, bool], given: bool
) -> None:
    class Stack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(5, 7, num_layers=3, dropout=0.5, **settings)

        def forward(self, x, state):
            return self.rnn(x, state if given else None)

    module = Stack().eval()
    batch = 4 if module.rnn.batch_first else 6
    layers = 6 if module.rnn.bidirectional else 3
    inputs = (torch.randn(4, 6, 5), (torch.randn(layers, batch, 7), torch.randn(layers, batch, 7)))
    model = load_torch(module, (inputs, {}))
    assert [model.main.key(n) for n in model.main.nodes()].count("lstm_layer") == 3
    expected, got = (torch.utils._pytree.tree_leaves(m(*inputs)) for m in (module, model.export()))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)) and len(got) == 3
    model.program().module()


def test_a_stack_of_recurrent_layers_may_have_any_batch() -> None:
    module = torch.nn.LSTM(5, 7, num_layers=2, bidirectional=True, batch_first=True).eval()
    model = load_torch(module, torch.randn(3, 6, 5), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert [model.main.key(n) for n in model.main.nodes()].count("lstm_layer") == 2
    x = torch.randn(4, 6, 5)
    expected, got = (torch.utils._pytree.tree_leaves(m(x)) for m in (module, model.export()))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)) and len(got) == 3


def test_recurrent_layers_between_which_numbers_are_dropped_stay_one_node() -> None:
    module = torch.nn.LSTM(5, 7, num_layers=2, dropout=0.5)
    graph = load_torch(module, (torch.randn(4, 6, 5),)).main
    (node,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)
    assert graph.call(node).reason == "several layers"


class Mixed(torch.nn.Module):
    """Sums, differences and products of several dtypes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + (x > 0)) * x.double() - torch.arange(4, dtype=torch.int32)


def test_what_torch_promotes_is_cast_and_then_read_and_computes_the_same_bits() -> None:
    x = torch.randn(3, 4)
    model = graphopt.load(Mixed(), example_inputs=(x,))
    calls = [model.main.call(node) for node in model.main.nodes()]
    assert not any("type promotion" in call.reason for call in calls if isinstance(call, Unreadable))
    ops = [call.op for call in calls if not isinstance(call, Unreadable)]
    assert ops.count("cast") == 4 and {"add", "mul", "sub"} <= set(ops)
    assert torch.equal(graphopt.optimize(Mixed(), [], example_inputs=(x,)).model(x), Mixed()(x))


def test_threads_may_take_models_at_once() -> None:
    together = Barrier(4)

    def optimised(seed: int) -> bool:
        module = Net().eval()
        example = torch.rand(seed + 1, 4)
        together.wait()
        result = graphopt.optimize(module, example_inputs=((example,), {"scale": SCALE}))
        wanted, got = module(example, scale=SCALE), result.model(example, scale=SCALE)
        lowered = result.lower("onnxruntime")(example, scale=SCALE)
        return all(torch.allclose(wanted["y"], other["y"], atol=1e-5) for other in (got, lowered))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(optimised, range(4))) == [True] * 4


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_weights_may_be_sparse(layout: Any, tmp_path: Path) -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("links", torch.eye(3).to_sparse(layout=layout))
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.links @ self.layer(x.clone())

    module = Sparse()
    result = graphopt.optimize(module, ["clean-up", "bf16"], example_inputs=X, budget=0.1, calibration=[(X,)] * 4)
    assert len(result.report.kept) > 1
    torch.testing.assert_close(result.model(X), module(X), rtol=0.05, atol=0.05)
    if layout is torch.sparse_coo:
        with pytest.raises(UnsupportedError, match=r"model\.pt2: torch\.export\.save cannot write this model"):
            result.save(tmp_path / "model.pt2")
        assert not list(tmp_path.iterdir())


def test_a_result_that_torch_does_not_look_into_is_refused_with_advice() -> None:
    class Cache:
        pass

    class Returns(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1, Cache()

    with pytest.raises(ModelError, match=r"does not look into\. .* config\.use_cache is False"):
        load_torch(Returns(), X)
