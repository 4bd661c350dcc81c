"""A part of a torch model is a model of its own: it runs, is exported and saved, and shares the weights."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

from graphopt.errors import UnsupportedError
from graphopt.ir.fx.model import FxModel
from graphopt.ir.load import load_model


class Net(nn.Module):
    """A layer whose input is called like a builtin, a tied weight, a buffer and two results."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.again = self.second
        self.register_buffer("shift", torch.arange(8.0))

    def forward(self, input: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.first(input))
        halves = (self.again(self.second(hidden)) + self.shift).chunk(2, dim=-1)
        return halves[0] * scale, halves[1]


X, SCALE = torch.arange(12.0).reshape(3, 4) / 7, torch.tensor(1.5)


@pytest.fixture
def model() -> FxModel:
    torch.manual_seed(0)
    return load_model(Net().eval(), example_inputs=(X, SCALE))


def keys(model: FxModel) -> list[str]:
    return [model.main.key(n) for n in model.main.nodes()]


def halves(model: FxModel) -> tuple[FxModel, FxModel]:
    """Cut behind the activation."""
    graph = model.main
    nodes = list(graph.nodes())
    cut = next(i for i, n in enumerate(nodes) if graph.key(n) == "relu") + 1
    (hidden,) = graph.results(nodes[cut - 1])
    image, scale = graph.inputs()
    first = model.extract(nodes[:cut], [image], [hidden])
    return first, model.extract(nodes[cut:], [hidden, scale], graph.outputs())


def test_two_halves_compute_what_the_whole_does(model: FxModel) -> None:
    first, second = halves(model)
    expected = model.main.run([X.numpy(), SCALE.numpy()])
    got = second.main.run([*first.main.run([X.numpy()]), SCALE.numpy()])
    assert [e.tobytes() for e in expected] == [g.tobytes() for g in got]
    assert keys(first) + keys(second) == keys(model)


def test_a_part_is_an_exported_program_that_runs(model: FxModel) -> None:
    first, second = halves(model)
    (hidden,) = first.program().module()(X)
    got = second.program().module()(hidden, SCALE)
    expected = model.program().module()(X, SCALE)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_names_and_types_are_kept(model: FxModel) -> None:
    first, second = halves(model)
    assert [first.main.name(v) for v in first.main.inputs()] == ["input"]
    assert str(first.main.type(first.main.inputs()[0])) == "float32[3,4]"
    names = [model.main.node_name(n) for n in model.main.nodes()]
    assert [p.main.node_name(n) for p in (first, second) for n in p.main.nodes()] == names
    assert [n for n, _, _ in first.weights()] == ["first.weight", "first.bias"]
    assert "shift" in [n for n, _, _ in second.weights()]


def test_weights_are_shared_with_the_whole_and_a_tied_one_counts_once(model: FxModel) -> None:
    _, second = halves(model)
    whole = {w.name: w.tensor for w in model.main.weights.values()}
    assert all(w.tensor.data_ptr() == whole[w.name].data_ptr() for w in second.main.weights.values())
    assert sum(elements for _, elements, _ in second.weights()) == 64 + 8


def test_a_part_is_taken_by_the_onnx_exporter(model: FxModel) -> None:
    from graphopt.backends.ort_export import export_onnx
    from graphopt.verify.execute import model_runner

    first, _ = halves(model)
    exported = load_model(export_onnx(first.program()))
    (got,) = model_runner(exported)([X.numpy()])
    (expected,) = first.main.run([X.numpy()])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_part_can_be_saved_refreshed_and_cut_again(model: FxModel, tmp_path) -> None:
    _, second = halves(model)
    second.refresh()
    second.save(tmp_path / "part.pt2")
    loaded = load_model(torch.export.load(tmp_path / "part.pt2"))
    again = second.extract(list(second.main.nodes()), second.main.inputs(), second.main.outputs())
    feeds = [np.ones((3, 8), np.float32), SCALE.numpy()]
    results = [m.main.run(feeds) for m in (second, loaded, again)]
    assert len({b"".join(r.tobytes() for r in result) for result in results}) == 1


def test_edits_of_a_part_leave_the_whole_alone(model: FxModel) -> None:
    first, _ = halves(model)
    before = model.main.fingerprint()
    node = next(n for n in first.main.nodes() if first.main.key(n) == "relu")
    (negative,), _, _ = first.main.insert("neg", [node], {}, before=first.main.output_node, types=[None])
    first.main.replace(node, negative)
    assert keys(first)[-1] == "neg"
    assert model.main.fingerprint() == before


def test_what_was_given_or_is_returned_twice_is_returned_as_a_copy(model: FxModel) -> None:
    graph = model.main
    image = graph.inputs()[0]
    relu = next(n for n in graph.nodes() if graph.key(n) == "relu")
    upto = [n for n in graph.nodes() if not graph.precedes(relu, n)]
    part = model.extract(upto, [image], [image, relu, relu])
    given, once, twice = part.program().module()(X)
    assert torch.equal(given, X) and torch.equal(once, twice)
    assert len({t.data_ptr() for t in (X, given, once, twice)}) == 4


def test_a_value_from_elsewhere_is_refused_by_name(model: FxModel) -> None:
    graph = model.main
    (second, *_) = [n for n in graph.nodes() if graph.key(n) == "linear"][1:]
    with pytest.raises(UnsupportedError, match="reads relu, neither an input nor a constant"):
        model.extract([second], [], graph.results(second))


def test_state_that_the_model_writes_is_named_where_no_part_can_be_run() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x * self.calls

    with pytest.raises(UnsupportedError, match=r"writes its buffer 'calls' .* approximate passes .*\.eval\(\)"):
        load_model(Counts(), example_inputs=X).copy()


def test_inputs_twice_and_values_that_are_no_tensors_are_refused(model: FxModel) -> None:
    graph = model.main
    image = graph.inputs()[0]
    with pytest.raises(UnsupportedError, match="cannot be an input twice"):
        model.extract([], [image, image], [image])
    chunk = next(n for n in graph.nodes() if graph.key(n) == "split")
    with pytest.raises(UnsupportedError, match="no tensor"):
        model.extract([chunk], [chunk.args[0]], [chunk])


def test_weights_without_data_are_told_apart_and_never_allocated() -> None:
    with torch.device("meta"):
        layers = [nn.Linear(1 << 20, 1 << 20, bias=False) for _ in range(2)]
        module, x = nn.Sequential(*layers), torch.empty(1, 1 << 20)
    model = load_model(module, example_inputs=(x,))
    assert sum(elements for _, elements, _ in model.weights()) == 2 << 40
    first, second = model.main.nodes()
    part = model.extract([second], [first], model.main.outputs())
    assert sum(elements for _, elements, _ in part.weights()) == 1 << 40
    assert str(part.main.type(part.main.outputs()[0])) == "float32[1,1048576]"
    (result,) = part.program().module()(x)
    assert result.shape == (1, 1 << 20) and result.is_meta


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, flag: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(flag, lambda v: self.layer(v) + 1, lambda v: v * 2, (x.relu(),))[..., :2]


def test_control_flow_comes_along_with_its_bodies() -> None:
    flag, x = torch.tensor(True), torch.randn(2, 3)
    model = load_model(Branching(), example_inputs=(flag, x))
    graph = model.main
    nodes = list(graph.nodes())
    cond = next(i for i, n in enumerate(nodes) if graph.subgraphs(n))
    part = model.extract(nodes[cond:], [graph.inputs()[0], graph.results(nodes[cond - 1])[0]], graph.outputs())
    assert len(part.regions()) == 3
    for given in (True, False):
        expected = model.main.run([np.asarray(given), x.numpy()])
        got = part.main.run([np.asarray(given), x.relu().numpy()])
        assert expected[0].tobytes() == got[0].tobytes()
        (ran,) = part.program().module()(torch.tensor(given), x.relu())
        assert ran.detach().numpy().tobytes() == got[0].tobytes()


def test_symbolic_sizes_keep_their_names_and_ranges() -> None:
    rows = torch.export.Dim("rows", min=2, max=64)
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = load_model(module, example_inputs=(torch.randn(3, 4),), dynamic_shapes=({0: rows},))
    linear, relu = model.main.nodes()
    part = model.extract([relu], [linear], model.main.outputs())
    assert part.main.type(part.main.inputs()[0]) == model.main.type(linear)
    assert part.program().module()(torch.randn(9, 4))[0].shape == (9, 4)
    with pytest.raises(Exception, match="64"):
        part.program().module()(torch.randn(65, 4))


def test_cutting_takes_time_in_proportion_to_the_nodes() -> None:
    def seconds(layers: int) -> float:
        model = load_model(nn.Sequential(*[nn.Tanh() for _ in range(layers)]), example_inputs=(torch.randn(2),))
        nodes = list(model.main.nodes())
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            model.extract(nodes, model.main.inputs(), model.main.outputs())
            best = min(best, time.process_time() - started)
        return best

    assert seconds(600) < 3 * 4 * seconds(150)
