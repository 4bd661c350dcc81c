"""Channels stay last from op to op, and what a loop computes of weights alone is computed before it."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import jax
import jax.numpy as jnp
import numpy as np
import torch.nn.functional as F
from torch_functions import Function

from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.function import decomposed, function_of
from graphopt.backends.xla.invariant import without_invariants


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
