"""What a module that runs a program may be called with. torch's own checks of it are assertions on sizes and numbers;
they let a tensor pass where None was when the program was exported, and any dtype."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import fx
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, SymIntArgument, TensorArgument
from torch.utils import _pytree as pytree

from graphopt.errors import InputError, UnsupportedError
from graphopt.ir.fx.arguments import Arguments, leaves_of, places_in
from graphopt.ir.fx.decompose import TRACING
from graphopt.ir.fx.stored import Taken


def checked_module(program: ExportedProgram, training: bool | None, taken: Taken) -> fx.GraphModule:
    """`program.module()`, which raises InputError for calls that the program does not hold for, and ModelError if its
    weights were written where they were `taken` from.

    `training`: the mode that it was exported in, to which it may be switched; None if that is not known.
    """
    with TRACING:  # torch parses its assertions, which CPython does for one thread at a time
        module: Any = program.module()
    _watch(module, CallCheck(program, taken), training)
    # Copying a GraphModule leaves out the hooks that run before it, and methods that were replaced.
    if hasattr(module, "_register_deepcopy_hook"):
        again = CallCheck(program, Taken.nothing())
        module._register_deepcopy_hook(partial(_watch, check=again, training=training))
    return cast(fx.GraphModule, module)


def _watch(module: Any, check: CallCheck, training: bool | None) -> None:
    module.register_forward_pre_hook(check, with_kwargs=True, prepend=True)
    if training is not None:
        module.training, module.train = training, partial(_switch, module, training)
        module.eval = partial(module.train, False)


def _switch(module: Any, training: bool, mode: bool = True) -> Any:
    if mode is not training:
        asked = ".train()" if mode else ".eval()"
        raise UnsupportedError(
            f"the model was exported {'in' if training else 'out of'} training mode, which is part of its graph: to "
            f"change it call {asked} on the original module and optimise that"
        )
    return module


class CallCheck:
    """A hook that runs before the module. It gives arguments by position or by name, as they were when exported."""

    def __init__(self, program: ExportedProgram, taken: Taken) -> None:
        self._taken = taken
        self._arguments = Arguments(program)
        self._places = [places_in(structure) for structure in self._arguments.structures]
        placeholders = {n.name: n.meta.get("val") for n in program.graph.find_nodes(op="placeholder")}
        inputs = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
        written = set(program.graph_signature.user_inputs_to_mutate.values())
        self._written = [i for i, argument in enumerate(inputs) if argument.name in written]
        self._inputs: list[tuple[Any, Any]] = [(a, _described(a, placeholders.get(a.name))) for a in inputs]

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_dynamo_compiling() or _is_traced(args, kwargs):
            return None
        self._taken.require_unchanged()
        known = self._arguments
        given = known.named(args, kwargs)
        if missing := [name for name in known.names if name not in given]:
            raise InputError(f"missing argument {', '.join(map(repr, missing))}; the model takes {known.listed()}")
        found: list[Any] = []
        paths: list[str] = []
        for name, child, places in zip(known.names, known.structures, self._places, strict=True):
            leaves = leaves_of(name, child, given[name])
            for place, leaf in zip(places, leaves, strict=True):
                _require(f"{name}{place}", leaf, *self._inputs[len(found)])
                found.append(leaf)
                paths.append(f"{name}{place}")
            if not child.is_leaf() and pytree.tree_structure(given[name]) != child:
                given[name] = pytree.tree_unflatten(leaves, child)  # The keys of a dict may have another order.
        for i in self._written:
            _require_apart(i, found, paths)
        self._assert(module, found)
        by_name = {name: given[name] for name in known.names[len(known.positional) :]}
        return tuple(given[name] for name in known.positional), by_name

    @staticmethod
    def _assert(module: Any, leaves: list[Any]) -> None:
        """torch's own assertions, on sizes, and those on how tensors lie in memory."""
        try:
            getattr(module, "_guards_fn", _nothing)(*leaves)
        except AssertionError as error:
            raise InputError(
                f"{error}, which the model was exported for; give inputs for which it holds, or optimise it with other "
                "example inputs or dynamic_shapes="
            ) from error


def _is_traced(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the module is not called but traced by torch.fx."""
    return any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs)))


def _nothing(*_: Any) -> None:
    """Without example inputs torch makes no function of its assertions, and checks sizes itself."""


def _described(argument: Any, value: Any) -> Any:
    """What is known of an input, without what belongs to the tracing of the program."""
    if isinstance(argument, TensorArgument) and isinstance(value, torch.Tensor):
        return value.dtype, tuple(size if isinstance(size, int) else None for size in value.shape)
    return None


def _require(path: str, leaf: Any, argument: Any, known: Any) -> None:
    """Raises InputError unless `leaf` may be given for `argument`. Other sizes and ranges torch's assertions refuse."""
    if isinstance(argument, ConstantArgument):
        expected = argument.value
        same = type(leaf) is type(expected) and (leaf == expected or (leaf != leaf and expected != expected))
        if not same:
            raise InputError(
                f"argument {path!r} was {expected!r} when the model was exported and is part of it, got "
                f"{_shown(leaf)}; give {expected!r}, or optimise the model with other example inputs"
            )
    elif isinstance(argument, SymIntArgument):
        if isinstance(leaf, bool) or not isinstance(leaf, int | torch.SymInt):
            raise InputError(f"argument {path!r} is an integer, got {_shown(leaf)}")
    elif known is not None:
        _require_tensor(path, leaf, *known)


def _require_tensor(path: str, leaf: Any, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    expected = f"{str(dtype).removeprefix('torch.')}[{','.join('?' if d is None else str(d) for d in shape)}]"
    if not isinstance(leaf, torch.Tensor):
        raise InputError(f"argument {path!r} is {expected}, got {_shown(leaf)}; give a torch.Tensor")
    fits = leaf.ndim == len(shape) and all(d is None or bool(d == s) for d, s in zip(shape, leaf.shape, strict=True))
    if leaf.dtype != dtype or not fits:
        raise InputError(
            f"argument {path!r} is {expected}, got {_shown(leaf)}; the model was optimised and verified for that: "
            "convert what is given, or optimise it with such example inputs (dynamic_shapes= leaves sizes open)"
        )


def _require_apart(written: int, leaves: list[Any], paths: list[str]) -> None:
    """Raises InputError if the tensor `written` may overlap another in memory: the model was exported for tensors that
    lie apart, and reads all of them before it writes."""
    least, most = _extent(leaves[written])
    for i, other in enumerate(leaves):
        if i != written and isinstance(other, torch.Tensor):
            start, end = _extent(other)
            if start < most and least < end:
                raise InputError(
                    f"argument {paths[written]!r} is written by the model and shares memory with {paths[i]!r}; give a "
                    "copy of one of them"
                )


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses that a tensor may have; none where it has no memory, as while it is traced."""
    if tensor.layout is not torch.strided or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return 0, 0
    try:
        start = tensor.data_ptr()
    except RuntimeError:
        return 0, 0
    if not tensor.numel():
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return start, start + reach * tensor.element_size()


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"
    is_plain = value is None or isinstance(value, bool | int | float | complex | str)
    return repr(value) if is_plain else type(value).__name__
