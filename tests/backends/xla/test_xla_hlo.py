"""What a report reads off the text of a compiled module."""

from xla_support import torch  # noqa: F401  first: it skips where JAX is missing  # isort: skip

import pytest

from graphopt.backends.xla.ahead_report import Padding, structure
from graphopt.backends.xla.hlo import arrays, parse

MODULE = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,3]{0,1:T(4,128)})->f32[9,2]{1,0:T(8,128)}}

%fused (param_0: f32[9,2]) -> f32[9,2] {
  %param_0 = f32[9,2]{1,0:T(8,128)} parameter(0)
  %copy.9 = f32[9,2]{1,0:T(8,128)} copy(%param_0)
  ROOT %tanh = f32[9,2]{1,0:T(8,128)} tanh(%copy.9)
}

%body (arg: (s32[], f32[9,2])) -> (s32[], f32[9,2]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[9,2]{1,0:T(8,128)}) parameter(0)
  %got = f32[9,2]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %loop_fusion = f32[9,2]{1,0:T(8,128)S(1)} fusion(%got), kind=kLoop, calls=%fused
  ROOT %out = (s32[]{:T(128)}, f32[9,2]{1,0:T(8,128)}) tuple(%got, %loop_fusion)
}

%condition (arg: (s32[], f32[9,2])) -> pred[] {
  %arg = (s32[]{:T(128)}, f32[9,2]{1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} compare(%arg, %arg), direction=LT
}

ENTRY %main (w: f32[8,3], x: bf16[9,2]) -> f32[9,2] {
  %w = f32[8,3]{0,1:T(4,128)} parameter(0), metadata={op_name="weights[0]"}
  %x = bf16[9,2]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (f32[8,3]{0,1:T(4,128)S(1)}, f32[8,3]{0,1:T(4,128)}, u32[]{:S(2)}) copy-start(%w)
  %done = f32[8,3]{0,1:T(4,128)S(1)} copy-done(%start)
  %fusion.1 = f32[9,2]{1,0:T(8,128)} fusion(%done, %x), kind=kOutput, calls=%fused
  %token = token[] after-all()
  %call = f32[2]{0:T(128)} custom-call(%x), custom_call_target="xla_python_gpu_callback"
  %while.1 = (s32[]{:T(128)}, f32[9,2]{1,0:T(8,128)}) while(%fusion.1), condition=%condition, body=%body
  ROOT %result = f32[9,2]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("f32[8,3,3,3]{0,3,2,1:T(4,128)}", 3 * 3 * 4 * 128 * 4),
        ("f32[2,3,9,9]{3,0,2,1:T(2,128)S(1)}", 3 * 9 * 2 * 128 * 4),
        ("bf16[9,2]{1,0:T(8,128)(2,1)}", 16 * 128 * 2),
        ("bf16[9,2]{1,0:T(16,128)(2,1)}", 16 * 128 * 2),
        ("s8[33,130]{1,0:T(32,128)(4,1)}", 64 * 256),
        ("s4[3]{0:T(256)E(4)}", 128),
        ("f32[]{:T(128)}", 512),
        ("f32[2,3,5]{2,1,0:T(*,128)}", 2 * 128 * 4),
        ("pred[7]{0}", 7),
        ("c64[3,2]", 48),
        ("f32[0,4]{1,0:T(8,128)}", 0),
    ],
)
def test_arrays_take_whole_tiles(text, bytes_):
    (buffer,) = arrays(text)
    assert buffer.padded_bytes == bytes_


def test_layouts_are_said_as_they_are_read():
    (buffer,) = arrays("bf16[16,8]{0,1:T(8,128)(2,1)S(1)}")
    assert (str(buffer), buffer.space, buffer.logical_bytes) == ("bf16[16,8]{0,1:T(8,128)(2,1)}", 1, 256)


def test_what_runs_is_counted_and_what_is_fused_is_not():
    found = structure(parse(MODULE))
    assert found["fusions"] == {"kLoop": 1, "kOutput": 1}
    assert found["loops"] == 1
    assert found["copy_count"] == 1 and found["copies"] == Padding(96, 2048)
    assert found["host_transfers"] == ("call",)


def test_every_array_is_counted_once():
    found = structure(parse(MODULE))
    tile = 8 * 128
    assert found["argument_padding"] == Padding(96 + 36, 4 * 128 * 4 + 2 * tile * 2)
    # The arguments, the copy, two fusions, the callback's result, the loop's condition.
    written = 4 * 128 * 4 + 2 * (2 * tile * 4) + 128 * 4 + 512
    assert found["padding"] == Padding(132 + 96 + 2 * 72 + 8 + 1, 4 * 128 * 4 + 2 * tile * 2 + written)
    assert found["layouts"] == {
        "f32 T(4,128)": 2, "f32 T(8,128)": 2, "bf16 T(8,128)(2,1)": 1, "f32 T(128)": 1, "pred T(512)": 1
    }  # fmt: skip
    assert found["worst"][0] == {
        "layout": "f32[9,2]{1,0:T(8,128)}", "count": 2, "logical_bytes": 144, "padded_bytes": 16384
    }  # fmt: skip


@pytest.mark.parametrize("line", [
    "%a = ((f32[2]{0}), token[]) infeed(%t)",
    "%a = (f32[2]{0}, u32[], token[]) send(%x, %t), channel_id=1, is_host_transfer=true",
    "%a = f32[2]{0:T(128)S(5)} copy(%x)",
])  # fmt: skip
def test_other_ways_to_the_host_are_seen(line):
    text = f"ENTRY %main (x: f32[2]) -> f32[2] {{\n  %x = f32[2]{{0}} parameter(0)\n  {line}\n}}\n"
    assert structure(parse(text))["host_transfers"] == ("a",)


def test_text_that_is_no_module_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule empty\n")
