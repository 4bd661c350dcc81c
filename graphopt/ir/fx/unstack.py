"""Stacks of recurrent layers taken apart: the vocabulary has a word for one layer, and each may have its own width."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from graphopt.ir.fx.fake import recompute
from graphopt.ir.fx.schema import arguments

aten = torch.ops.aten
_LSTM = aten.lstm.input


def unstack_lstm(graph: fx.Graph) -> None:
    """Let every LSTM of several layers be one layer after the other. Where numbers are dropped in between, or the state
    is projected, it stays."""
    for node in graph.find_nodes(op="call_function", target=_LSTM):
        given = arguments(node)
        layers, directions = given["num_layers"], 2 if given["bidirectional"] else 1
        each = directions * (4 if given["has_biases"] else 2)
        drops = given["train"] and given["dropout"] > 0
        if layers > 1 and len(given["params"]) == layers * each and not drops:
            _Unstacking(graph, node).run(given, directions, each)


class _Unstacking:
    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self._graph = graph
        self._node = node

    def run(self, given: dict[str, Any], directions: int, each: int) -> None:
        x, layers = given["input"], []
        for i in range(given["num_layers"]):
            weights = list(given["params"][i * each : (i + 1) * each])
            start = [self._start(state, i * directions, directions) for state in given["hx"]]
            flags = (given["has_biases"], 1, 0.0, False, given["bidirectional"], given["batch_first"])
            layers.append(self._call(_LSTM, x, start, weights, *flags))
            x = self._call(operator.getitem, layers[-1], 0)
        for result in [u for u in self._node.users if u.target is operator.getitem]:
            if result.args[1]:
                self._split(result, [self._call(operator.getitem, n, result.args[1]) for n in layers], directions)
            else:
                result.replace_all_uses_with(x)
            self._graph.erase_node(result)
        self._graph.erase_node(self._node)

    def _call(self, target: Any, *args: Any, kwargs: Any = None) -> fx.Node:
        with self._graph.inserting_before(self._node):
            made = self._graph.call_function(target, args, kwargs)
        made.meta.update({k: v for k, v in self._node.meta.items() if k != "val"})
        made.meta["val"] = recompute(made, self._node.meta["val"][0].fake_mode)
        return made

    def _start(self, state: fx.Node, first: int, count: int) -> fx.Node:
        """What a layer starts with; zeros of its own, which tie it to no other layer."""
        if state.target is aten.zeros.default:
            return self._call(state.target, [count, *state.args[0][1:]], kwargs=state.kwargs)
        return self._call(aten.slice.Tensor, state, 0, first, first + count)

    def _split(self, state: fx.Node, layers: Sequence[fx.Node], directions: int) -> None:
        """Let what read the last states of all layers read those of the layers, and one after the other where it read
        more than one of them."""
        rows = len(layers) * directions
        selections = [u for u in state.users if u.target is aten.select.int and u.args[1] == 0]
        for user in [u for u in selections if isinstance(u.args[2], int)]:
            layer, direction = divmod(user.args[2] % rows, directions)
            user.args = (layers[layer], 0, direction)
        if state.users:
            state.replace_all_uses_with(self._call(aten.cat.default, list(layers)))
