"""OnnxModel: an onnx_ir model with its regions, its inferred types and the way back to what it came from."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.ir.graph import Node, Value
from graphopt.ir.model import Model
from graphopt.ir.onnx import save
from graphopt.ir.onnx.cut import Fragment, cut_fragment
from graphopt.ir.onnx.infer import infer_types, refutes
from graphopt.ir.onnx.save import Carried
from graphopt.ir.onnx.shared import QUANTIZATION, Shared, all_graphs, copy_of, nested_graphs
from graphopt.ir.onnx.storage import OnnxGraph


class OnnxModel(Model):
    """Owns its `onnx_ir.Model`; made by `load_onnx`."""

    storage = "onnx"

    def __init__(
        self,
        model: ir.Model,
        carried: Carried | None = None,
        export: Callable[[OnnxModel], Any] | None = None,
        fragment: Fragment | None = None,
    ) -> None:
        """`fragment` is where `model` was cut out, if it is a part of another."""
        self.ir = model
        self.carried = carried or Carried()
        """What onnx_ir does not keep."""
        self.shared = Shared(model)
        self.shared.annotated = any(True for _ in self._annotations())
        self._export = export
        if fragment is not None:
            self.shared.remember(fragment)
        OnnxGraph(self.shared, model.graph, model.graph.opset_imports)
        for function in model.functions.values():
            OnnxGraph(self.shared, function.graph, function.opset_imports, function)
        self._infer()

    @property
    def main(self) -> OnnxGraph:
        return self.shared.regions[self.ir.graph]

    def regions(self) -> Sequence[OnnxGraph]:
        regions = []
        for root in (self.ir.graph, *(function.graph for function in self.ir.functions.values())):
            around = self.shared.regions[root]
            regions += [around.shared_region(graph) for graph in nested_graphs(root)]
        return regions

    def refresh(self) -> None:
        for region in self.regions():
            _drop_unread_constants(region)
        # The scales and zero points that annotations refer to are read by nothing else.
        needed = {name for names in self._annotations() for name in names} if self.shared.annotated else set()
        for graph in all_graphs(self.ir):
            self._drop_unused(graph, needed)
        self._infer()

    def _infer(self) -> None:
        shared = self.shared
        shared.set_inferred({})
        types, doubted = infer_types(self.ir, self.main)
        if shared.believed and any(refutes(t, value, doubted=value in doubted) for value, t in types.items()):
            # As when only the inputs of a model were edited, so that it takes batches of any size.
            shared.believed = False
            shared.set_inferred({})
            types, _ = infer_types(self.ir, self.main)
        shared.set_inferred(types)

    def _drop_unused(self, graph: ir.Graph, needed: Container[str]) -> None:
        """Drop initialisers that nothing reads; one that the caller may override is part of the interface."""
        for name, value in list(graph.initializers.items()):
            overridable = value.is_graph_input() and self.ir.ir_version >= 4
            if value.uses() or value.is_graph_output() or overridable or name in needed:
                continue
            if value.is_graph_input():
                graph.inputs.remove(value)
            graph.initializers.pop(name)
            self.shared.forget_value(value)

    def _annotations(self) -> Iterator[Iterable[str]]:
        """The names of scales and zero points in each quantization annotation."""
        for graph in all_graphs(self.ir):
            for node in graph:
                for value in (*node.inputs, *node.outputs):
                    if value is not None and QUANTIZATION in (known := value.meta):
                        yield known[QUANTIZATION].values()

    def export(self) -> Any:
        return copy_of(self.ir) if self._export is None else self._export(self)

    def save(self, path: Path) -> None:
        save.save_model(self.ir, path, self.carried)

    def clone(self) -> OnnxModel:
        twin = copy_of(self.ir)
        return OnnxModel(twin, self.carried, self._export, self.shared.known_of_twin(twin))

    def extract(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> OnnxModel:
        part = cut_fragment(self.main, nodes, inputs, outputs)
        return OnnxModel(part.model, None, self._export, part)

    def weights(self) -> Sequence[tuple[str, int, int]]:
        found: dict[object, tuple[str, int, int]] = {}
        for graph in all_graphs(self.ir):
            constants = [
                node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain == ""
            ]
            for value in (*graph.initializers.values(), *constants):
                tensor = value.const_value if value.is_initializer() else self.shared.tensor(value)
                if tensor is not None and (ref := self.shared.ref(tensor)) is not None:
                    found.setdefault(ref.identity, (value.name or "", ref.size, tensor.nbytes))
        return list(found.values())


def _drop_unread_constants(region: OnnxGraph) -> None:
    """Drop the weights that are stored as Constant nodes and that nothing reads."""
    for node in list(region.nodes()):
        if region.raw_name(node) == "ai.onnx::Constant":
            value = node.outputs[0]
            if not region.is_output(value) and not region.users(value):
                region.remove(node)
