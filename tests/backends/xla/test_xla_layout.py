"""Channels stay last from op to op, and what a loop computes of weights alone is computed before it."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch.nn.functional as F
from torch_functions import Function

import graphopt
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.function import decomposed, function_of
from graphopt.backends.xla.invariant import without_invariants
from graphopt.backends.xla.settings import Settings


def test_between_two_convolutions_nothing_is_transposed_but_kernels():
    def block(x, v, w):
        h = F.silu(F.group_norm(F.conv2d(x, v, padding=1), 2)) + 1.0
        return F.conv2d(torch.cat([h, h], 1), w, padding=1)

    args = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 8, 3, 3)
    program = decomposed(torch.export.export(Function(block), args).run_decompositions({}))
    with exact_types():
        arrays = [jnp.asarray(x.numpy()) for x in args]
        traced = jax.make_jaxpr(lambda *given: function_of(program)([], given))(*arrays)
        own = function_of(program)([], arrays)[0]
    moves = [e for e in traced.jaxpr.eqns if e.primitive.name == "transpose"]
    assert len(moves) == 4  # the input, two kernels, the result
    expected = block(*(x.double() for x in args)).numpy()
    assert np.abs(np.asarray(own) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_reads_weights_alone_leaves_a_loop_unless_it_grows():
    weight = jnp.arange(6.0).reshape(2, 3)

    def body(x):
        return x @ weight.T.reshape(3, 2) + jnp.broadcast_to(weight[:1, :2], (4, 2)), x.sum()

    def outside(x):
        return without_invariants(body, x)(x)

    x = jnp.ones((4, 3))
    inside = jax.make_jaxpr(without_invariants(body, x))(x).jaxpr.eqns
    named = [e.primitive.name for e in inside]
    assert "transpose" not in str(inside) and "broadcast_in_dim" in str(inside), named
    for own, expected in zip(outside(x), body(x), strict=True):
        assert np.array_equal(own, expected)


@cache
def drawn(*shape):
    """What was drawn before a trace is a constant of it."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def convolved(x, channels, size=3, *, transposed=False, stride=1, groups=1):
    """With weights that are the same for the same sizes."""
    convolve = {
        3: (F.conv1d, F.conv_transpose1d), 4: (F.conv2d, F.conv_transpose2d), 5: (F.conv3d, F.conv_transpose3d)
    }[x.ndim][transposed]  # fmt: skip
    ends = (x.shape[1], channels // groups) if transposed else (channels, x.shape[1] // groups)
    weight = drawn(*ends, *(size,) * (x.ndim - 2)) / (ends[1] * size ** (x.ndim - 2)) ** 0.5
    return convolve(x, weight.to(x.dtype), None, stride, size // 2, groups=groups)


STEPS = [
    lambda x: x + drawn(x.shape[1], *(1,) * (x.ndim - 2)),
    lambda x: drawn(x.shape[0], x.shape[1], *(1,) * (x.ndim - 2)) - x,
    lambda x: torch.where(x > drawn(x.shape[-1]), x, torch.tensor(0.5)),
    lambda x: x.clamp(drawn(x.shape[-1]) - 1, drawn(x.shape[1], *(1,) * (x.ndim - 2)).abs() + 1),
    lambda x: (x * torch.arange(x.shape[-1]) + torch.tensor(2.0, dtype=torch.float64)) / x.shape[-1],
    lambda x: torch.lerp(x, x[0], 0.3) + x.mean(tuple(range(2, x.ndim)), keepdim=True),
    lambda x: x.masked_fill(x > x.amax(1, keepdim=True) - 0.1, 0.25),
    lambda x: F.silu(F.group_norm(x, 1)),
    lambda x: F.group_norm(x, x.shape[1], drawn(x.shape[1]), drawn(x.shape[1])),
    lambda x: torch.cat([x, x * 2], -1),
    lambda x: torch.cat([x, drawn(*x.shape)], 1),
    lambda x: torch.cat([x, -x], 1 - x.ndim),
    lambda x: x.permute(0, 1, *range(-1, 1 - x.ndim, -1)),
    lambda x: x.permute(0, *range(2, x.ndim), 1).cumsum(-1).permute(0, x.ndim - 1, *range(1, x.ndim - 1)) * 0.5,
    lambda x: x.softmax(1) + x.flip(-1),
    lambda x: F.prelu(x, drawn(x.shape[1])),
    lambda x: convolved(x, 4),
    lambda x: convolved(x, 3, 1),
    lambda x: convolved(x, 2 * x.shape[1], groups=x.shape[1]),
    lambda x: convolved(x, 2, transposed=True, stride=2),
    lambda x: convolved(x, 1),
    lambda x: x.flatten(1).reshape(x.shape) * (x > 0),
    lambda x: x.logsumexp(1, keepdim=True) - x,
]


@pytest.mark.parametrize("seed", range(6))
def test_nets_of_random_steps_are_what_torch_computes(seed):
    """Seven of the steps in random order, so that each is in one of the nets."""
    order = np.roll(np.random.default_rng(0).permutation(len(STEPS)), -4 * seed)
    chosen = [STEPS[i] for i in order[:7]]
    x = drawn(*((2, 3, 6, 5), (1, 1, 4, 6), (2, 4, 7), (3, 2, 3, 4, 5))[seed % 4])

    def net(x):
        x = convolved(x, 4)
        for step in chosen:
            x = step(x)
        return x, x.transpose(1, -1), x.float().mean(1)

    of_torch = net(x)
    found = graphopt.lower(Function(net), "xla", example_inputs=(x,), check=False)(x)
    for own, expected in zip(found, of_torch, strict=True):
        assert own.dtype == expected.dtype
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_vectors_of_any_width_give_what_torch_computes():
    """512 bits is what is chosen if nothing is said."""
    x, weight = drawn(2, 3, 9, 7), drawn(5, 3, 3, 3) / 5

    def block(x):
        return F.gelu(F.group_norm(F.conv2d(x, weight, padding=1), 5)).softmax(1)

    for width in (128, 256, 512):
        run = graphopt.lower(Function(block), "xla", example_inputs=(x,), vector_width=width, check=False)
        assert run.settings.compiler_options() == {"xla_cpu_prefer_vector_width": width}
        torch.testing.assert_close(run(x), block(x), rtol=0, atol=1e-5)
    assert Settings().vector_width == 512


@pytest.mark.parametrize("width", [0, 64, 1024, 256.0, True, "256", None])
def test_other_widths_of_vectors_are_refused(width):
    with pytest.raises(ValueError, match=r"vector_width is .*, expected one of 128, 256, 512"):
        Settings(vector_width=width)
