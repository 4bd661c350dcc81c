"""Small ONNX models for the tests of backends and tools."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def value(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, weights=None, *, opset=20, domains=None):
    """An unchecked ModelProto; `weights` maps names to arrays, `domains` custom domains to versions."""
    initializers = [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def node(op, inputs, outputs, *, name="", domain="", **attributes):
    return helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)


def conv_bn(channels=4, size=8, *, batch="n", seed=0):
    """y = relu(batch_norm(conv(x))) with a symbolic batch."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.standard_normal((channels, 3, 3, 3)).astype(np.float32),
        "scale": rng.standard_normal(channels).astype(np.float32),
        "shift": rng.standard_normal(channels).astype(np.float32),
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": rng.uniform(0.5, 2.0, channels).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv[0]", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], name="bn[0]"),
        node("Relu", ["b"], ["y"], name="relu"),
    ]
    inputs, outputs = [value("x", [batch, 3, size, size])], [value("y", [batch, channels, size, size])]
    return model(nodes, inputs, outputs, weights)


def save_conv_bn(path, **options):
    onnx.save(conv_bn(**options), path)
    return path


def count(source, op):
    """Nodes of `op` in the main graph of a file."""
    return sum(n.op_type == op for n in onnx.load(source).graph.node)
