"""Calls of the vocabulary on JAX arrays: by their meanings, and by a kernel where XLA has an op for the whole of it.

What depends on sizes alone stays an array of numpy and is computed while the program is traced: an array that comes
in as numpy is known beforehand, and what comes out of such arrays only is, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graphopt.backends.xla import kernels
from graphopt.backends.xla.domain import Traced, Xla, plain
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, numpy_dtype

Kernel = Callable[..., Any]


def run_call(op: str, operands: Sequence[Any], fields: Mapping[str, Any], dtypes: Sequence[str | None]) -> list[Any]:
    """The results of `op` in `dtypes` (None for those that nothing reads), of JAX arrays or, if they are known
    beforehand, arrays of numpy; None stands for an operand that is absent.

    Real numbers of fewer bits than float32 are computed in float32 and rounded once, at the end.
    """
    if all(isinstance(x, np.ndarray) for x in operands if x is not None):
        with np.errstate(all="ignore"):
            results = OPS[op].meaning(Float64(), *map(_widened, operands), **fields)
    elif op in KERNELS:
        results = KERNELS[op](*[None if x is None else jnp.asarray(x) for x in operands], **fields)
    else:
        return by_meaning(op, operands, fields, dtypes)
    return _in_dtypes(results, dtypes)


def by_meaning(op: str, operands: Sequence[Any], fields: Mapping[str, Any], dtypes: Sequence[str | None]) -> list[Any]:
    """`run_call` without kernels."""
    found = {x.dtype.name for x in operands if x is not None} | set(dtypes)
    real = "float64" if "float64" in found else "float32"
    return _in_dtypes(plain(OPS[op].meaning(Xla(real), *[_traced(x, real) for x in operands], **fields)), dtypes)


def _in_dtypes(results: Any, dtypes: Sequence[str | None]) -> list[Any]:
    several = results if isinstance(results, list | tuple) else [results]
    return [None if d is None else _cast(r, d) for r, d in zip(several, dtypes, strict=True)]


def _widened(x: Any) -> Any:
    return x.astype(np.float64) if x is not None and x.dtype.name in FLOATS else x


def _traced(x: Any, real: str) -> Any:
    if x is None or (isinstance(x, np.ndarray) and x.dtype.name not in FLOATS):
        return x
    return Traced(jnp.asarray(x, real if x.dtype.name in FLOATS else None))


def _cast(result: Any, dtype: str) -> Any:
    """`result` in the dtype that it has in the model.

    Raises:
        TypeError: it is of another kind, or was counted in fewer bits.
    """
    result = result if isinstance(result, jax.Array) else np.asarray(result)
    own, wanted = result.dtype, numpy_dtype(dtype)
    if own == wanted:
        return result
    if (own.name in FLOATS) != (dtype in FLOATS) or (own == np.bool_) != (wanted == np.bool_) or (
        dtype not in FLOATS and own.itemsize < wanted.itemsize
    ):  # fmt: skip
        raise TypeError(f"computed in {own}, and {dtype} in the model")
    return result.astype(wanted)


# ---- kernels -----------------------------------------------------------------------------------------------


def conv(x: Any, w: Any, b: Any = None, *, stride: Any, pads: Any, dilation: Any, groups: int = 1) -> Any:
    """XLA's convolution."""
    n = len(stride)
    around = list(zip(pads[:n], pads[n:], strict=True))
    return kernels.convolved(x, w, b, stride, around, dilation=dilation, groups=groups)


def conv_transpose(
    x: Any, w: Any, b: Any = None, *, stride: Any, pads: Any, dilation: Any, output_padding: Any, groups: int = 1
) -> Any:
    """XLA's convolution of x with stride - 1 zeros between its elements; see `kernels.convolution`."""
    n = len(stride)
    reach = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    around = [(reach[i] - pads[i], reach[i] - pads[n + i] + output_padding[i]) for i in range(n)]
    kernel = kernels.flipped(w, groups)
    return kernels.convolved(x, kernel, b, (1,) * n, around, between=stride, dilation=dilation, groups=groups)


ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "relu": (), "sigmoid": (), "tanh": (), "leaky_relu": ("slope",), "hard_sigmoid": ("alpha", "beta"), "clamp": (),
}  # fmt: skip
"""What may follow a fused convolution, with the fields that its parameters are; those of clamp are operands."""


def fused_conv(x: Any, w: Any, b: Any = None, *, activation: str, parameters: Any = (), **window: Any) -> Any:
    y = conv(x, w, b, **window)
    names = ACTIVATIONS[activation]
    bounds = [] if names else [np.asarray(p, y.dtype) for p in parameters]
    return by_meaning(activation, [y, *bounds], dict(zip(names, parameters, strict=False)), [y.dtype.name])[0]


def _sums(dtype: Any) -> Any:
    """In what products of numbers of `dtype` are added up."""
    return jnp.promote_types(dtype, jnp.float32) if dtype.name in FLOATS else dtype


def matmul(a: Any, b: Any) -> Any:
    return jnp.matmul(a, b, preferred_element_type=_sums(a.dtype))


def linear(x: Any, w: Any, b: Any = None, *, trans_w: bool = True) -> Any:
    y = matmul(x, w.T if trans_w else w)
    return y if b is None else y + b


def einsum(*xs: Any, equation: str) -> Any:
    return jnp.einsum(equation, *xs, preferred_element_type=_sums(xs[0].dtype))


def attention(
    q: Any, k: Any, v: Any, mask: Any = None, *, scale: float, causal: bool = False, gqa: bool = False
) -> Any:
    return kernels.attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)


def cast(x: Any, *, dtype: str) -> Any:
    return x.astype(dtype) if dtype in FLOATS else plain(Xla("float32").cast(Traced(x), dtype))


def lstm(
    x: Any, w: Any, r: Any, b: Any = None, h: Any = None, c: Any = None, *, hidden: int, direction: str = "forward"
) -> Any:
    return _stacked("lstm", x, (w, r, b), (h, c), {"hidden": hidden}, direction)


def gru(
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    h: Any = None,
    *,
    hidden: int,
    direction: str = "forward",
    linear_before_reset: bool = False,
) -> Any:
    fields = {"hidden": hidden, "linear_before_reset": linear_before_reset}
    return _stacked("gru", x, (w, r, b), (h,), fields, direction)


def _stacked(
    op: str, x: Any, weights: Sequence[Any], states: Sequence[Any], fields: dict[str, Any], direction: str
) -> Any:
    """A layer with the weights of both directions in one, each a step at a time, so that the compiled program does not
    grow with the number of steps."""
    count = weights[0].shape[0]
    zeros = jnp.zeros((count, x.shape[1], fields["hidden"]), x.dtype)
    starts = [zeros if s is None else s for s in states]
    found = []
    for i, turned in enumerate((direction == "reverse", True)[:count]):
        own = [None if p is None else p[i : i + 1] for p in weights]

        def step(state: Any, now: Any, own: Any = own) -> Any:
            y, *after = by_meaning(op, [now[None], *own, *state], fields, [x.dtype.name] * (1 + len(states)))
            return tuple(after), y[0]

        found.append(jax.lax.scan(step, tuple(s[i : i + 1] for s in starts), x, reverse=turned))
    return _both(found, 1)


def lstm_layer(
    x: Any, h: Any, c: Any, *weights: Any, biases: bool = True, bidirectional: bool = False, batch_first: bool = False
) -> Any:
    """As `_stacked`, with the weights of each direction by themselves."""
    each = 4 if biases else 2
    steps = x.swapaxes(0, 1) if batch_first else x
    found = []
    for i in range(2 if bidirectional else 1):
        own = weights[i * each : (i + 1) * each]

        def step(state: Any, now: Any, own: Any = own) -> Any:
            results = by_meaning("lstm_layer", [now[None], *state, *own], {"biases": biases}, [x.dtype.name] * 3)
            return tuple(results[1:]), results[0][0]

        found.append(jax.lax.scan(step, (h[i : i + 1], c[i : i + 1]), steps, reverse=i == 1))
    y, *last = _both(found, 2)
    return (y.swapaxes(0, 1) if batch_first else y, *last)


def _both(directions: Sequence[Any], axis: int) -> Any:
    """Outputs of all steps joined along `axis`, and the last states along the first."""
    states = zip(*[state for state, _ in directions], strict=True)
    return (jnp.concatenate([y for _, y in directions], axis), *map(jnp.concatenate, states))


KERNELS: dict[str, Kernel] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "fused_conv": fused_conv,
    "matmul": matmul,
    "linear": linear,
    "einsum": einsum,
    "attention": attention,
    "grouped_matmul": kernels.grouped_matmul,
    "cast": cast,
    "lstm": lstm,
    "gru": gru,
    "lstm_layer": lstm_layer,
}
"""Ops whose meaning XLA would not recognise as what it is, or would unroll."""
