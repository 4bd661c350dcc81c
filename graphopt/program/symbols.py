"""The tensors that a scheduler is run on, and what is read from those it returns.

Randomness and clamps are caught as they are called, by a torch function mode, which is local to the thread and
patches nothing: a draw of noise is answered with a new symbol, and so is a clamp, whose argument is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from graphopt.errors import UnsupportedError
from graphopt.program.rows import Floats, SymbolRows

# A mixture of symbols gives the mixture of their coefficients, to this.
ADDITIVE = 1e-9
# scale_model_input is one factor, to this (some schedulers compute it in float32).
ONE_FACTOR = 1e-6

_RANDOM = {
    "bernoulli", "bernoulli_", "exponential_", "gumbel_softmax", "multinomial", "normal", "normal_", "poisson",
    "rand", "rand_like", "randint", "randint_like", "randperm", "uniform_",
}  # fmt: skip
_CLAMPS = {"clamp", "clip", "clamp_", "clip_"}
_CASTS = {"to", "float", "double", "half", "bfloat16", "type"}


class Symbols(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped for mypy
    """One run of a scheduler on symbols of one amplitude.

    A symbol has shape (1, 1, 3, width): the symbols apart, zeros (which show offsets), and random numbers (which
    show products of inputs and anything else that is not additive).
    """

    def __init__(self, name: str, amplitude: float, width: int | None) -> None:
        """
        Args:
            name: the scheduler's, for messages.
            amplitude: the size of what the scheduler sees.
            width: how many symbols there will be; None for a run that only counts them.
        """
        super().__init__()
        self.columns = 0
        self.draws_float32 = False
        self.input_scale: list[float] = []
        self._name, self._amplitude, self._width, self._counting = name, amplitude, width or 1, width is None
        self._random = torch.Generator().manual_seed(0)
        self._mixture: list[Floats] = []
        self._row = 0
        self._sample: list[int] = []
        self._model: list[int] = []
        self._noise: list[list[int]] = []
        self._clamps: dict[int, tuple[int, Any, float, float]] = {}
        self._outputs: list[Any] = []

    def begin(self, row: int) -> tuple[Any, Any]:
        """The sample and the model's output of a call, as new symbols."""
        self._row = row
        self._noise.append([])
        (x, sample), (m, output) = self._symbol(), self._symbol()
        self._sample.append(x)
        self._model.append(m)
        return sample, output

    def scaled(self, sample: Any, scaled: Any) -> None:
        """Take note of what scale_model_input made of the sample."""
        scale = float(scaled[..., 2, :].norm() / sample[..., 2, :].norm())
        if not torch.allclose(scaled.to(sample.dtype), sample * scale, rtol=ONE_FACTOR, atol=0):
            raise self._refusal("scale_model_input is not one factor")
        self.input_scale.append(scale)

    def returned(self, sample: Any, output: Any) -> None:
        """Take note of what step returned."""
        if output.shape != sample.shape:
            raise self._refusal(f"step() made shape {tuple(output.shape)} of a sample of {tuple(sample.shape)}")
        self._outputs.append(output)

    def rows(self, initial_scale: float) -> SymbolRows:
        """Everything as coefficients on the symbols."""
        calls = len(self._sample)
        arguments, low, high = np.zeros((calls, self._width)), np.zeros(calls), np.zeros(calls)
        clip = np.full(calls, -1)
        for row, (column, value, low[row], high[row]) in self._clamps.items():
            clip[row], arguments[row] = column, self._coefficients(row, value)
        return SymbolRows(
            outputs=np.stack([self._coefficients(row, value) for row, value in enumerate(self._outputs)]),
            clip_arguments=arguments,
            clip_low=low,
            clip_high=high,
            sample=np.asarray(self._sample),
            model=np.asarray(self._model),
            clip=clip,
            noise=tuple(tuple(columns) for columns in self._noise),
            initial_scale=initial_scale,
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("randn", "randn_like"):
            return self._draw(_size(args, kwargs), kwargs)
        if name in _RANDOM:
            raise self._refusal(f"it calls {name}(), and its randomness is not normal noise")
        symbolic = bool(args) and isinstance(args[0], torch.Tensor) and args[0].shape[-2:] == (3, self._width)
        if symbolic and name in _CASTS and not self._counting:
            return args[0]  # rounded to float32, coefficients would blur
        if symbolic and name in _CLAMPS:
            return self._clamp(*args, **kwargs)
        return func(*args, **kwargs)

    def _symbol(self) -> tuple[int, Any]:
        """A new symbol: its column and its tensor."""
        tensor = torch.zeros(1, 1, 3, self._width, dtype=torch.float64)
        tensor[..., 0, min(self.columns, self._width - 1)] = self._amplitude
        tensor[..., 2, :] = self._amplitude * torch.randn(self._width, dtype=torch.float64, generator=self._random)
        self._mixture.append(tensor[0, 0, 2].numpy() / self._amplitude)
        self.columns += 1
        return self.columns - 1, tensor

    def _draw(self, shape: tuple[int, ...], kwargs: Mapping[str, Any]) -> Any:
        if shape != (1, 1, 3, self._width):
            raise self._refusal(f"it draws noise of shape {shape}, not of the sample's")
        self.draws_float32 |= kwargs.get("dtype") is torch.float32
        column, tensor = self._symbol_outside()
        self._noise[self._row].append(column)
        return tensor

    def _clamp(self, value: Any, low: Any = None, high: Any = None, **bounds: Any) -> Any:
        low, high = bounds.get("min", low), bounds.get("max", high)
        if self._row in self._clamps:
            raise self._refusal("it clamps more than once in a call")
        if not (_is_number(low) and _is_number(high)):
            raise self._refusal("it clamps to bounds that are not one number below and one above")
        column, tensor = self._symbol_outside()
        self._clamps[self._row] = (column, value, float(low), float(high))
        return tensor

    def _symbol_outside(self) -> tuple[int, Any]:
        """A new symbol made while the mode is on: its own draws are not the scheduler's."""
        with torch._C.DisableTorchFunction():
            return self._symbol()

    def _coefficients(self, row: int, value: Any) -> Floats:
        """The coefficients (width,) of a value on every symbol."""
        seen = value[0, 0].to(torch.float64).numpy() / self._amplitude
        if not np.isfinite(seen).all():
            raise self._refusal("its coefficients are not finite; try another order, solver type or final sigma", row)
        columns = np.flatnonzero(seen[0])
        mixed = seen[0, columns] @ np.stack([self._mixture[column] for column in columns]) if len(columns) else 0.0
        offset, excess = np.abs(seen[1]).max(), np.abs(mixed - seen[2]).max()
        if max(offset, excess) > ADDITIVE * np.abs(seen[0]).sum():
            raise self._refusal("its step is not affine: the effects of its inputs do not add up", row)
        coefficients: Floats = seen[0]
        return coefficients

    def _refusal(self, reason: str, row: int | None = None) -> UnsupportedError:
        return UnsupportedError(f"{self._name}, call {self._row if row is None else row}: {reason}.")


def _size(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape asked for: randn((2, 3)), randn(2, 3), randn(size=(2, 3)) or randn_like(tensor)."""
    first = args[0] if args else kwargs.get("size", ())
    return tuple(args) if isinstance(first, int) else tuple(getattr(first, "shape", first))


def _is_number(bound: Any) -> bool:
    return isinstance(bound, int | float) or (isinstance(bound, torch.Tensor) and bound.numel() == 1)
