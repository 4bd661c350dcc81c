"""Which nodes may be removed, duplicated or merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from graphopt.ir.onnx.shared import Shared, body_graphs

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_RANDOM_MICROSOFT = frozenset({"BiasDropout", "BitmaskDropout", "BitmaskBiasDropout", "Sampling"})
_KNOWN_DOMAINS = frozenset({"", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})


def is_pure(shared: Shared, node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """False for random numbers, for training-mode dropout and for custom ops, of which nothing is known."""
    if node.op_identifier() in shared.readers and node.op_type != "Dropout":
        # The vocabulary has only what computes its outputs from its operands, and no function is read as its op.
        return True
    function = shared.model.functions.get(node.op_identifier())
    if function is not None:
        return _all_pure(shared, function, function.opset_imports)
    if node.domain not in _KNOWN_DOMAINS or node.op_type in _RANDOM:
        return False
    if node.domain == "com.microsoft" and node.op_type in _RANDOM_MICROSOFT:
        return False
    if node.op_type == "Dropout" and node.domain == "":
        return not _drops(shared, node, opsets.get("") or opsets.get("ai.onnx", 1))
    return all(_all_pure(shared, body, opsets) for body in body_graphs(node))


def _all_pure(shared: Shared, nodes: Iterable[ir.Node], opsets: Mapping[str, int]) -> bool:
    return all(is_pure(shared, node, opsets) for node in nodes)


def _drops(shared: Shared, node: ir.Node, opset: int) -> bool:
    """Whether a Dropout may be in training mode."""
    if opset < 7:
        return "is_test" not in node.attributes or node.attributes["is_test"].value == 0
    if opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    tensor = shared.tensor(node.inputs[2])
    return tensor is None or bool(tensor.numpy().any())
