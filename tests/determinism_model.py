"""A small model that gives every family of rules something to do, and what a process makes of it.

    python determinism_model.py onnx MODEL OUT | torch OUT

prints a JSON list of application ids and of the report without times.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

TIMES = ("seconds",)
TEXT = """
g (float[n,4,8,8] x, bool flag) => (float[n,4,8,8] y, float[n,4,8,8] z, float[n,256] flat)
<float[4,4,3,3] w0, float[4,4,3,3] w1, float[4,4,3,3] w2, float[4,4,3,3] w3, float[4,4,3,3] shared,
 float[4] scale, float[4] shift, float[4] mean, float[4] var, float[4] scale2, float one = {1.0},
 float again = {1.0}, float zero = {0.0}, float three = {3.0}, float tres = {3.0}, int64[1] last = {-1},
 float[1,4,1,1] gain, float[1,4,1,1] gain2>
{
    c1 = Conv<pads = [1,1,1,1]>(x, w0)
    b1 = BatchNormalization(c1, scale, shift, mean, var)
    r1 = Relu(b1)
    c2 = Conv<pads = [1,1,1,1]>(r1, w3)
    b2 = BatchNormalization<epsilon = 0.001>(c2, scale2, shift, mean, var)
    s1 = Conv<pads = [1,1,1,1]>(b2, shared)
    s2 = Conv<pads = [1,1,1,1]>(r1, shared)
    p = Mul(s1, one)
    q = Add(p, zero)
    t1 = Transpose<perm = [0,2,3,1]>(q)
    t2 = Transpose<perm = [0,3,1,2]>(t1)
    e1 = Sigmoid(s2)
    e2 = Sigmoid(s2)
    e0 = Add(e1, e2)
    m1 = Mul(e0, three)
    m2 = Sub(e0, tres)
    e = Mul(m1, m2)
    g1 = Mul(gain, gain2)
    g2 = Exp(g1)
    scaled = Mul(e, g2)
    unused = Neg(scaled)
    always = Constant<value = bool {1}>()
    taken = If(always) <
        then_branch = then () => (float[n,4,8,8] th) {
            tha = Mul(t2, again)
            thc = Conv<pads = [1,1,1,1]>(tha, w1)
            th = BatchNormalization(thc, scale, shift, mean, var)
        },
        else_branch = other () => (float[n,4,8,8] el) { el = Relu(t2) }
    >
    y = If(flag) <
        then_branch = yes () => (float[n,4,8,8] ya) {
            yc = Conv<pads = [1,1,1,1]>(taken, w2)
            yb = BatchNormalization(yc, scale2, shift, mean, var)
            yd = Identity(yb)
            ya = Mul(yd, again)
        },
        else_branch = no () => (float[n,4,8,8] na) {
            nt = Transpose<perm = [1,0,2,3]>(taken)
            na = Transpose<perm = [1,0,2,3]>(nt)
        }
    >
    cast = Cast<to = 1>(scaled)
    z = Identity(cast)
    size = Shape(z)
    first = Constant<value_ints = [0]>()
    batch = Gather<axis = 0>(size, first)
    target = Concat<axis = 0>(batch, last)
    flat = Reshape(z, target)
}
"""


def write_model(path: Path) -> None:
    """The ONNX model, weights from a fixed seed."""
    import onnx
    import onnx.parser
    from onnx import numpy_helper

    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {TEXT}')
    rng = np.random.default_rng(0)
    for info in list(model.graph.value_info):
        shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        data = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(data, info.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)


def torch_module() -> Any:
    """A torch module with shared weights, an unused layer and equal subexpressions."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.shared = nn.Conv2d(4, 4, 1)
            self.linear, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
            y = torch.relu(self.norm(self.conv(x))) * 1.0
            y = self.shared(self.shared(y).transpose(1, 2).transpose(2, 1))
            z = torch.sigmoid(y) + torch.sigmoid(y)
            return {"a": self.last(self.linear(z.mean((2, 3)))) * scale, "b": z + 0.0}

    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        module.norm.running_var.uniform_(0.5, 2.0)
        module.last.running_mean.uniform_(-1.0, 1.0)
    return module


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: without_times(v) for k, v in data.items() if k not in TIMES}
    return [without_times(v) for v in data] if isinstance(data, list) else data


def main(kind: str, *arguments: str) -> None:
    import graphopt

    if kind == "onnx":
        source, output = arguments
        result = graphopt.optimize(source)
        result.save(output)
        Path(output).with_suffix(".txt").write_text(result._model.main.fingerprint())
    else:
        import torch

        example = (torch.ones(2, 3, 6, 6),), {"scale": torch.tensor(2.0)}
        shapes = {"x": {0: torch.export.Dim("batch")}, "scale": None}
        result = graphopt.optimize(torch_module(), example_inputs=example, dynamic_shapes=shapes)
        state = {k: v.numpy().tobytes().hex() for k, v in result.model.state_dict().items()}
        Path(arguments[0]).write_text(
            "\n".join([result._model.main.fingerprint(), result.model.code, json.dumps(state)])
        )
    ids = [f"{a.id} {a.status}" for p in result.report.passes for a in p.applications]
    print(json.dumps({"ids": ids, "report": without_times(result.report.to_dict())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
