"""Each kernel of our own, and the check that holds every kernel against torch."""

from xla_support import Function, torch  # first: it skips where JAX is missing  # isort: skip

import jax
import ml_dtypes
import numpy as np
import pytest
import torch.nn.functional as F

from graphopt.backends.xla import kernels, layout
from graphopt.backends.xla.arrays import to_jax
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.conformance import check_ops
from graphopt.backends.xla.function import decomposed
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import to_numpy


def checked(function, *args):
    program = torch.export.export(Function(function), args).run_decompositions({})
    return check_ops(decomposed(program), args)


def randn(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("spatial", [1, 2])
def test_transposed_convolutions_keep_their_groups_apart(groups, spatial):
    convolve = (F.conv_transpose1d, F.conv_transpose2d)[spatial - 1]
    x, weight, bias = randn(2, 8, *(5, 6)[:spatial]), randn(8, 3, *(3, 2)[:spatial]), randn(3 * groups)
    for sizes in ({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "stride": 3}):
        assert checked(lambda x, w, b, s=sizes: convolve(x, w, b, groups=groups, **s), x, weight, bias) == 1


def test_grouped_transposed_convolutions_of_torchax_are_caught(monkeypatch):
    for table in (kernels.OWN, layout.RULES):
        monkeypatch.delitem(table, "aten.convolution.default")
    convolution = torch.ops.aten.convolution.default
    with pytest.raises(UnsupportedError, match=r"differs from torch: by"):
        checked(lambda x, w: convolution(x, w, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 2), randn(1, 4, 5, 5),
                randn(4, 4, 3, 3))  # fmt: skip


def test_repetitions_of_known_size():
    repeat = torch.ops.aten.repeat_interleave.self_int
    assert checked(lambda x: (repeat(x, 2, 1, output_size=6), repeat(x, 3)), randn(2, 3)) == 2


@pytest.mark.parametrize("batched", [True, False])
def test_convolutions_with_groups_dilation_and_strides(batched):
    x = randn(2, 6, 9, 8) if batched else randn(6, 9, 8)
    assert checked(lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2), 3), x, randn(9, 2, 3, 3))


def test_attention_masks_scales_and_groups():
    q, k, v = randn(2, 4, 5, 8), randn(2, 2, 7, 8, seed=1), randn(2, 2, 7, 6, seed=2)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    mask = randn(5, 7, seed=3) > 0
    attend = F.scaled_dot_product_attention
    checked(lambda q, k, v: attend(q, k, v, enable_gqa=True), q, k, v)
    checked(lambda q, k, v: attend(q, k, v, scale=0.3), q, wide_k, wide_v)
    checked(lambda q, k, v: attend(q, k, v, is_causal=True), q, q, q)
    checked(lambda q, k, v, m: attend(q, k, v, m), q, wide_k, wide_v, mask)
    checked(lambda q, k, v, m: attend(q, k, v, m), q, wide_k, wide_v, randn(2, 1, 5, 7))
    masked_row = mask.clone()
    masked_row[2] = False
    checked(lambda q, k, v, m: attend(q, k, v, m), q, wide_k, wide_v, masked_row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_are_normalised_without_a_loop(dtype):
    x, weight, bias = (y.to(dtype) for y in (5 + randn(2, 6, 4, 3), randn(6), randn(6)))
    assert checked(lambda x, w, b: F.group_norm(x, 3, w, b), x, weight, bias) == 1
    assert checked(lambda x: F.group_norm(x, 2, None, None, 0.1), x) == 1
    assert checked(lambda x, w: torch.native_group_norm(x, w, None, 2, 6, 12, 3, 1e-5), x, weight) >= 1
    assert "while" not in jax.jit(kernels.group_norm, static_argnums=1).lower(x.float().numpy(), 3).as_text()


def test_remainders_and_quotients_are_exact():
    # 1 / 0.1 in float32 is rounded to 10, 1e8 / 0.3 to an integer that is off, 2**62 / 3 in float64.
    floats = torch.tensor([1.0, -1.0, 0.3, 1e8, 1e38]), torch.tensor([0.1, 0.1, 0.1, 0.3, 7.0])
    integers = torch.tensor([2**62 + 1, -(2**62) - 1, 7, -7]), torch.tensor([3, 3, -2, 2])
    for x, y in (floats, integers, [i.int() for i in integers]):
        assert checked(lambda x, y: (torch.fmod(x, y), torch.fmod(x, 3)), x, y) == 2
        assert checked(lambda x, y: (torch.div(x, y, rounding_mode="trunc"), x // y), x, y) == 2
    assert checked(lambda x: torch.div(x, 3, rounding_mode="trunc"), integers[0]) == 1


def test_the_sign_of_nan_is_zero():
    x = torch.tensor([float("nan"), float("inf"), -2.0, -0.0])
    assert checked(torch.sign, x) == checked(torch.sign, x.bfloat16()) == checked(torch.sign, x[1:3].sign().int()) == 1


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gelu_is_as_exact_as_its_formula(dtype, approximate):
    x = torch.linspace(-12, 12, 2401).to(dtype)
    assert checked(lambda x: F.gelu(x, approximate=approximate), x) == 1
    with jax.enable_x64(True):
        got = np.asarray(jax.jit(lambda x: kernels.gelu(x, approximate=approximate))(to_jax(x)).astype("float64"))
        odd = np.asarray(kernels.gelu(np.array([np.nan, np.inf, -0.0]), approximate=approximate))
    exact = F.gelu(x.double(), approximate=approximate).numpy()
    # A half of x times 1 + erf, which is of 1 however near to 0 it comes.
    error = np.abs(got - exact) / np.maximum(np.abs(x.double().numpy()), 1e-3)
    assert error.max() <= 4 * torch.finfo(dtype).eps
    assert np.isnan(odd[0]) and odd[1] == np.inf and np.signbit(odd[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norms_by_running_statistics(dtype):
    x, mean, weight, bias, var = (y.to(dtype) for y in (randn(2, 3, 4), *randn(3, 3), randn(3).abs() + 0.1))
    for scale, shift in ((weight, bias), (None, None)):
        got = jax.jit(kernels.batch_norm, static_argnums=(5, 6, 7))(
            *(None if y is None else to_jax(y) for y in (x, scale, shift, mean, var)), False, 0.1, 1e-5
        )
        assert difference(to_numpy(F.batch_norm(x, mean, var, scale, shift)), np.asarray(got)) is None
    with pytest.raises(UnsupportedError, match="training mode"):
        kernels.batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)


def test_products_of_groups_with_empty_groups():
    ends = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    x, weights = randn(7, 6), randn(4, 6, 5)
    got = jax.jit(kernels.grouped_matmul)(x.numpy(), weights.numpy(), ends.numpy())
    expected = torch.cat([x[:3] @ weights[1], x[3:] @ weights[3]])
    assert difference(expected.numpy(), np.asarray(got)) is None


def test_int8_products_are_exact():
    a, b = (torch.randint(-128, 128, s, dtype=torch.int8) for s in ((32, 64), (64, 16)))
    assert checked(torch._int_mm, a, b)


def test_fake_quantisation_rounds_as_torch_does():
    x = torch.linspace(-3, 3, 601)
    assert checked(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.05, 3, -20, 20), x)


def test_numbers_that_nobody_has_written_are_not_compared():
    def turned(x):
        out = torch.empty_like(x)
        out[..., 0::2], out[..., 1::2] = -x[..., 1::2], x[..., 0::2]
        return out

    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN, which JAX has not
    try:
        assert checked(turned, randn(2, 4)) > 0
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_wrong_kernel_is_named_with_its_operands(monkeypatch):
    monkeypatch.setitem(kernels.OWN, "aten.relu.default", lambda x: x)
    with pytest.raises(UnsupportedError, match=r"aten\.relu\.default\) of operands \(3, 4\) differs from torch"):
        checked(torch.relu, randn(3, 4))


def test_a_kernel_that_loses_nan_is_caught(monkeypatch):
    monkeypatch.setitem(kernels.OWN, "aten.relu.default", lambda x: jax.numpy.where(x > 0, x, 0))
    with pytest.raises(UnsupportedError, match="NaN"):
        checked(torch.relu, torch.tensor([1.0, float("nan")]))


def test_positions_may_only_differ_where_numbers_are_equal(monkeypatch):
    def other_way_round(x, k, *_):
        values, places = jax.lax.top_k(x, k)
        return values, places[..., ::-1].astype("int64")

    monkeypatch.setitem(kernels.OWN, "aten.topk.default", other_way_round)
    assert checked(lambda x: x.topk(2), torch.tensor([[2.0, 1.0, 2.0, 0.0]])) == 1
    with pytest.raises(UnsupportedError, match="topk.*differs from torch: 2 of 2 numbers"):
        checked(lambda x: x.topk(2), torch.tensor([[3.0, 1.0, 2.0, 0.0]]))


def test_all_ops_that_differ_are_named_at_once(monkeypatch):
    monkeypatch.setitem(kernels.OWN, "aten.relu.default", lambda x: x)
    monkeypatch.setitem(kernels.OWN, "aten.exp.default", lambda x: x)
    with pytest.raises(UnsupportedError, match=r"aten\.relu\.default.*aten\.exp\.default"):
        checked(lambda x: x.relu().exp(), randn(3, 4))


def test_results_of_fewer_bits_than_torch_are_refused(monkeypatch):
    import graphopt

    monkeypatch.setitem(kernels.OWN, "aten.cumsum.default", lambda x, dim, **_: x.astype("int32").cumsum(dim))
    run = graphopt.lower(Function(lambda x: x.cumsum(0)), "xla", example_inputs=(torch.arange(4),), check=False)
    with pytest.raises(UnsupportedError, match="int32 and int64 in torch"):
        run(torch.arange(4))


def test_differences_are_told_from_rounding():
    x = np.array([1.0, 2.0], np.float32)
    assert difference(x, x * np.float32(1 + 1e-6)) is None
    assert difference(x, x * np.float32(1.001)) is not None
    assert difference(x, x.reshape(2, 1)) is not None
    assert difference(np.array([1, 2]), np.array([1, 3])) is not None
    assert difference(np.zeros(0), np.zeros(0)) is None


def test_low_precision_has_a_bound_of_its_own():
    x = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert difference(x, x * ml_dtypes.bfloat16(1.02)) is None
    assert difference(x, x * ml_dtypes.bfloat16(1.1)) is not None
