"""The torch storage: constants, edits and their undo, outputs, fragments, control flow."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from graphopt.errors import ModelError, UnsupportedError
from graphopt.ir.fx.load import load_torch
from graphopt.ir.fx.model import FxModel
from graphopt.ir.fx.schema import mutating_operators, refuse_mutation
from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.graph import CannotEmit, Literal, Node, TensorType, Undo
from graphopt.ir.weights import ArrayRef


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(x)))


class Runs(nn.Module):
    def __init__(self, function: Any, **tensors: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


IMAGE = torch.rand(2, 3, 6, 6)


def graph_of(function: Any, *inputs: torch.Tensor, **tensors: torch.Tensor) -> FxGraph:
    return load_torch(Runs(lambda _, *args: function(*args), **tensors), inputs).main


def node_of(graph: FxGraph, key: str) -> Node:
    return next(n for n in graph.nodes() if graph.key(n) == key)


def fold(graph: FxGraph) -> list[Undo]:
    """Fold the batch norm of `ConvNorm` into its convolution by hand."""
    conv, norm = graph.call(node_of(graph, "conv")), graph.call(node_of(graph, "batch_norm"))
    weight, bias = (graph.constant(v) for v in conv.operands[1:])
    scale, shift, mean, var = (graph.constant(v) for v in norm.operands[1:])
    factor = scale / (var + norm.fields["eps"]).sqrt()
    w, undo_w = graph.add_constant(weight * factor.reshape(-1, 1, 1, 1), "conv.weight_folded")
    b, undo_b = graph.add_constant((bias - mean) * factor + shift, "conv.bias_folded")
    old = norm.outputs[0]
    (new,), _, undo_conv = graph.insert(
        "conv", [conv.operands[0], w, b], conv.fields, before=norm.node, types=[graph.type(old)]
    )
    return [undo_w, undo_b, undo_conv, graph.replace(old, new)]


def code_of(graph: FxGraph) -> str:
    graph.module.recompile()
    return str(graph.module.code)


def test_a_fold_keeps_the_output_and_its_undo_restores_code_and_fingerprint() -> None:
    module = ConvNorm().eval()
    model = load_torch(module, IMAGE)
    graph = model.main
    code, fingerprint = code_of(graph), graph.fingerprint()
    calls = [repr(graph.call(n)) for n in graph.nodes()]
    undos = fold(graph)
    assert graph.fingerprint() != fingerprint
    for undo in reversed(undos):
        undo()
    assert (code_of(graph), graph.fingerprint()) == (code, fingerprint)
    assert [repr(graph.call(n)) for n in graph.nodes()] == calls
    fold(graph)
    graph.remove(node_of(graph, "batch_norm"))
    graph.remove(graph.producer(graph.call(node_of(graph, "relu")).operands[0]).prev)
    assert [graph.key(n) for n in graph.nodes()] == ["conv", "relu"]
    exported = model.export()
    torch.testing.assert_close(exported(IMAGE), module(IMAGE))
    assert list(exported.state_dict()) == ["conv.weight_folded", "conv.bias_folded"]


def test_a_call_is_read_anew_after_its_operand_was_replaced() -> None:
    graph = graph_of(lambda x: torch.relu(x + 1), IMAGE)
    add, relu = graph.nodes()
    assert graph.call(relu).operands == (add,)
    undo = graph.replace(add, graph.inputs()[0])
    assert graph.call(relu).operands == (graph.inputs()[0],)
    undo()
    assert graph.call(relu).operands == (add,)


def test_a_value_is_confined_to_its_readers_unless_it_is_an_output() -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = torch.split(x.exp(), 1)
        return low + high, low.relu()

    graph = graph_of(function, torch.rand(2, 3))
    for node in graph.nodes():
        for value in graph.results(node):
            readers = graph.users(value)
            assert graph.confines(value, {*readers}) is not graph.is_output(value)
            assert not graph.confines(value, {*readers[1:]})


def test_redirecting_tells_the_nodes_that_read_the_other_value_now_and_not_the_output() -> None:
    graph = graph_of(lambda x: (y := x.exp(), y.relu(), y.neg()), torch.rand(3))
    exp, relu, neg = graph.nodes()
    (new,), _, _ = graph.insert("sigmoid", [graph.inputs()[0]], {}, before=exp, types=())
    before = graph.fingerprint()
    readers, undo = graph.redirect(exp, new)
    assert readers == [relu, neg] and graph.is_output(new)
    undo()
    assert graph.fingerprint() == before


def test_the_absolute_value_of_complex_numbers_is_real() -> None:
    graph = graph_of(torch.neg, torch.ones(3, dtype=torch.complex64))
    (made,), _, _ = graph.insert("abs", graph.inputs(), {}, before=node_of(graph, "neg"), types=())
    assert graph.type(made) == TensorType("float32", (3,))


def test_what_a_run_writes_is_no_constant_but_an_output() -> None:
    def step(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * self.count + self.fixed
        self.count.add_(1)
        return y

    module = Runs(step, count=torch.ones(6), fixed=torch.ones(6))
    model = load_torch(module, IMAGE)
    graph = model.main
    weights = {w.name: n for n, w in graph.weights.items()}
    assert graph.constant(weights["count"]) is None
    assert graph.constant(weights["fixed"]) is not None
    written = graph.call(
        next(n for n in graph.nodes() if weights["count"] in n.args and graph.key(n) == "add")
    )
    assert graph.is_output(written.outputs[0])
    assert written.outputs[0] not in graph.outputs()
    exported = model.export()
    results = [exported(IMAGE) for _ in range(2)]
    assert torch.equal(module.count, torch.ones(6))
    assert torch.equal(results[1], module(IMAGE) * 0 + IMAGE * 2 + 1)


def test_memory_shared_with_a_written_buffer_is_no_constant() -> None:
    def step(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = x * self.part.sum()
        self.whole.add_(1)
        return y

    module = Runs(step, whole=torch.ones(6), part=torch.ones(3))
    program = torch.export.export(module, (IMAGE,), strict=False).run_decompositions({})
    program.state_dict["part"] = program.state_dict["whole"][:3]
    graph = FxModel(program, "program").main
    assert [graph.constant(n) for n in graph.weights] == [None, None]
    module.part = module.whole[:3]
    with pytest.raises(ModelError, match="functional"):
        load_torch(module, IMAGE)


def test_a_mutation_through_a_view_becomes_functional() -> None:
    def across(x: torch.Tensor) -> torch.Tensor:
        t = torch.sigmoid(x)
        y = x.clone()
        y.view(-1).add_(1)
        return y * t

    x = torch.rand(3, 4)
    graph = graph_of(across, x)
    assert "add" in [graph.key(n) for n in graph.nodes()]
    np.testing.assert_array_equal(graph.run([x.numpy()])[0], across(x).numpy())


def test_a_mutating_operator_that_is_left_is_refused_by_name() -> None:
    with torch.library._scoped_library("graphopt_test", "DEF") as library:
        library.define("scribble(Tensor(a!) x) -> ()")
        library.impl("scribble", lambda x: None, "CompositeExplicitAutograd")
        library.impl("scribble", lambda x: None, "Meta")
        program = torch.export.export(Runs(lambda _, x: x + 1), (IMAGE,), strict=False)
        with program.graph.inserting_before(program.graph.output_node()):
            first = next(iter(program.graph.nodes))
            program.graph.call_function(torch.ops.graphopt_test.scribble.default, (first,))
        with pytest.raises(UnsupportedError, match="graphopt_test.scribble.default"):
            refuse_mutation(mutating_operators(program.graph))


def test_tied_weights_have_one_identity_and_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("alias", self.a.weight.detach())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) + self.alias

    model = load_torch(Tied(), torch.rand(4, 4))
    refs = [model.main.constant(n) for n in model.main.weights if n.users]
    assert len({r.identity for r in refs if r is not None}) == 1
    assert len(refs) == 2
    assert [size for _, size, _ in model.weights()] == [16]
    assert set(model.export().state_dict()) == {"a.weight", "b.weight", "alias"}


def test_types_are_names_of_symbolic_sizes_and_reading_adds_no_guards() -> None:
    function = Runs(lambda _, x: torch.relu(x).reshape(x.shape[0], -1) @ x.reshape(x.shape[0], -1).T)
    model = load_torch(function, (IMAGE,), (({0: torch.export.Dim.DYNAMIC},),))
    graph = model.main
    guards = len(graph.fake_mode.shape_env.guards)
    size = graph.type(graph.inputs()[0]).shape[0]
    assert isinstance(size, str)
    calls = [graph.call(n) for n in graph.nodes() if graph.key(n) == "reshape"]
    assert [dict(c.fields) for c in calls] == [{"shape": (-1, 108), "allow_zero": False}] * 2
    relu = node_of(graph, "relu")
    (new,), _, _ = graph.insert("silu", [graph.inputs()[0]], {}, before=relu, types=[graph.type(relu)])
    assert graph.type(new) == TensorType("float32", (size, 3, 6, 6))
    assert len(graph.fake_mode.shape_env.guards) == guards
    other = torch.rand(5, 3, 6, 6)
    assert torch.equal(model.export()(other), function(other))


def test_a_fragment_of_a_dynamic_graph_runs_at_another_size() -> None:
    function = Runs(lambda _, x: torch.relu(x).reshape(x.shape[0], -1))
    graph = load_torch(function, (IMAGE,), (({0: torch.export.Dim.DYNAMIC},),)).main
    nodes = [node_of(graph, "relu"), node_of(graph, "reshape")]
    fragment = graph.cut(nodes, graph.inputs(), graph.outputs())
    other = torch.randn(5, 3, 6, 6)
    np.testing.assert_array_equal(fragment.run([other.numpy()])[0], function(other).numpy())


def test_a_fragment_captures_constants_and_refuses_what_is_missing() -> None:
    module = ConvNorm().eval()
    graph = load_torch(module, IMAGE).main
    conv, norm, relu = graph.nodes()
    fragment = graph.cut([conv, norm], graph.inputs(), [graph.call(norm).outputs[0]])
    assert len(fragment.weights) == 6
    expected = module.norm(module.conv(IMAGE)).detach().numpy()
    np.testing.assert_array_equal(fragment.run([IMAGE.numpy()])[0], expected)
    with pytest.raises(UnsupportedError, match="neither an input nor a constant"):
        graph.cut([relu], [], [relu])


def test_returning_an_input_or_another_output_writes_a_copy() -> None:
    graph = graph_of(lambda x: (x + 0, torch.relu(x), x * 1), IMAGE)
    before = graph.fingerprint()
    add, relu, mul = graph.nodes()
    undos = [graph.replace(add, graph.inputs()[0]), graph.replace(mul, relu)]
    keys = [graph.key(graph.producer(v)) for v in graph.outputs()]
    assert keys == ["identity", "relu", "identity"]
    for undo in reversed(undos):
        undo()
    assert graph.fingerprint() == before


def test_a_view_of_an_input_is_not_returned_where_a_copy_was() -> None:
    graph = graph_of(lambda x: x.reshape(-1).clone() + 0, IMAGE)
    add = node_of(graph, "add")
    graph.replace(add, node_of(graph, "reshape"))
    assert graph.key(graph.producer(graph.outputs()[0])) == "identity"


def test_an_operand_that_torch_rejects_leaves_the_graph_as_it_was() -> None:
    graph = graph_of(torch.relu, IMAGE)
    before = graph.fingerprint()
    relu = node_of(graph, "relu")
    with pytest.raises(CannotEmit, match="torch rejects"):
        graph.insert("reshape", [relu.args[0], None], {"shape": (7, 7)}, before=relu, types=[None])
    with pytest.raises(CannotEmit, match="is expected"):
        wrong = TensorType("float32", (1, 2))
        graph.insert("tanh", [relu.args[0]], {}, before=relu, types=[wrong])
    assert graph.fingerprint() == before


def test_a_field_that_aten_cannot_say_is_refused() -> None:
    graph = graph_of(torch.relu, IMAGE)
    image = graph.type(graph.inputs()[0])
    assert "exclusive" in str(graph.can_emit("cumsum", {"axis": 0, "exclusive": True}, [image]))
    assert "no writer" in str(graph.can_emit("one_hot", {"axis": 0}, [image, image, image]))
    assert "no field" in str(graph.can_emit("relu", {"slope": 1.0}, [image]))
    half = TensorType("float16", image.shape)
    assert "dtypes" in str(graph.can_emit("add", {}, [image, half]))
    assert graph.can_emit("cumsum", {"axis": 0}, [image]) is None


def test_a_number_is_an_operand_of_the_dtype_of_the_tensor() -> None:
    graph = graph_of(lambda x: 1 - x, IMAGE)
    call = graph.call(node_of(graph, "sub"))
    assert call.operands[0] == Literal(1.0, "float32")
    assert graph.constant(call.operands[0]).item() == 1.0
    assert graph.type(call.operands[0]) == TensorType("float32", ())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.to(torch.int32) + 0.5, "type promotion"),
        (lambda x: x / x.to(torch.float64), "type promotion"),
        (lambda x: torch.add(x, x, alpha=2), "alpha is not 1"),
        (lambda x: x.to(torch.int32) & 1, "bits of integers"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "several samples"),
        (lambda x: nn.functional.max_pool2d(x, 2, return_indices=True), "output 1 is used"),
        (lambda x: x.sum(dtype=torch.float64), "type promotion"),
        (lambda x: x.argmax(), "flattened"),
        (lambda x: x[x > 0.5], "mask"),
        (lambda x: nn.functional.prelu(x, torch.ones(3)), "one slope per channel"),
        (lambda x: nn.functional.dropout(x, 0.5), "training mode"),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 2), "more than one element"),
    ],
)
def test_what_cannot_be_said_exactly_is_unreadable(function: Any, reason: str) -> None:
    graph = graph_of(function, IMAGE)
    reasons = [c.reason for c in (graph.call(n) for n in graph.nodes()) if not c]
    assert any(reason in r for r in reasons), reasons


def test_batch_norm_in_training_mode_says_so_or_is_unreadable() -> None:
    graph = load_torch(ConvNorm().train(), IMAGE).main
    call = graph.call(node_of(graph, "batch_norm"))
    assert not call
    assert "output" in call.reason or "training" in call.reason


def test_random_numbers_are_not_pure_and_attention_is() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x) + torch.rand_like(x)

    graph = graph_of(function, IMAGE)
    pure = {graph.key(n): graph.is_pure(n) for n in graph.nodes()}
    assert pure["attention"]
    assert pure["add"]
    assert not all(pure.values())
    assert all(graph.is_pure(n) or not graph.call(n) for n in graph.nodes()), "what can be said is pure"


def test_raw_calls_can_be_inserted_as_they_are_read() -> None:
    graph = graph_of(lambda x: torch.flip(torch.cat([x, x, x], 1), [0]), IMAGE)
    for node in list(graph.nodes()):
        raw = graph.raw_call(node)
        (new,), (written,), undo = graph.insert(
            raw.op, raw.operands, raw.fields, before=node, types=[graph.type(node)]
        )
        assert graph.raw_call(written).fields == raw.fields
        assert graph.raw_call(written).operands == raw.operands
        undo()
    assert graph.raw_name(node) == graph.key(node) == "aten.flip.default"
    assert not graph.call(node)


def test_fresh_names_never_collide_with_a_weight_or_an_attribute_of_one() -> None:
    graph = load_torch(ConvNorm().eval(), IMAGE).main
    data = ArrayRef(np.ones(4, np.float32))
    names = [
        graph.name(graph.add_constant(data, n)[0])
        for n in ("conv.weight", "conv.weight", "conv", "conv.weight.x")
    ]
    assert len(set(names)) == 4
    assert not set(names) & {"conv.weight", "conv.bias"}
    assert not any(n.startswith("conv.weight.") for n in names)


def test_bfloat16_weights_are_views_and_stay_bfloat16() -> None:
    module = nn.Linear(4, 4).to(torch.bfloat16)
    model = load_torch(module, torch.rand(2, 4, dtype=torch.bfloat16))
    graph = model.main
    call = graph.call(node_of(graph, "linear"))
    ref = graph.constant(call.operands[1])
    assert ref.dtype == "bfloat16"
    assert ref.numpy().dtype == ml_dtypes.bfloat16
    assert np.shares_memory(ref.numpy().view(np.int16), module.weight.detach().view(torch.int16).numpy())
    doubled, _ = graph.add_constant(ref * 2.0, "weight_doubled")
    stored = graph.weights[doubled].tensor
    assert torch.equal(stored, module.weight.detach() * 2)
    x = torch.rand(2, 4, dtype=torch.bfloat16)
    (result,) = graph.run([x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)])
    assert result.dtype == ml_dtypes.bfloat16
    assert np.array_equal(result.view(np.int16), module(x).detach().view(torch.int16).numpy())


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: torch.relu(self.linear(v) + 0), lambda v: v * 2, (x,)) + 1


def test_control_flow_bodies_are_regions_that_can_be_rewritten() -> None:
    module = Branches()
    x = torch.rand(2, 6)
    model = load_torch(module, x)
    cond = next(n for n in model.main.nodes() if model.main.subgraphs(n))
    bodies = model.main.subgraphs(cond)
    assert model.main.raw_name(cond) == "higher_order.cond"
    assert list(model.regions()) == [model.main, *bodies]
    assert model.main.is_pure(cond)
    body = next(b for b in bodies if any(b.key(n) == "linear" for n in b.nodes()))
    code, fingerprint = code_of(body), model.main.fingerprint()
    add = node_of(body, "add")
    undo = body.replace(add, body.call(add).operands[0])
    assert model.main.fingerprint() != fingerprint
    undo()
    assert (code_of(body), model.main.fingerprint()) == (code, fingerprint)
    body.replace(add, body.call(add).operands[0])
    body.remove(add)
    exported = model.export()
    for value in (x, -x):
        assert torch.equal(exported(value), module(value))
        np.testing.assert_array_equal(model.main.run([value.numpy()])[0], module(value).detach().numpy())


def test_order_and_names_are_those_of_the_graph() -> None:
    graph = load_torch(ConvNorm().eval(), IMAGE).main
    conv, norm, relu = graph.nodes()
    assert graph.precedes(conv, relu)
    assert not graph.precedes(relu, norm)
    assert graph.users(conv) == [norm]
    assert graph.producer(graph.call(norm).outputs[0]) is norm
    assert graph.name(graph.call(conv).operands[1]) == "conv.weight"
    assert graph.node_name(relu) == "relu"
    assert graph.key(norm) == "batch_norm"
    assert graph.raw_name(norm) == "aten._native_batch_norm_legit_no_training.default"


def test_the_fingerprint_does_not_depend_on_the_process() -> None:
    script = (
        "import torch; from torch import nn; from graphopt.ir.fx.load import load_torch;"
        "m = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2));"
        "print(load_torch(m, torch.ones(1, 3)).main.fingerprint())"
    )
    module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    here = load_torch(module, torch.ones(1, 3)).main.fingerprint()
    environment = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, env=environment
    )
    assert there.stdout.strip() == here, there.stderr


def test_a_folder_that_does_not_exist_is_named(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="the folder .*none does not exist"):
        load_torch(ConvNorm(), IMAGE).save(tmp_path / "none" / "m.pt2")
