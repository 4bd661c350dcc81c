"""The ways in which benchmarks/moe.py computes a mixture of experts: each makes an ONNX model of one block.

Blocks are transformers': `gated` is Mixtral's, `plain` has Mixtral's router and the experts of Nemotron-H, two matrices
with a relu between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape
from transformers import MixtralConfig, NemotronHConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, MixtralTopKRouter
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

import graphopt

WIDTH, HIDDEN, PICKED = 512, 2048, 2
LOWERED = {"graphopt": "lower-moe", "loop": "lower-moe{form=loop}"}
"""Ways that graphopt makes of what torch exports, and by which pass."""


class Plain(torch.nn.Module):
    """Experts of two matrices behind a router."""

    def __init__(self, gate: Any, experts: Any) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, weights, ids = self.gate(x)
        result: torch.Tensor = self.experts(x.reshape(-1, WIDTH), ids, weights)
        return result.reshape(x.shape)


class Dense(torch.nn.Module):
    """Every expert of a block on every token; the gates of those that were not picked are zero."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.gate = block.gate
        self.gated = isinstance(block, MixtralSparseMoeBlock)
        ups, downs = matrices(block)
        self.ups = torch.nn.ParameterList([torch.nn.Parameter(w.T.contiguous()) for w in ups])
        self.downs = torch.nn.ParameterList([torch.nn.Parameter(w.T.contiguous()) for w in downs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        scores = torch.softmax(rows @ self.gate.weight.T, -1)
        best, ids = torch.topk(scores, PICKED)
        gates = torch.zeros_like(scores).scatter(1, ids, best / best.sum(-1, keepdim=True))
        total = torch.zeros_like(rows)
        for expert, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            total = total + gates[:, expert : expert + 1] * (self.between(rows @ up) @ down)
        return total.reshape(x.shape)

    def between(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return torch.relu(hidden)
        gate, value = hidden.chunk(2, -1)
        return torch.nn.functional.silu(gate) * value


def block_of(kind: str, experts: int) -> Any:
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=PICKED
    )
    config._experts_implementation = "batched_mm"
    block: Any = MixtralSparseMoeBlock(config)
    if kind == "plain":
        own = NemotronHConfig(
            hidden_size=WIDTH, moe_intermediate_size=HIDDEN, n_routed_experts=experts, mlp_hidden_act="relu"
        )
        own._experts_implementation = "batched_mm"
        block = Plain(MixtralTopKRouter(config), NemotronHExperts(own))
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return block.eval()


def matrices(block: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Both stacks of a block, [experts, features out, features in]."""
    experts = block.experts
    up = experts.gate_up_proj if hasattr(experts, "gate_up_proj") else experts.up_proj
    return up.detach(), experts.down_proj.detach()


def model_of(way: str, kind: str, experts: int, tokens: int) -> ir.Model:
    block = block_of(kind, experts)
    if way in ("by hand", "contrib"):
        return _Written(block, experts, tokens).model(way)
    module = Dense(block) if way == "dense" else block
    exported = torch.onnx.export(module, (torch.zeros(1, tokens, WIDTH),), dynamo=True, verbose=False)
    assert exported is not None
    if way not in LOWERED:
        return exported.model
    result: Any = graphopt.optimize(exported.model, [LOWERED[way], "clean-up"], target="onnxruntime")
    refused = [a for a in result.report.applications if a.status != "kept"]
    if refused or not result.report.kept:
        raise SystemExit(f"not lowered: {refused} {result.report.passes[0].notes}")
    model: ir.Model = result.model
    return model


class _Written:
    """A block as somebody who knows onnxruntime would write it, for a number of tokens that is fixed."""

    def __init__(self, block: Any, experts: int, tokens: int) -> None:
        self.block, self.experts, self.tokens = block, experts, tokens
        self.gated = isinstance(block, MixtralSparseMoeBlock)
        self.tape = tape.Tape()
        self.count = 0

    def model(self, way: str) -> ir.Model:
        x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(1, self.tokens, WIDTH))
        rows = self.op("Reshape", x, self.numbers(-1, WIDTH))
        logits = self.op("MatMul", rows, self.constant(self.block.gate.weight.detach().T))
        y = self.contrib(rows, logits) if way == "contrib" else self.sorted(rows, logits)
        y = self.op("Reshape", y, self.numbers(1, self.tokens, WIDTH))
        y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape((1, self.tokens, WIDTH))
        graph = ir.Graph(
            [x], [y], nodes=self.tape.nodes, initializers=self.tape.initializers, opset_imports={"": 20},
            name="experts",
        )  # fmt: skip
        if way == "contrib":
            graph.opset_imports["com.microsoft"] = 1
        return ir.Model(graph, ir_version=10)

    def contrib(self, rows: ir.Value, logits: ir.Value) -> ir.Value:
        """onnxruntime's own op; its gates are those of the chosen experts, normalised."""
        ups, downs = matrices(self.block)
        fields = {"k": PICKED, "activation_type": "relu", "normalize_routing_weights": 1}
        operands = [rows, logits, self.constant(ups), None, self.constant(downs)]
        return self.tape.op("MoE", operands, fields, domain="com.microsoft")

    def sorted(self, rows: ir.Value, logits: ir.Value) -> ir.Value:
        total = self.tokens * PICKED
        best, ids = self.tape.op_multi_out(
            "TopK", [self.op("Softmax", logits, axis=-1), self.numbers(PICKED)], {"axis": -1}, num_outputs=2
        )
        best = self.op("Div", best, self.op("ReduceSum", best, self.numbers(-1), keepdims=1))
        flat = self.op("Reshape", ids, self.numbers(total))
        _, order = self.tape.op_multi_out("TopK", [flat, self.numbers(total)], {"axis": 0, "largest": 0}, num_outputs=2)
        hits = self.op("Equal", self.op("Reshape", flat, self.numbers(total, 1)), self.numbers(*range(self.experts)))
        counts = self.op("ReduceSum", self.op("Cast", hits, to=7), self.numbers(0), keepdims=0)
        token = self.op("Div", order, self.constant(np.asarray(PICKED, np.int64)))
        parts = self.tape.op_multi_out(
            "Split", [self.op("Gather", rows, token, axis=0), counts], {"axis": 0}, num_outputs=self.experts
        )
        ups, downs = matrices(self.block)
        made = [self.expert(*each) for each in zip(parts, ups, downs, strict=True)]
        gates = self.op("Gather", self.op("Reshape", best, self.numbers(total, 1)), order, axis=0)
        joined = self.op("Mul", self.op("Concat", *made, axis=0), gates)
        places = self.op("ScatterElements", order, order, self.numbers(*range(total)), axis=0)
        back = self.op("Reshape", self.op("Gather", joined, places, axis=0), self.numbers(-1, PICKED, WIDTH))
        return self.op("ReduceSum", back, self.numbers(1), keepdims=0)

    def expert(self, rows: ir.Value, up: torch.Tensor, down: torch.Tensor) -> ir.Value:
        if not self.gated:
            hidden = self.op("Relu", self.op("MatMul", rows, self.constant(up.T)))
        else:
            gate, value = (self.op("MatMul", rows, self.constant(half.T)) for half in up.chunk(2))
            hidden = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), value)
        return self.op("MatMul", hidden, self.constant(down.T))

    def op(self, name: str, *operands: ir.Value, **fields: Any) -> ir.Value:
        return self.tape.op(name, operands, fields)

    def numbers(self, *values: int) -> ir.Value:
        return self.constant(np.asarray(values, np.int64))

    def constant(self, data: Any) -> ir.Value:
        self.count += 1
        array = data.contiguous().numpy() if isinstance(data, torch.Tensor) else data
        return self.tape.initializer(ir.tensor(array, name=f"c{self.count}"))
