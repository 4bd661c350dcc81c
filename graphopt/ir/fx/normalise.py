"""What is tidied in an exported program before it is rewritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ASSERTION = torch.ops.aten._assert_tensor_metadata.default


def hoist_assertions(program: Any) -> None:
    """Let the dtype assertions that tracing left on intermediate results stand on the inputs, once each.

    They read every tensor that was cast, so they would keep it alive through every rewrite. The dtypes of the
    inputs decide those of all results, so nothing that the assertions refuse is accepted.
    """
    graph: fx.Graph = program.graph
    assertions = graph.find_nodes(op="call_function", target=_ASSERTION)
    if not assertions:
        return
    for node in assertions:
        graph.erase_node(node)
    names = set(program.graph_signature.user_inputs)
    placeholders = graph.find_nodes(op="placeholder")
    with graph.inserting_after(placeholders[-1]):
        for node in reversed(placeholders):
            value = node.meta.get("val")
            if node.name in names and isinstance(value, torch.Tensor):
                kwargs = {"device": value.device, "layout": value.layout}
                check = graph.call_function(_ASSERTION, (node, None, None, value.dtype), kwargs)
                check.meta["val"] = None
