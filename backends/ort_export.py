"""A torch program as an `onnx_ir.Model`, through torch's own exporter."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch.export.exported_program import ExportedProgram

from graphopt.backends.ort_constants import store_constants
from graphopt.backends.ort_registry import remembered_registry
from graphopt.backends.ort_tolerances import exact_simplifications
from graphopt.backends.ort_truths import say_choices_of_truths
from graphopt.backends.signature import require_stateless
from graphopt.errors import MissingExtraError, UnsupportedError
from graphopt.ir.fx.decompose import remembered_marks

_OPERATOR = re.compile(r"target=torch\.ops\.(?P<name>[\w.]+)")
_SQUEEZE = (torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims)


def export_onnx(program: ExportedProgram) -> ir.Model:
    """`program` in ONNX; its inputs and outputs are the tensors among the program's, in order.

    `program` is edited: it must be the caller's own copy.

    Raises:
        UnsupportedError: torch's exporter cannot say it in ONNX; the message has the exporter's reason. A program that
            writes buffers or inputs, or that takes or returns complex numbers, which the exporter would change.
        MissingExtraError: onnxscript, which the exporter needs, is not installed.
    """
    _require_exporter()
    require_stateless(program, "onnxruntime")
    _require_real(program)
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            _say_squeezes_exactly(module.graph)
            say_choices_of_truths(module.graph)
    _drop_constant_outputs(program.graph)
    store_constants(program)
    _freeze(program)
    try:
        # The first lets one thread in at a time.
        with remembered_marks(), _quiet(), remembered_registry(), exact_simplifications() as exact:
            exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, optimize=exact)
    except Exception as error:  # the exporter wraps whatever goes wrong in several classes of its own
        raise UnsupportedError(
            f"torch.onnx.export cannot say this model in ONNX{_at_operator(error)}: {_root_cause(error)}; "
            "rewrite that part of the module with other operators, or lower to the backend 'torch'"
        ) from error
    model: ir.Model = exported.model
    return model


def _require_exporter() -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise MissingExtraError(
            "lowering a torch model to onnxruntime needs onnxscript: pip install graphopt[torch]"
        )


def _require_real(program: ExportedProgram) -> None:
    """The exporter makes an axis of two real numbers of them, within the model as well as where it is called."""
    signature = program.graph_signature
    named = {*signature.user_inputs, *signature.user_outputs}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in named and isinstance(value, torch.Tensor) and value.is_complex():
            raise UnsupportedError(
                f"backend 'onnxruntime' takes and returns real numbers, and {node.name!r} is {value.dtype}; give and "
                "return torch.view_as_real of it"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own progress off the user's screen; what matters it raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _say_squeezes_exactly(graph: fx.Graph) -> None:
    """Let every squeeze name exactly the dimensions that it drops.

    torch ignores dimensions of another size than 1, ONNX rejects them; and a Squeeze without axes would
    drop, at run time, a symbolic dimension that happens to be 1. Which ones torch dropped is seen in the
    types: the sizes that are 1, and a symbolic size never is.
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _SQUEEZE:
            continue
        sizes = node.args[0].meta["val"].shape
        ones = [
            axis for axis in _squeezed(node, len(sizes)) if isinstance(sizes[axis], int) and sizes[axis] == 1
        ]
        if len(sizes) - len(ones) != node.meta["val"].dim():
            raise UnsupportedError(f"it cannot be told which dimensions {node.name} drops from {list(sizes)}")
        if ones:
            node.target = torch.ops.aten.squeeze.dims
            node.args = (node.args[0], ones)
        else:
            node.target = torch.ops.aten.clone.default
            node.args = (node.args[0],)


def _squeezed(node: fx.Node, rank: int) -> list[int]:
    """The axes that a squeeze may drop, non-negative and in order."""
    if node.target is torch.ops.aten.squeeze.default or rank == 0:
        return list(range(rank))
    given: Any = node.args[1]
    axes = given if isinstance(given, (tuple, list)) else (given,)
    return sorted({axis % rank for axis in axes})


def _freeze(program: ExportedProgram) -> None:
    """Let nothing be trained: torch takes attention apart otherwise for a mask that is, and the exporter then expects
    the result elsewhere in memory."""
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    for node in program.graph.find_nodes(op="placeholder"):
        if isinstance(value := node.meta.get("val"), torch.Tensor):
            node.meta["val"] = value.detach()


def _drop_constant_outputs(graph: fx.Graph) -> None:
    """The exporter leaves None out and stumbles over numbers; the caller puts both back."""
    output = graph.output_node()
    output.args = (tuple(v if isinstance(v, fx.Node) else None for v in output.args[0]),)


def _at_operator(error: BaseException) -> str:
    """The operator at which the exporter stopped, if it says so."""
    found = [_OPERATOR.search(str(cause)) for cause in _causes(error)]
    return next((f" at {match['name']}" for match in found if match), "")


def _root_cause(error: BaseException) -> str:
    root = _causes(error)[-1]
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0].rstrip('.')}" if lines else type(root).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """`error`, what caused it, and so on to the root."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain
