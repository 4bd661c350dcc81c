"""A hash of what a region says, its control-flow bodies included."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from graphopt.ir.fx.schema import raw_name_of

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


def graph_fingerprint(region: FxGraph) -> str:
    """Structure, names and what is stored, not the data of weights."""
    digest = hashlib.sha256()
    for node in region.graph.nodes:
        target = raw_name_of(node.target) if node.op == "call_function" else node.target
        weight = region.weights.get(node)
        stored = None if weight is None else (weight.name, weight.kind, weight.mutable)
        digest.update(repr((node.op, node.name, target, node.args, node.kwargs, stored)).encode())
        if node.op == "get_attr" and region.is_body(node):
            digest.update(region.body(node).fingerprint().encode())
    return digest.hexdigest()
