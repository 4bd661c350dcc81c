import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from graphopt.backends import ort_registry
from graphopt.backends.ort_registry import remembered_registry


def contents(registry):
    return {
        target: [(d.onnx_function, d.fx_target, d.is_complex, str(d.signature)) for d in known]
        for target, known in registry.functions.items()
    }


def test_it_is_the_exporters_and_each_one_is_the_callers_own():
    wanted = ONNXRegistry.from_torchlib(18)
    with remembered_registry():
        one = ONNXRegistry.from_torchlib(18)
        one.register_op(torch.ops.aten.relu.default, wanted.functions["aten::tanh"][0].onnx_function)
        one.functions.pop("aten::abs")
        two = ONNXRegistry().from_torchlib(18)  # the exporter asks an instance
        assert contents(two) == contents(wanted) != contents(one)
        assert two.opset_version == wanted.opset_version == 18


def test_it_is_read_once_for_each_opset_and_set_of_operators(monkeypatch):
    monkeypatch.setattr(ort_registry, "_read", {})
    reads = []
    read = ONNXRegistry.from_torchlib
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", classmethod(lambda _, *a: reads.append(a) or read(*a)))
    for opset in (18, 18):
        with remembered_registry():
            assert ONNXRegistry.from_torchlib(opset).opset_version == opset
    assert reads == [(18,)]
    with torch.library._scoped_library("graphopt_registry", "DEF") as library, remembered_registry():
        library.define("made_later(Tensor x) -> Tensor")
        ONNXRegistry.from_torchlib(18)
        assert reads == [(18,), (18,)]
    with remembered_registry():
        assert ONNXRegistry.from_torchlib(20).opset_version == 20


def test_the_exporter_has_its_own_function_again_afterwards():
    own = vars(ONNXRegistry)["from_torchlib"]
    with remembered_registry():
        assert vars(ONNXRegistry)["from_torchlib"] is not own
    assert vars(ONNXRegistry)["from_torchlib"] is own
