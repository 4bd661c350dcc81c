"""onnx_graphsurgeon graphs: taken, not modified, given back as graphs."""

from __future__ import annotations

import builtins

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx_helpers import parse, run, same

from graphopt.errors import MissingExtraError
from graphopt.ir.onnx.load import load_onnx

X = np.asarray([[-1, 2, -3], [4, -5, 6]], np.float32)
TEXT = """
g (float[n,3] x, float[3] bias) => (float[n,3] y) <float[3] w = {1,2,3}, float[3] bias = {1,1,1}>
{ a = Mul(x, w)  y = Add(a, bias) }
"""


def graph() -> gs.Graph:
    imported = gs.import_onnx(parse(TEXT))
    imported.doc_string, imported.producer_name = "a doc", "maker"
    imported.inputs.append(imported.tensors()["bias"])
    imported.import_domains = None
    return imported


def test_graph_comes_back_as_a_graph():
    source = graph()
    out = load_onnx(source).export()
    assert isinstance(out, gs.Graph)
    assert source.import_domains is None
    assert (out.name, out.doc_string, out.producer_name, out.opset) == ("g", "a doc", "maker", source.opset)
    assert [t.name for t in out.inputs] == ["x", "bias"]
    assert [n.op for n in out.nodes] == ["Mul", "Add"]
    expected = X * np.asarray([1, 2, 3], np.float32) + 1
    assert same(run(gs.export_onnx(out), {"x": X}), [expected])
    assert same(run(gs.export_onnx(out), {"x": X, "bias": np.zeros(3, np.float32)}), [expected - 1])


def test_edit_does_not_reach_the_source():
    source = graph()
    model = load_onnx(source)
    first = next(model.main.nodes())
    model.main.replace(first.outputs[0], first.inputs[0])
    model.main.remove(first)
    assert [n.op for n in model.export().nodes] == ["Add"]
    assert [n.op for n in source.nodes] == ["Mul", "Add"]


def test_missing_package_is_named(monkeypatch):
    source, real = graph(), builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnx_graphsurgeon":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"graphopt\[gs\]"):
        load_onnx(source)
