"""Taking a torch model: an nn.Module with example inputs, an ExportedProgram or an fx.GraphModule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graphopt.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    import torch
    from torch import fx

    from graphopt.ir.fx.model import FxModel

_NO_EXAMPLE = (
    "a torch module is traced by running it once: pass example_inputs=, a tuple of positional inputs, "
    "a dict of keyword inputs, or a pair (tuple, dict)"
)


def load_torch(source: Any, example_inputs: Any = None, dynamic_shapes: Any = None) -> FxModel:
    """A model from what torch has: `torch.nn.Module`, `ExportedProgram`, `fx.GraphModule` or a ScriptModule.

    Args:
        source: never modified; its mode (training or not) is exported as it is.
        example_inputs: a tuple of positional inputs, a dict of keyword inputs, a pair of both, or one tensor.
            Needed unless `source` is an ExportedProgram or a GraphModule whose inputs carry `meta["val"]`.
        dynamic_shapes: as `torch.export.export` takes it.

    Raises:
        MissingExtraError: torch is not installed.
        ModelError: `source` is no torch model, or cannot be exported, or example inputs are missing.
        UnsupportedError: operators that write to their arguments are left after functionalisation, or a
            ScriptModule cannot be converted.

    Threads that call it wait for each other.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch models need torch: pip install graphopt[torch]") from error
    from graphopt.ir.fx.decompose import TRACING

    with TRACING:
        return _load(source, example_inputs, dynamic_shapes)


def _load(source: Any, example_inputs: Any, dynamic_shapes: Any) -> FxModel:
    import torch

    from graphopt.ir.fx.arguments import keep_positions
    from graphopt.ir.fx.model import FxModel
    from graphopt.ir.fx.script import convert_script, is_scripted

    traced = isinstance(source, torch.nn.Module) and not is_scripted(source)
    if dynamic_shapes is not None and not traced:
        raise ModelError(
            f"dynamic_shapes={dynamic_shapes!r}: they say how a torch module is traced, and this "
            f"{type(source).__name__} has its sizes already; leave them out"
        )
    if isinstance(source, torch.export.ExportedProgram):
        return FxModel(_functional(source, source, source.graph_module), "program")
    if not isinstance(source, torch.nn.Module):
        kind = type(source).__name__
        raise ModelError(f"expected a torch.nn.Module, ExportedProgram or fx.GraphModule, got {kind}")
    args, kwargs = split_example(example_inputs)
    modes = {bool(module.training) for module in source.modules()}
    training = modes.pop() if len(modes) == 1 else None
    if is_scripted(source):
        converted = convert_script(source, args, kwargs)
        return FxModel(_functional(converted, converted, source), "module", training)
    if example_inputs is None:
        if not isinstance(source, torch.fx.GraphModule):
            raise ModelError(_NO_EXAMPLE)
        args, kwargs, dynamic_shapes = _example_of(source, dynamic_shapes)
    program = _functional(*_export(source, args, kwargs, dynamic_shapes), source)
    keep_positions(program, source, len(args), kwargs)
    return FxModel(program, "module", training)


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, keyword) inputs of what a caller may give as example inputs."""
    if example is None:
        return (), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if not isinstance(example, (tuple, list)):
        return (example,), {}
    if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping):
        return tuple(example[0]), dict(example[1])
    return tuple(example), {}


def _export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> tuple[Any, Any]:
    """(the exported program, one to be asked how its inputs have to lie in memory)."""
    import torch

    from graphopt.ir.fx.layouts import Watch, writes
    from graphopt.ir.fx.untouched import untouched

    args, kwargs = _distinct((args, kwargs))

    def trace(watch: Watch) -> Any:
        with untouched(module), watch:
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)

    try:
        program = trace(watch := Watch(marks=False))
        return program, trace(Watch(marks=True)) if watch.idle and writes(program) else program
    except Exception as error:
        name, advice = type(module).__name__, _advice(str(error))
        raise ModelError(f"torch.export cannot trace {name} with these example inputs{advice}: {error}") from error


def _advice(reason: str) -> str:
    """What to do about a forward that depends on numbers which are not known while it is traced."""
    if "not a known type" in reason or "Unsupported input type" in reason:
        return (
            ": it takes or returns an object that torch does not look into. Give and return tensors in tuples, lists, "
            "dicts or dataclasses that are registered (torch.export.register_dataclass, "
            "torch.utils._pytree.register_pytree_node); a model of transformers returns a cache unless its "
            "config.use_cache is False"
        )
    if not any(sign in reason for sign in (".numpy()", ".item()", ".tolist()", "data-dependent")):
        return ""
    return (
        ", because its forward reads numbers out of tensors; choose another way of it if it has one (docs/experts.md "
        "has those of mixtures of experts)"
    )


def _distinct(example: Any) -> Any:
    """`example` with a copy for every further occurrence of a tensor, since torch.export takes one tensor that is given
    twice for one input, and of those made in inference mode, which no call that records gradients can read."""
    import torch
    from torch.utils import _pytree as pytree

    seen: set[int] = set()

    def once(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and (id(leaf) in seen or leaf.is_inference()):
            with torch.inference_mode(False):
                return leaf.clone()
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map(once, example)


def _functional(program: Any, traced: Any, source: Any) -> Any:
    """`program` without mutation, as a copy. Raises UnsupportedError if some is left. `traced`: it or another trace of
    `source`, which tells how inputs have to lie in memory."""
    from graphopt.ir.fx.decompose import run_decompositions
    from graphopt.ir.fx.guards import keep_guards
    from graphopt.ir.fx.layouts import add_layouts
    from graphopt.ir.fx.normalise import (
        free_layout,
        hoist_assertions,
        invert_by_sorting,
        order_by_sorting,
        own_results,
        promote,
        unbind_by_selection,
    )
    from graphopt.ir.fx.schema import mutating_operators, refuse_mutation
    from graphopt.ir.fx.unstack import unstack_lstm

    try:
        functional = run_decompositions(program, {})
    except Exception as error:
        shared = _shared_state(program)
        advice = f"; its state {shared} shares memory: give each of them memory of its own" if shared else ""
        raise ModelError(f"torch cannot make this ExportedProgram functional{advice}: {error}") from error
    graphs = [m.graph for m in functional.graph_module.modules() if hasattr(m, "graph")]
    refuse_mutation([name for graph in graphs for name in mutating_operators(graph)])
    for graph in graphs:
        free_layout(graph)
        unbind_by_selection(graph)
        order_by_sorting(graph)
        invert_by_sorting(graph)
        promote(graph)
        unstack_lstm(graph)
    hoist_assertions(functional)
    own_results(functional, program)
    return add_layouts(keep_guards(functional, program), traced, source)


def _shared_state(program: Any) -> str:
    """The names of buffers and parameters that share memory which is written, if any do: torch refuses that."""
    from graphopt.ir.fx.layouts import written_names
    from graphopt.ir.fx.tensors import storage_pointer

    named: dict[int, list[str]] = {}
    for name, tensor in program.state_dict.items():
        named.setdefault(storage_pointer(tensor), []).append(name)
    signature, written = program.graph_signature, written_names(program)
    stored = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    targets = {stored.get(name) for name in written}
    shared = [names for names in named.values() if len(names) > 1 and not targets.isdisjoint(names)]
    return " and ".join(map(repr, shared[0])) if shared else ""


def _example_of(module: fx.GraphModule, dynamic_shapes: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs of the types that the placeholders of `module` carry, with the same sizes dynamic."""
    import torch
    from torch.utils import _pytree as pytree

    values = [n.meta.get("val") for n in module.graph.find_nodes(op="placeholder")]
    if any(v is None or isinstance(v, torch.SymInt) for v in values):
        raise ModelError(f"the inputs of this GraphModule carry no types (meta['val']), and {_NO_EXAMPLE}")
    examples = [_example_tensor(v) if isinstance(v, torch.Tensor) else v for v in values]
    shapes = torch.export.ShapesCollection()
    for example, value in zip(examples, values, strict=True):
        dynamic = _dynamic_axes(value) if isinstance(value, torch.Tensor) else {}
        if dynamic:
            shapes[example] = dynamic
            dynamic_shapes = shapes if dynamic_shapes is None else dynamic_shapes
    structure = getattr(module, "_in_spec", None)
    args, kwargs = (tuple(examples), {}) if structure is None else pytree.tree_unflatten(examples, structure)
    return args, kwargs, dynamic_shapes


def _example_tensor(value: torch.Tensor) -> torch.Tensor:
    """Zeros of the type of a fake tensor, with the sizes at which it was traced."""
    import torch

    sizes = [s if isinstance(s, int) else s.node.hint for s in value.shape]
    return torch.zeros(sizes, dtype=value.dtype, device=value.device)


def _dynamic_axes(value: torch.Tensor) -> dict[int, Any]:
    import torch

    return {i: torch.export.Dim.AUTO for i, s in enumerate(value.shape) if not isinstance(s, int)}
