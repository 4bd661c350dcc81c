"""bf16: products and what follows them are computed in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import Array, ArrayRef, TensorRef, numpy_dtype
from graphopt.passes.bf16_check import Bf16Verifier
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Approximate
from graphopt.rewrite.journal import Journal

if TYPE_CHECKING:
    from graphopt.ir.model import Model
    from graphopt.pipeline.context import Context

PRODUCTS = frozenset({"conv", "conv_transpose", "linear", "matmul", "einsum", "grouped_matmul", "attention"})
"""Ops that start to compute in bfloat16."""
FOLLOWING = frozenset({
    "identity", "add", "sub", "mul", "div", "neg", "abs", "maximum", "minimum", "clamp", "where", "relu", "leaky_relu",
    "prelu", "elu", "sigmoid", "tanh", "silu", "softplus", "mish", "gelu", "hard_sigmoid", "hard_swish", "max_pool",
    "avg_pool", "resize", "depth_to_space", "space_to_depth", "batch_norm", "instance_norm", "group_norm", "layer_norm",
    "rms_norm", "softmax", "reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reshape", "transpose", "expand",
    "unsqueeze", "squeeze", "concat", "stack", "split", "slice", "pad", "tile", "repeat_interleave", "roll", "gather",
})  # fmt: skip
"""Ops that go on in bfloat16 if they read something that is. Kernels sum in float32 within norms, softmax and means."""


LAYOUT = frozenset({"reshape", "transpose", "expand", "unsqueeze", "squeeze"})
"""Ops through which products read their weights."""


@dataclass(frozen=True)
class Bf16(GraphPass):
    """Lets products compute in bfloat16, and what follows them up to ops that need more.

    Mathematics: an op f with float32 operands becomes float32(f'(bfloat16(x), ..., W')), where f' is f on bfloat16 and
    W' its weights, rounded once. A value that comes of bfloat16 is read as it was before it was widened, which is
    exact, so that casts stay only at the edges: inputs and outputs keep their types. Convolutions, matrix products and
    attention start; elementwise ops, norms, softmax, pooling and layout go on where they read a result in bfloat16; all
    else (exp, log, powers, sines, cumulative sums, control flow) stays in float32. What is float32 because it comes of
    timesteps or positions alone so stays what it is up to the first product. Norms, softmax and means sum in float32
    within their kernels, as torch's do.

    Precondition: a torch model; onnxruntime has few kernels of bfloat16 on CPUs. Everything is converted, or nothing if
    that does not fit the budget; skip keeps nodes in float32.

    Contract: approximate. The rounding of weights is declared. Each op is one application, verified alone: in float64
    it is the op that it replaces, and run natively on operands that are bfloat16 it is within rounding of bfloat16.
    Source: Kalamkar et al., "A study of BFLOAT16 for deep learning training", arXiv 1905.12322; the division of ops
    follows torch.autocast.
    """

    name: ClassVar[str] = "bf16"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget, on held-out data"

    skip: tuple[str, ...] = ()
    "Names of nodes that stay in float32; * stands for anything."

    def run(self, context: Context) -> None:
        approximation = context.approximation(self)
        if context.model.storage != "fx":
            raise UnsupportedError(
                f"{self.name} rewrites torch models, and this one is {context.model.storage!r}: onnxruntime has no "
                "kernels of bfloat16 for most ops; apply it to the torch model before it is exported"
            )
        measured = approximation.measure(self._trial(context.model))
        if not measured <= approximation.limit:
            context.notes.append(
                f"bfloat16 takes {approximation.metric} to {measured:.3g}, the limit is {approximation.limit:.3g}: the "
                "model stays as it is; skip keeps the ops that matter most in float32"
            )
            return
        graph, converter = context.model.main, Converter()
        editor = Editor(graph, context.ledger, Bf16Verifier(context))
        contract = Approximate(approximation.metric)
        for node in list(graph.nodes()):
            if context.ledger.exhausted:
                break
            if (conversion := self._conversion(graph, node, converter)) is not None:
                kind = "product" if graph.key(node) in PRODUCTS else "following"
                _, journal = editor.apply(
                    kind, contract, conversion.nodes, conversion.write, declared=conversion.declared
                )
                converter.follow(conversion, journal)
        approximation.settle(approximation.measure(context.model) if context.approximated else approximation.spent)

    def _trial(self, model: Model) -> Model:
        """A copy of the model with every op converted that can be."""
        trial, converter = model.copy(), Converter()
        graph = trial.main
        for node in list(graph.nodes()):
            if (conversion := self._conversion(graph, node, converter)) is not None:
                journal = Journal(graph)
                conversion.write(journal)
                journal.commit()
                converter.follow(conversion, journal)
        trial.refresh()
        return trial

    def _conversion(self, graph: Graph, node: Node, converter: Converter) -> Conversion | None:
        if any(fnmatchcase(graph.node_name(node), pattern) for pattern in self.skip):
            return None
        return converter.conversion(graph, node)


class Converter:
    """Which ops become bfloat16, and what is known of their operands in bfloat16 already."""

    def __init__(self) -> None:
        self._narrow: dict[Value, Value] = {}
        """Values and weights of float32, and what they are in bfloat16."""

    def conversion(self, graph: Graph, node: Node) -> Conversion | None:
        """How `node` is converted; None if it stays."""
        call = graph.call(node)
        if not isinstance(call, Call) or call.op not in PRODUCTS | FOLLOWING:
            return None
        wide = [o for o in call.operands if o is not None and _is_wide(graph, o)]
        results = [o for o in call.outputs if o is not None]
        if not wide or not results or not all(_is_wide(graph, o) for o in results):
            return None
        follows = any(o in self._narrow for o in wide if graph.constant(o) is None)
        if not follows and call.op not in PRODUCTS and not self._is_weight(graph, call):
            return None
        return Conversion(graph, graph.raw_call(node), {o: self._narrow[o] for o in wide if o in self._narrow})

    def _is_weight(self, graph: Graph, call: Call) -> bool:
        """Whether a weight is brought into another form here that nothing but products reads."""
        if call.op not in LAYOUT or graph.constant(call.operands[0]) is None or graph.is_output(call.outputs[0]):
            return False
        readers = graph.users(call.outputs[0])
        return bool(readers) and all(graph.key(reader) in PRODUCTS for reader in readers)

    def follow(self, conversion: Conversion, journal: Journal) -> None:
        """Remember what a conversion wrote, if it was kept."""
        if journal.replaced:
            self._narrow |= conversion.written


def _is_wide(graph: Graph, value: Value) -> bool:
    type_ = graph.type(value)
    return type_ is not None and type_.dtype == "float32"


@dataclass
class Conversion:
    """One op and how it is written in bfloat16: as the storage has it, on other operands."""

    graph: Graph
    call: Call
    """The raw call."""
    narrow: Mapping[Value, Value]
    """Operands that are known in bfloat16."""
    written: dict[Value, Value] = field(default_factory=dict)
    """What is known in bfloat16 once it is written: new values of float32, and weights."""

    @property
    def nodes(self) -> list[Node]:
        """The op, and before it the casts through which it reads results of bfloat16."""
        casts = [self.graph.producer(o) for o in dict.fromkeys(self.call.operands) if o in self.narrow]
        return [*(c for c in casts if c is not None), self.call.node]

    @property
    def declared(self) -> dict[Value, TensorRef]:
        """The weights, rounded to bfloat16."""
        return {o: ArrayRef(_rounded(data).astype(data.dtype)) for o, data in self._weights().items()}

    def _weights(self) -> dict[Value, TensorRef]:
        found = {}
        for operand in self.call.operands:
            if operand is None or isinstance(operand, Literal) or not _is_wide(self.graph, operand):
                continue
            data = self.graph.constant(operand)
            if data is not None:
                found[operand] = data
        return found

    def write(self, journal: Journal) -> None:
        """Write the op in bfloat16 between casts, and let readers read that."""
        call, graph = self.call, self.graph
        operands = [self._operand(journal, o) for o in call.operands]
        types = [_narrowed(graph, o) for o in call.outputs]
        values = journal.insert(call.op, operands, call.fields, before=call.node, types=types)
        for old, value in zip(call.outputs, values, strict=True):
            if old is not None:
                (widened,) = _cast(journal, value, graph.type(old), call.node)
                journal.replace(old, widened)
                self.written[widened] = value
        journal.doom(self.nodes)

    def _operand(self, journal: Journal, value: Value | None) -> Value | None:
        if value is None or not _is_wide(self.graph, value):
            return value
        if isinstance(value, Literal):
            return Literal(value.value, "bfloat16")
        known = self.narrow.get(value, self.written.get(value))
        if known is not None:
            return known
        data = self.graph.constant(value)
        if data is None:
            (narrow,) = _cast(journal, value, _narrowed(self.graph, value), self.call.node)
            return narrow
        self.written[value] = journal.add_constant(ArrayRef(_rounded(data)), f"{self.graph.name(value)}.bf16")
        return self.written[value]


def _rounded(data: TensorRef) -> Array:
    return data.numpy().astype(numpy_dtype("bfloat16"))


def _narrowed(graph: Graph, value: Value | None) -> TensorType | None:
    type_ = None if value is None else graph.type(value)
    return None if type_ is None else TensorType("bfloat16", type_.shape)


def _cast(journal: Journal, value: Value, type_: TensorType | None, before: Node) -> Sequence[Value]:
    assert type_ is not None
    return journal.insert("cast", [value], {"dtype": type_.dtype}, before=before, types=[type_])
