"""Taking a denoiser in: its graph, and the names, roles and types of its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import ModelError, UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.load import is_torch, load_model
from graphopt.ir.model import Model
from graphopt.program.body import Feed
from graphopt.program.interface import Condition, halved


@dataclass(frozen=True)
class Denoiser:
    """A denoiser as a graph."""

    title: str
    model: Model
    names: tuple[str, ...]
    """For each input of `model.main`, in order; a path with dots if it lies inside of an argument."""
    roles: Mapping[str, str]
    types: Mapping[str, TensorType]
    """Static types for one branch of the guidance; of the timestep, as the denoiser sees it."""
    timestep_scale: float = 1.0

    def role(self, role: str) -> str:
        """The input that has a role of which there is one."""
        return next(n for n in self.names if self.roles[n] == role)

    def feeds(self) -> tuple[Feed, ...]:
        """Where the inputs of `model` come from, in order."""
        return tuple(_feed(name, self.roles[name]) for name in self.names)

    def conditions(self) -> tuple[Condition, ...]:
        """The inputs that are fixed for a request."""
        return tuple(
            Condition(name, self.types[name], self.roles[name] == "condition")
            for name in self.names
            if self.roles[name] in ("condition", "shared")
        )


def _feed(name: str, role: str) -> Feed:
    match role:
        case "sample":
            return Feed("sample")
        case "timestep":
            return Feed("timestep")
    return Feed("condition", name=name)


def trace(
    denoiser: Any, example: Any, timestep_dtype: str, role_of: Callable[[str], str], doubled: bool
) -> Denoiser:
    """`denoiser` as a graph, traced with twice the batch if `doubled`.

    Raises:
        ModelError: it cannot be traced, or its inputs have no static sizes.
        UnsupportedError: its graph writes to buffers, or a layer is in training mode and draws random numbers.
    """
    if is_torch(denoiser) and not hasattr(denoiser, "graph_signature"):
        return _trace_module(denoiser, example, timestep_dtype, role_of, doubled)
    model = load_model(denoiser)
    return _describe(type(denoiser).__name__, model, None, example, role_of, doubled)


def _trace_module(
    module: Any, example: Any, timestep_dtype: str, role_of: Callable[[str], str], doubled: bool
) -> Denoiser:
    from graphopt.program.examples import example_for, timestep_scale_of

    title = type(module).__name__
    if module.training:
        raise UnsupportedError(f"{title} is in training mode: its dropout and statistics would be part of every step; "
                               "call .eval() on it first")  # fmt: skip
    given = _by_name(module, example) if example is not None else example_for(module)
    single = {name: _tensor_timestep(name, v, timestep_dtype, role_of) for name, v in given.items()}
    batch = _batch(single, role_of)
    _require_matching_batch(title, single, role_of, batch)
    traced = _map_leaves(single, lambda name, v: _doubled(v, role_of(name), batch) if doubled else v)
    model: Any = load_model(module, example_inputs=traced)
    if model.result_keys is not None and len(model.result_keys) > 1 and model.result_keys[0] != "sample":
        raise ModelError(
            f"{title} returns a dict of {', '.join(model.result_keys)}: it is unclear which of them is the prediction; "
            "return a tensor, a tuple whose first element is the prediction, or a dict whose first entry is 'sample'"
        )
    if any(part.training for part in module.modules()):
        _require_no_draws(title, model.main)
    found = _describe(title, model, single, None, role_of, doubled)
    return Denoiser(title, found.model, found.names, found.roles, found.types, timestep_scale_of(module))


def _require_no_draws(title: str, graph: Any) -> None:
    """That no part of a denoiser drops anything at random because it was left in training mode."""
    from graphopt.ir.fx.schema import draws

    for node in graph.nodes():
        if draws(node) and not graph.is_pure(node):
            raise UnsupportedError(
                f"{title} has layers in training mode, and its graph draws random numbers in {graph.raw_name(node)} "
                f"({graph.node_name(node)}) in every step; call .eval() on it first"
            )


def _by_name(module: Any, example: Any) -> dict[str, Any]:
    """Example inputs by argument name. A dataclass as result is asked for as a tuple: `return_dict=False`."""
    from graphopt.ir.fx.load import split_example

    args, kwargs = split_example(example)
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(f"example_inputs do not fit {type(module).__name__}.forward{signature}: {error}") from error
    given = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
        if parameter.kind is parameter.VAR_POSITIONAL and given.get(name):
            raise ModelError(f"{type(module).__name__}.forward takes *{name}: give every input of a denoiser a name")
    if "return_dict" in signature.parameters:
        given["return_dict"] = False
    return given


def _tensor_timestep(name: str, value: Any, dtype: str, role_of: Callable[[str], str]) -> Any:
    """A timestep that is given as a number becomes a scalar of the schedule's dtype, or it would be a constant."""
    if role_of(name) == "timestep" and isinstance(value, int | float):
        import torch

        return torch.tensor(value, dtype=getattr(torch, dtype))
    return value


def _batch(given: Mapping[str, Any], role_of: Callable[[str], str]) -> int | None:
    """The number of samples."""
    return next((int(v.shape[0]) for n, v in _leaves(given) if role_of(n) == "sample" and v.ndim), None)


def _require_matching_batch(
    title: str, given: Mapping[str, Any], role_of: Callable[[str], str], batch: int | None
) -> None:
    if batch is None:
        return
    for name, value in _leaves(given):
        if role_of(name) == "condition" and (not value.ndim or value.shape[0] != batch):
            raise ModelError(
                f"condition {name!r} of {title} has shape {list(value.shape)} and the batch is {batch}; if it is the "
                f"same for the whole batch, say so: roles={{{name!r}: 'shared'}}"
            )


def _leaves(given: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in given.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += _leaves(value, f"{name}.")
        elif hasattr(value, "shape"):
            found.append((name, value))
    return found


def _map_leaves(given: Mapping[str, Any], change: Callable[[str, Any], Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _map_leaves(value, change, f"{prefix}{key}.")
        if isinstance(value, Mapping)
        else (change(f"{prefix}{key}", value) if hasattr(value, "shape") else value)
        for key, value in given.items()
    }


def _doubled(value: Any, role: str, batch: int | None) -> Any:
    """For both branches; one timestep for several samples is one for twice as many."""
    if role == "shared" or not value.ndim or (role == "timestep" and len(value) != batch):
        return value
    import torch

    return torch.cat([value, value])


def _describe(
    title: str, model: Model, single: Mapping[str, Any] | None, example: Any, role_of: Callable[[str], str],
    doubled: bool,
) -> Denoiser:  # fmt: skip
    """Names, roles and types of the inputs of `model`; types are those of one branch."""
    main = model.main
    inputs = main.inputs()
    _require_no_state(title, model)
    names = [main.name(v) for v in inputs] if single is None else _traced_names(model, single)
    types: dict[str, TensorType] = {}
    for name, value in zip(names, inputs, strict=True):
        type_ = main.type(value)
        type_ = _of_example(name, type_, example)
        types[name] = _halved(title, name, type_) if doubled and role_of(name) in ("sample", "condition") else type_
    return Denoiser(title, model, tuple(names), {n: role_of(n) for n in names}, types)


def _traced_names(model: Model, single: Mapping[str, Any]) -> list[str]:
    """The paths of the tensors with which a module was traced, in the order of the graph's inputs."""
    from torch.utils import _pytree as pytree

    exported: Any = model
    paths = []
    for path, leaf in pytree.tree_flatten_with_path(exported.traced_inputs)[0]:
        if hasattr(leaf, "shape"):
            paths.append(".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path[1:]))
    return paths


def _of_example(name: str, type_: TensorType | None, example: Any) -> TensorType:
    """The static type of an input, with the help of an example where the model leaves sizes open."""
    if isinstance(example, Mapping) and name in example:
        given = example[name]
        return TensorType(str(given.dtype).removeprefix("torch."), tuple(int(d) for d in given.shape))
    if type_ is None or not type_.is_static:
        raise ModelError(
            f"input {name!r} is {type_ or 'of unknown type'}: a program has static sizes; pass example_inputs="
            f"{{{name!r}: array, ...}}"
        )
    return type_


def _halved(title: str, name: str, type_: TensorType) -> TensorType:
    if not type_.shape:
        return type_
    first = type_.shape[0]
    if not isinstance(first, int) or first % 2:
        raise ModelError(
            f"input {name!r} of {title} is {type_}: guidance in one batch needs twice the batch; pass example_inputs "
            "of the sizes of one branch to a torch module, or use Guidance(mode='calls')"
        )
    return halved(type_)


def _require_no_state(title: str, model: Model) -> None:
    hidden = getattr(model.main, "hidden_outputs", 0)
    if hidden:
        raise UnsupportedError(
            f"the graph of {title} writes {hidden} of its buffers at every call; a program runs rows in any number and "
            "keeps no state in its denoiser; use a module whose forward does not update buffers"
        )
