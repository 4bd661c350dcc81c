"""The same graphs and the same rule for each rewriting engine.

The rule turns relu(neg(x)) into sigmoid(x), which is wrong and cheap: engines are compared, not results, so
nothing is verified. A chain repeats neg, relu, tanh, abs; a wide graph has branches neg, relu, tanh from one
input and adds them up pairwise. Both have one match in four nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.interleave import Job

Emit = Callable[..., Any]
"""Writes one node of the graph under construction: (op, *operands) -> its value."""
Shape = Callable[[int, Emit, Any], Any]
"""Writes a graph of about so many nodes that begins at a given value; returns its output."""


def chain(nodes: int, emit: Emit, x: Any) -> Any:
    for _ in range(nodes // 4):
        for op in ("neg", "relu", "tanh", "abs"):
            x = emit(op, x)
    return x


def wide(nodes: int, emit: Emit, x: Any) -> Any:
    """Branches from one value that has very many readers."""
    return sum_of([emit("tanh", emit("relu", emit("neg", x))) for _ in range(nodes // 4)], emit)


def sum_of(level: list[Any], emit: Emit) -> Any:
    """Adds the values up pairwise."""
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [emit("add", a, b) for a, b in pairs] + level[len(level) & ~1 :]
    return level[0]


IDLE_OPS = (
    *("exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "floor", "ceil", "round"),
    *("reciprocal", "silu", "mish"),
)
"""Ops that the graphs do not hold."""
IDLE_PAIRS = [(outer, inner) for inner in IDLE_OPS for outer in ("neg", "relu", "tanh", "abs")]
"""Patterns `outer(inner(x))` that are tried on the graphs' ops but never match: the rules beside the first."""


@dataclass(frozen=True)
class Rewriter:
    """One engine."""

    prepare: Callable[[Shape, int], Job]
    """Builds a graph and returns the job that rewrites it."""
    hits: Callable[[Any], int]
    """The number of rewrites, from what the job returned."""
    most: int = 1_000_000
    """Largest graph that it is given, in nodes; it takes too long beyond."""
    shapes: tuple[Shape, ...] = (chain, wide)


# ---- torch ---------------------------------------------------------------------------------------------


def fx_module(shape: Shape, nodes: int) -> Any:
    """A graph of ATen ops over one float32[4] input, typed as torch.export types it."""
    import torch

    aten = torch.ops.aten
    overloads = {op: getattr(aten, op).default for op in ("neg", "relu", "tanh", "abs")}
    overloads["add"] = aten.add.Tensor
    value = fake_mode().from_tensor(torch.empty(4))
    graph = torch.fx.Graph()

    def emit(op: str, *operands: Any) -> Any:
        node = graph.call_function(overloads[op], operands)
        node.meta["val"] = value
        return node

    x = graph.placeholder("x")
    x.meta["val"] = value
    graph.output((shape(nodes, emit, x),))
    return torch.fx.GraphModule({}, graph)


@cache
def fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def prepare_inductor(shape: Shape, nodes: int, rules: int) -> Job:
    graph = fx_module(shape, nodes).graph
    return lambda: _inductor_pass(rules).apply(graph)


@cache
def _inductor_pass(rules: int) -> Any:
    import torch
    from torch._inductor.pattern_matcher import (
        CallFunction,
        KeywordArg,
        PatternMatcherPass,
        register_graph_pattern,
    )

    aten = torch.ops.aten
    passes = PatternMatcherPass()
    pattern = CallFunction(aten.relu.default, CallFunction(aten.neg.default, KeywordArg("x")))

    @register_graph_pattern(pattern, pass_dict=passes)
    def rewrite(match: Any, x: Any) -> None:
        old = match.output_node()
        with old.graph.inserting_before(old):
            new = old.graph.call_function(aten.sigmoid.default, (x,))
        new.meta.update(old.meta)
        old.replace_all_uses_with(new)
        match.erase_nodes()

    for outer, inner in IDLE_PAIRS[: rules - 1]:
        idle = CallFunction(getattr(aten, outer).default, CallFunction(getattr(aten, inner).default, KeywordArg("x")))
        register_graph_pattern(idle, pass_dict=passes)(lambda match, x: None)
    return passes


def prepare_replace_pattern(shape: Shape, nodes: int) -> Job:
    import torch
    from torch.fx import replace_pattern, symbolic_trace

    aten = torch.ops.aten
    module = fx_module(shape, nodes)
    pattern = symbolic_trace(lambda x: aten.relu.default(aten.neg.default(x)))
    replacement = symbolic_trace(lambda x: aten.sigmoid.default(x))
    return lambda: len(replace_pattern(module, pattern, replacement))


def prepare_bare_fx(shape: Shape, nodes: int) -> Job:
    """The edits of the rule alone, at nodes that are known beforehand: what no engine on torch.fx can do without."""
    import torch

    aten = torch.ops.aten
    graph = fx_module(shape, nodes).graph
    found = graph.find_nodes(op="call_function", target=aten.relu.default)

    def job() -> int:
        for old in found:
            inner = old.args[0]
            new = graph.create_node("call_function", aten.sigmoid.default, name="sigmoid")
            new.args = inner.args
            old.prepend(new)
            new.meta.update(old.meta)
            for user in list(old.users):
                user.replace_input_with(old, new)
            graph.erase_node(old)
            graph.erase_node(inner)
        return len(found)

    return job


# ---- onnx ----------------------------------------------------------------------------------------------


def onnx_model(shape: Shape, nodes: int) -> Any:
    """An onnx_ir.Model over one float32[4] input, every value typed."""
    import onnx_ir as ir

    kind, size = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4])
    x = ir.Value(name="x", type=kind, shape=size)
    written: list[Any] = []

    def emit(op: str, *operands: Any) -> Any:
        node = ir.node(op.capitalize(), list(operands))
        value = node.outputs[0]
        value.name, value.type, value.shape = f"v{len(written)}", kind, size
        written.append(node)
        return value

    y = shape(nodes, emit, x)
    graph = ir.Graph([x], [y], nodes=written, opset_imports={"": 20}, name="graph")
    return ir.Model(graph, ir_version=10)


def prepare_onnxscript(shape: Shape, nodes: int, rules: int) -> Job:
    model = onnx_model(shape, nodes)
    return lambda: _onnxscript_rules(rules).apply_to_model(model)


@cache
def _onnxscript_rules(count: int) -> Any:
    from onnxscript.rewriter import pattern

    def pair(outer: str, inner: str) -> Callable[[Any, Any], Any]:
        return lambda op, x: getattr(op, outer.capitalize())(getattr(op, inner.capitalize())(x))

    rules = [pattern.RewriteRule(pair("relu", "neg"), lambda op, x: op.Sigmoid(x))]
    rules += [pattern.RewriteRule(pair(*ops), lambda op, x: op.Identity(x)) for ops in IDLE_PAIRS[: count - 1]]
    return pattern.RewriteRuleSet(rules)


def prepare_bare_onnx(shape: Shape, nodes: int) -> Job:
    """The edits of the rule alone, at nodes that are known beforehand: what no engine on onnx_ir can do without."""
    import onnx_ir as ir

    graph = onnx_model(shape, nodes).graph
    found = [node for node in graph if node.op_type == "Relu"]

    def job() -> int:
        for number, node in enumerate(found):
            inner, old = node.inputs[0].producer(), node.outputs[0]
            new = ir.Value(name=f"sigmoid_output_{number}", type=old.type, shape=old.shape)
            written = ir.Node("", "Sigmoid", inner.inputs, outputs=(new,), name=f"sigmoid_{number}")
            graph.insert_before(node, written)
            for user, index in old.uses():
                user.replace_input_with(index, new)
            for gone in (node, inner):
                gone.replace_input_with(0, None)
            graph.remove((node, inner))
        return len(found)

    return job


# ---- tinygrad ------------------------------------------------------------------------------------------


def prepare_tinygrad(shape: Shape, nodes: int) -> Job:
    """tinygrad has other elementary ops; the rule has the same form: sin(neg(x)) becomes sqrt(x)."""
    from tinygrad.dtype import dtypes
    from tinygrad.uop.ops import Ops, PatternMatcher, UOp, UPat, graph_rewrite

    ops = {"neg": Ops.NEG, "relu": Ops.SIN, "tanh": Ops.EXP2, "abs": Ops.LOG2}
    pattern = UPat(Ops.SIN, src=(UPat(Ops.NEG, src=(UPat.var("x"),)),))
    matcher = PatternMatcher([(pattern, lambda x: x.sqrt())])
    y = shape(nodes, lambda op, x: x.alu(ops[op]), UOp.variable("x", 0.0, 1.0, dtypes.float))
    return lambda: graph_rewrite(y, matcher)


def hits_tinygrad(result: Any) -> int:
    from tinygrad.uop.ops import Ops

    return sum(u.op is Ops.SQRT for u in result.toposort())


# ---- graphopt ------------------------------------------------------------------------------------------


def prepare_fx(shape: Shape, nodes: int, rules: int) -> Job:
    from graphopt.ir.fx.storage import FxGraph

    return _driver_job(FxGraph(fx_module(shape, nodes), {}, fake_mode()), rules)


def prepare_onnx(shape: Shape, nodes: int, rules: int) -> Job:
    from graphopt import load

    return _driver_job(load(onnx_model(shape, nodes)).main, rules)


def _driver_job(graph: Any, rules: int) -> Job:
    from graphopt.rewrite.change import Editor
    from graphopt.rewrite.driver import Driver
    from graphopt.rewrite.ledger import Ledger
    from graphopt.verify.verifier import Structural

    ledger = Ledger()
    driver = Driver(graphopt_rules(rules), Editor(graph, ledger, Structural("none")))

    def job() -> int:
        driver.run()
        return ledger.kept

    return job


@cache
def graphopt_rules(count: int) -> Sequence[Any]:
    """The rule, and `count - 1` others that are tried on the graphs' ops but never match."""
    from graphopt import Rounding, rule

    @rule(contract=Rounding())
    class ReluOfNeg:
        "relu(neg(x)) becomes sigmoid(x)."

        def pattern(self, op: Any, x: Any) -> Any:
            return op.relu(op.neg(x))

        def rewrite(self, m: Any, build: Any) -> Any:
            return build.sigmoid(m.x)

    return (ReluOfNeg, *(idle_rule(*pair) for pair in IDLE_PAIRS[: count - 1]))


def idle_rule(outer: str, inner: str) -> Any:
    """A rule that is rooted in an op of the graphs and matches nowhere."""
    from graphopt import Exact, rule

    class Idle:
        "Matches nothing here."

        def pattern(self, op: Any, x: Any) -> Any:
            return getattr(op, outer)(getattr(op, inner)(x))

        def rewrite(self, m: Any, build: Any) -> Any:
            return m.x

    return rule(contract=Exact(), name=f"{outer}-of-{inner}")(Idle)


REWRITERS: Mapping[str, Rewriter] = {
    "graphopt fx": Rewriter(lambda shape, nodes: prepare_fx(shape, nodes, 1), int),
    "graphopt fx, 50 rules": Rewriter(lambda shape, nodes: prepare_fx(shape, nodes, 50), int),
    "graphopt onnx": Rewriter(lambda shape, nodes: prepare_onnx(shape, nodes, 1), int),
    "graphopt onnx, 50 rules": Rewriter(lambda shape, nodes: prepare_onnx(shape, nodes, 50), int),
    "Inductor PatternMatcherPass": Rewriter(lambda shape, nodes: prepare_inductor(shape, nodes, 1), int),
    "Inductor PatternMatcherPass, 50 rules": Rewriter(
        lambda shape, nodes: prepare_inductor(shape, nodes, 50), int, most=16_000
    ),
    "torch.fx replace_pattern": Rewriter(prepare_replace_pattern, int, most=4_000),
    "onnxscript rewriter": Rewriter(lambda shape, nodes: prepare_onnxscript(shape, nodes, 1), int),
    "onnxscript rewriter, 50 rules": Rewriter(
        lambda shape, nodes: prepare_onnxscript(shape, nodes, 50), int, most=16_000
    ),
    "edits alone, torch.fx": Rewriter(prepare_bare_fx, int),
    "edits alone, onnx_ir": Rewriter(prepare_bare_onnx, int),
    "tinygrad graph_rewrite": Rewriter(prepare_tinygrad, hits_tinygrad, shapes=(chain,)),
}
"""tinygrad keeps equal nodes once, so that a wide graph of equal branches would be a single branch there."""
