"""Writers: what was read is written back the same, and what ONNX cannot say at an opset is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_cases import CASES, Case, X, c, real, weight
from onnx_helpers import run, same

from graphopt.ir.graph import Call, CannotEmit, TensorType
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.onnx.write import WRITERS
from graphopt.ir.ops.spec import OPS

F32 = TensorType("float32", (2, 3, 4))


def rewritten(case: Case):
    """The case's node replaced by what the writer makes of it."""
    model = load_onnx(case.model())
    region = model.main
    (node,) = region.nodes()
    call = region.call(node)
    types = [region.type(v) for v in node.outputs]
    values, _, _ = region.insert(call.op, call.operands, call.fields, before=node, types=types)
    for old, new in zip(node.outputs, values, strict=True):
        region.replace(old, new)
    region.remove(node)
    model.refresh()
    return model, call


@pytest.mark.parametrize("case", [k for k in CASES if not k.refuses], ids=str)
def test_written_node_is_read_with_the_same_fields(case: Case):
    model, call = rewritten(case)
    region = model.main
    last = list(region.nodes())[-1]
    again = region.call(last)
    assert isinstance(again, Call), again
    assert (again.op, dict(again.fields)) == (call.op, dict(call.fields))
    assert [v is None for v in again.operands] == [v is None for v in call.operands]
    assert [v.name for v in region.outputs()] == [f"out{i}" for i in range(case.outputs)]


@pytest.mark.parametrize("case", [k for k in CASES if not k.refuses and k.runs], ids=str)
def test_written_node_computes_the_same(case: Case):
    before, after = case.model(), rewritten(case)[0].export()
    onnx.checker.check_model(after)
    expected, got = run(before, case.feeds()), run(after, case.feeds())
    if case.other_kernel:
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-6, atol=1e-6)
    else:
        assert same(expected, got)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_can_emit_agrees_with_insert(case: Case):
    region = load_onnx(case.model()).main
    (node,) = region.nodes()
    call = region.call(node)
    types = [None if v is None else region.type(v) for v in call.operands]
    reason = region.can_emit(call.op, call.fields, types)
    before = region.fingerprint()
    if case.refuses:
        assert case.refuses in reason
        with pytest.raises(CannotEmit, match=case.refuses):
            region.insert(call.op, call.operands, call.fields, before=node, types=[None])
        assert region.fingerprint() == before
    else:
        assert reason is None


@pytest.mark.parametrize("case", [k for k in CASES if not k.refuses], ids=str)
def test_undo_restores_the_bytes(case: Case):
    model = load_onnx(case.model())
    region = model.main
    (node,) = region.nodes()
    before, call = model.export().SerializeToString(), region.call(node)
    values, _, undo = region.insert(call.op, call.operands, call.fields, before=node, types=[None])
    undos = [undo] + [region.replace(old, new) for old, new in zip(node.outputs, values, strict=False)]
    assert model.export().SerializeToString() != before
    for step in reversed(undos):
        step()
    assert model.export().SerializeToString() == before


def test_every_writer_is_for_an_op_of_the_vocabulary():
    assert set(WRITERS) <= set(OPS)
    assert {case.op for case in CASES} <= set(WRITERS)


@pytest.mark.parametrize("op", [op for op in WRITERS if not OPS[op].variadic], ids=str)
def test_a_field_that_the_writer_does_not_read_is_refused(op: str):
    region = load_onnx(Case("Relu", [X], "", opset=24).model()).main
    fields = {case.op: case.fields for case in CASES}.get(op, {})
    types = [F32] * len(OPS[op].operands)
    reason = region.can_emit(op, {**fields, "unheard_of": 1}, types)
    assert reason is not None
    assert "unheard_of" in reason or region.can_emit(op, fields, types) is not None


CANNOT = [
    ("silu", {}, [F32], 18, "Swish needs opset 24"),
    ("gelu", {"approximate": "none"}, [F32], 18, "Gelu needs opset 20"),
    ("layer_norm", {"axis": -1, "eps": 1e-5}, [F32, F32], 16, "LayerNormalization needs opset 17"),
    ("group_norm", {"groups": 1, "eps": 1e-5}, [F32, F32, F32], 18, "GroupNormalization needs opset 21"),
    ("attention", {"scale": 1.0}, [TensorType("float32", (1, 2, 3, 4))] * 3, 22, "Attention needs opset 23"),
    ("linear", {"trans_w": True}, [F32, TensorType("float32", (5, 4))], 18, "2-D"),
    ("softmax", {"axis": 0}, [F32], 11, "needs opset 13"),
    ("div", {"rounding": "floor"}, [F32, F32], 18, "rounding 'floor'"),
    ("softplus", {"beta": 1.0, "threshold": 20.0}, [F32], 18, "neither beta nor threshold"),
    ("mod", {"fmod": False}, [F32, F32], 18, "sign of the dividend"),
    ("reshape", {"shape": (0, 4)}, [F32], 11, "opset 14"),
    ("reshape", {"shape": None}, [F32], 18, "exactly one"),
    ("scatter_nd", {"reduction": "max"}, [F32, F32, F32], 16, "opset 18"),
    ("shape", {"start": 1}, [F32], 13, "opset 15"),
    ("slice", {"starts": (0,), "ends": (1,), "axes": (0,), "steps": (2,)}, [F32], 9, "opset 10"),
    ("unknown_op", {}, [F32], 18, "no way to say"),
    ("ai.onnx::Swish", {}, [F32], 18, "does not exist"),
    ("ai.onnx::Upsample", {}, [F32], 18, "deprecated"),
]


@pytest.mark.parametrize(("op", "fields", "types", "opset", "reason"), CANNOT)
def test_what_onnx_cannot_say_is_refused_with_the_reason(op, fields, types, opset, reason):
    region = load_onnx(Case("Relu", [X], "", opset=opset).model()).main
    assert reason in region.can_emit(op, fields, types)


def test_absent_scale_and_shift_are_written_as_ones_and_zeros():
    case = Case(
        "BatchNormalization", [real(1, 4, 2), weight(4), weight(4), weight(4), c([1] * 4, np.float32)], ""
    )
    model = load_onnx(case.model())
    region = model.main
    (node,) = region.nodes()
    x, _, _, mean, var = node.inputs
    fields = {"eps": 0.5, "training": False}
    (new,), _, _ = region.insert("batch_norm", [x, None, None, mean, var], fields, before=node, types=[None])
    region.replace(node.outputs[0], new)
    region.remove(node)
    (result,) = run(model.export(), case.feeds())
    mean_data = case.inputs[3].array.reshape(1, 4, 1)
    np.testing.assert_allclose(result, (case.inputs[0] - mean_data) / np.sqrt(1.5), rtol=1e-5, atol=1e-6)
