"""FxModel: a lifted, functional ExportedProgram, and the way back to the kind that was given."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputSpec,
    OutputKind,
    OutputSpec,
)
from torch.utils import _pytree as pytree

from graphopt.errors import ModelError, UnsupportedError
from graphopt.ir.fx.calls import checked_module
from graphopt.ir.fx.constants import drop_unused_weights, unused_weights
from graphopt.ir.fx.extract import INPUT_KINDS, extract_program, in_state_dict, input_spec
from graphopt.ir.fx.guards import keep_guards
from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.fx.stored import Aliases, Taken
from graphopt.ir.fx.tensors import storage_pointer, stored_bytes, tensor_identity, to_numpy
from graphopt.ir.fx.weight import Weight
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.model import Model, check_folder
from graphopt.ir.weights import Array

_WEIGHT_KINDS = {kind: name for name, kind in INPUT_KINDS.items()}
_USER_OUTPUTS = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)


class FxModel(Model):
    """Made by `load_torch`. The stored tensors are shared with the input and never written: buffers that
    a run of the model writes are copied."""

    storage = "fx"

    def __init__(
        self, program: ExportedProgram, given: Literal["module", "program"], training: bool | None = None
    ) -> None:
        """`program` is lifted and functional, and belongs to the model from now on. `training` is the mode of the
        module that it was exported from, if all of it was in one."""
        self._program = program
        self._given = given
        self._training = training
        signature = program.graph_signature
        self._output_specs: list[OutputSpec] = list(signature.output_specs)
        hidden = sum(s.kind not in _USER_OUTPUTS for s in self._output_specs)
        placeholders = program.graph.find_nodes(op="placeholder")
        self._input_specs = dict(zip(placeholders, signature.input_specs, strict=True))
        weights, given_tensors = _weights(program, self._input_specs)
        self._taken = Taken(weights, given_tensors)
        self._main = FxGraph(program.graph_module, weights, _fake_mode(program), hidden_outputs=hidden)

    @property
    def main(self) -> FxGraph:
        return self._main

    def regions(self) -> Sequence[Graph]:
        found: list[Graph] = []
        pending: list[Graph] = [self._main]
        while pending:
            region = pending.pop()
            if region not in found:
                found.append(region)
                bodies = [b for n in region.nodes() for b in region.subgraphs(n)]
                pending.extend(reversed(bodies))
        return found

    def examples(self) -> Sequence[Array] | None:
        if self._program.example_inputs is None:
            return None
        leaves = pytree.tree_leaves(self._program.example_inputs)
        by_name = dict(zip(self._program.graph_signature.user_inputs, leaves, strict=False))
        given = [by_name.get(value.name) for value in self._main.inputs()]
        return [to_numpy(g) for g in given] if all(isinstance(g, torch.Tensor) for g in given) else None

    @property
    def traced_inputs(self) -> Any:
        """The (positional, keyword) inputs that the model was traced with; None if it came with none."""
        return self._program.example_inputs

    @property
    def result_keys(self) -> list[str] | None:
        """The keys of what the model returns, if that is a dict."""
        returned = self._program.call_spec.out_spec
        return [str(key) for key in returned.context] if returned is not None and returned.type is dict else None

    @property
    def result_structure(self) -> pytree.TreeSpec | None:
        """In which containers the outputs are returned; None if that is not known."""
        return self._program.call_spec.out_spec

    def require_data(self) -> None:
        for weight in self._main.weights.values():
            if weight.tensor.is_meta or isinstance(weight.tensor, FakeTensor):
                raise ModelError(
                    f"{weight.name!r} has a type and no numbers (device {weight.tensor.device}); load the weights "
                    "before, as with module.load_state_dict(weights, assign=True)"
                )

    def refresh(self) -> None:
        drop_unused_weights(self._main)
        self._taken = self._still_taken()

    def export(self) -> ExportedProgram | fx.GraphModule:
        """An ExportedProgram if one was given, else the module that runs it, called as the original was."""
        return self.program() if self._given == "program" else self.runnable()

    def runnable(self) -> fx.GraphModule:
        """The model as it is now, as a module that is called as the original was and refuses other calls."""
        return checked_module(self.program(), self._training, self._still_taken())

    def program(self) -> ExportedProgram:
        """The model as it is now, as an ExportedProgram that shares nothing with this object but the memory of
        weights that it does not write.

        Raises:
            ModelError: a weight was written where it was taken from.
        """
        self._still_taken().require_unchanged()
        root = _copied_module(self._main.module)
        unused = {n.name for n in unused_weights(self._main)}
        for node in root.graph.find_nodes(op="placeholder"):
            if node.name in unused:
                root.graph.erase_node(node)
        signature = ExportGraphSignature(self._current_inputs(unused), self._current_outputs())
        stored = [w for n, w in self._main.weights.items() if n.name not in unused]
        old = self._program
        constants = {k: v for k, v in old.constants.items() if not isinstance(v, torch.Tensor)}
        aliases = Aliases()
        tensors = {w.name: aliases.of(w.tensor, copied=w.mutable) for w in stored}
        constants |= {w.name: tensors[w.name] for w in stored if not in_state_dict(w)}
        made = ExportedProgram(
            root=root,
            graph=root.graph,
            graph_signature=signature,
            state_dict={w.name: tensors[w.name] for w in stored if in_state_dict(w)},
            range_constraints=copy.copy(old.range_constraints),
            module_call_graph=copy.deepcopy(old.module_call_graph[:1]),
            example_inputs=old.example_inputs,
            constants=constants,
            verifiers=old.verifiers,
        )
        return keep_guards(made, old)

    def save(self, path: Path) -> None:
        """Write the model as `torch.export.save` does. Raises ModelError for a path that says otherwise."""
        check_folder(path)
        if path.suffix == ".onnx":
            raise ModelError(
                f"{path}: a torch model is written as torch.export.save does, and this name says ONNX; name it .pt2, "
                "or give torch.onnx.export what optimize returns"
            )
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                careful = _Careful(file)
                try:
                    torch.export.save(self.program(), careful)
                except Exception as error:
                    raise UnsupportedError(
                        f"{path}: torch.export.save cannot write this model: {error}; use the module itself"
                    ) from error
                if careful.failure is not None:
                    raise careful.failure
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def weights(self) -> Sequence[tuple[str, int, int]]:
        distinct = {tensor_identity(w.tensor): w for w in reversed(self._main.weights.values())}
        return [(w.name, w.tensor.numel(), stored_bytes(w.tensor)) for w in reversed(distinct.values())]

    def clone(self) -> FxModel:
        return FxModel(self.program(), self._given)

    def extract(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> FxModel:
        return FxModel(extract_program(self._main, self._program, nodes, inputs, outputs), self._given)

    def _still_taken(self) -> Taken:
        return self._taken.only({w.name for w in self._main.weights.values()})

    def _current_inputs(self, unused: set[str]) -> list[InputSpec]:
        specs = []
        for node in self._main.graph.find_nodes(op="placeholder"):
            if node.name in unused:
                continue
            weight = self._main.weights.get(node)
            specs.append(self._input_specs[node] if weight is None else input_spec(node, weight))
        return specs

    def _current_outputs(self) -> list[OutputSpec]:
        returned: Any = self._main.output_node.args[0]
        return [
            replace(spec, arg=replace(spec.arg, name=value.name)) if isinstance(value, fx.Node) else spec
            for spec, value in zip(self._output_specs, returned, strict=True)
        ]


class _Careful(io.RawIOBase):
    """A file that keeps its first error instead of raising it: torch's archive writer aborts the process when a
    write raises, as on a full disk. It warns of what is no file that can be written and sought in."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.failure = error
        return size

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        """Closing the file does that, and may raise."""


def _weights(
    program: ExportedProgram, specs: dict[fx.Node, InputSpec]
) -> tuple[dict[fx.Node, Weight], dict[fx.Node, torch.Tensor]]:
    """The stored tensors by placeholder, and what was given for them. What shares memory with a written buffer is no
    constant either."""
    signature = program.graph_signature
    written = {*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()}
    tensors = {n: _tensor(program, s) for n, s in specs.items() if s.kind in _WEIGHT_KINDS}
    written_memory = {storage_pointer(t) for n, t in tensors.items() if specs[n].target in written} - {0}
    found, aliases = {}, Aliases()
    for node, tensor in tensors.items():
        spec = specs[node]
        mutable = spec.target in written or storage_pointer(tensor) in written_memory
        own = aliases.of(tensor, copied=mutable)
        kind = _WEIGHT_KINDS[spec.kind]
        found[node] = Weight(str(spec.target), own, kind, spec.persistent is not False, mutable)
    return found, tensors


def _tensor(program: ExportedProgram, spec: InputSpec) -> torch.Tensor:
    stored: Any = program.state_dict.get(spec.target)
    return stored if stored is not None else program.constants[spec.target]


def _copied_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with bodies. Its nodes keep their names, of which copying changes those that are builtins."""
    copied = copy.deepcopy(module)
    for old, new in zip(module.graph.nodes, copied.graph.nodes, strict=True):
        new.name = old.name
    return copied


def _fake_mode(program: ExportedProgram) -> Any:
    """The mode in which the program was traced, so that its symbolic sizes stay comparable."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import FakeTensorMode

    values = [n.meta.get("val") for n in program.graph.nodes]
    return detect_fake_mode(values) or FakeTensorMode()
