"""One row of a schedule as ONNX nodes: the denoiser's inputs, guidance, and the update of the live tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.backends.ort_builder import Builder
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.program.guidance import Guidance
from graphopt.program.noise import used_draws
from graphopt.program.program import Program
from graphopt.program.runner import timestep_table


class RowWriter:
    """Writes one row into a graph; the row's number is a value of that graph."""

    def __init__(self, program: Program, builder: Builder, row: ir.Value) -> None:
        self._program = program
        self._schedule = program.schedule
        self._builder = builder
        self._row = row
        self._dtype = program.interface.sample.dtype

    def of_row(self, table: Array) -> ir.Value:
        """The row's entry of an array of shape [R, ...]."""
        if (table == table[:1]).all():
            return self._builder.constant(np.array(table[0], order="C"))
        return self._builder.op("Gather", self._builder.constant(table, "rows"), self._row, axis=0)

    def sample_seen(self, sample: ir.Value) -> ir.Value:
        """What the denoiser sees of the sample."""
        scaled = self._combination([self._schedule.input_scale], [sample])
        return self._builder.op("Concat", scaled, scaled, axis=0) if self._program.interface.doubled else scaled

    def timestep(self) -> ir.Value:
        return self.of_row(timestep_table(self._program, range(len(self._schedule))))

    def predict(self, outputs: Sequence[ir.Value], scale: ir.Value | None) -> ir.Value:
        """The prediction, from what the denoiser gives for each branch."""
        interface, guidance = self._program.interface, self._program.guidance
        if interface.prediction_channels is not None:
            outputs = [self._slice(v, 1, 0, interface.prediction_channels) for v in outputs]
        if guidance is None:
            return outputs[0]
        if interface.doubled:
            assert interface.sample.shape is not None
            batch = interface.sample.shape[0]
            assert isinstance(batch, int)
            outputs = [self._slice(outputs[0], 0, 0, batch), self._slice(outputs[0], 0, batch, 2 * batch)]
        assert scale is not None
        if guidance.varies:
            scale = self._builder.op("Gather", scale, self._row, axis=0)
        return self._combine(outputs[0], outputs[1], scale, guidance)

    def _slice(self, value: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
        ints = self._builder.ints
        return self._builder.op("Slice", value, ints(start), ints(stop), ints(axis))

    def _combine(self, unconditional: ir.Value, conditional: ir.Value, scale: ir.Value, guidance: Guidance) -> ir.Value:
        op, number = self._builder.op, self._builder.number
        difference = op("Sub", conditional, unconditional)
        guided = op("Add", unconditional, op("Mul", scale, difference))
        if guidance.rescale == 0.0:
            return guided
        ratio = op("Div", self._deviation(conditional), self._deviation(guided))
        adjusted = op("Mul", number(guidance.rescale, self._dtype), op("Mul", guided, ratio))
        return op("Add", adjusted, op("Mul", number(1.0 - guidance.rescale, self._dtype), guided))

    def _deviation(self, value: ir.Value) -> ir.Value:
        """Sample standard deviation of every batch element, over all other axes; as torch, half precision is summed in
        float32, where neither the number of elements nor their sum overflows."""
        op, shape = self._builder.op, self._program.interface.sample.shape
        assert shape is not None
        dtype = "float32" if self._dtype in ("float16", "bfloat16") else self._dtype
        if dtype != self._dtype:
            value = op("Cast", value, to=ir.DataType.FLOAT)
        elements = float(np.prod([d for d in shape[1:] if isinstance(d, int)]))
        axes, number = self._builder.ints(*range(1, len(shape))), self._builder.number
        mean = op("Div", op("ReduceSum", value, axes, keepdims=1), number(elements, dtype))
        centred = op("Sub", value, mean)
        squares = op("ReduceSum", op("Mul", centred, centred), axes, keepdims=1)
        deviation = op("Sqrt", op("Div", squares, number(elements - 1.0, dtype)))
        return deviation if dtype == self._dtype else op("Cast", deviation, to=ir.DataType[self._dtype.upper()])

    def update(self, state: Sequence[ir.Value], prediction: ir.Value, step_noise: ir.Value | None) -> list[ir.Value]:
        """The live tensors after the row."""
        schedule = self._schedule
        clamped, clip_gain = prediction, np.zeros_like(schedule.model_gain)
        if schedule.clip is not None:
            clip, clip_gain = schedule.clip, schedule.clip.gain
            inside = self._combination([*clip.state.T, clip.model], [*state, prediction])
            low, high = (self.of_row(self._cast(bound)) for bound in (clip.low, clip.high))
            clamped = self._builder.op("Clip", inside, low, high)
        noise = self._noise(step_noise)
        tensors = [*state, prediction, clamped, *noise.values()]
        return [
            self._combination(
                [
                    *schedule.transition[:, i].T,
                    schedule.model_gain[:, i],
                    clip_gain[:, i],
                    *(schedule.noise_gain[:, i, draw] for draw in noise),
                ],
                tensors,
            )
            for i in range(len(state))
        ]

    def _noise(self, step_noise: ir.Value | None) -> dict[int, ir.Value]:
        """The row's noise by the number of its draw within the row."""
        used = used_draws(self._schedule)
        if step_noise is None:
            return {}
        place = np.where(used, np.cumsum(used).reshape(used.shape) - 1, 0)
        gather = self._builder.op
        return {
            draw: gather("Gather", step_noise, self.of_row(place[:, draw].astype(np.int64)), axis=0)
            for draw in range(used.shape[1])
            if used[:, draw].any()
        }

    def _combination(self, coefficients: Sequence[Array], tensors: Sequence[ir.Value]) -> ir.Value:
        """Σ coefficient · tensor in this order, each coefficient of shape [R]; what is never used is not written."""
        total: ir.Value | None = None
        for coefficient, tensor in zip(coefficients, tensors, strict=True):
            if not coefficient.any():
                continue
            ones = bool((coefficient == 1).all())
            term = tensor if ones else self._builder.op("Mul", tensor, self.of_row(self._cast(coefficient)))
            total = term if total is None else self._builder.op("Add", total, term)
        return self._builder.zeros(self._program.interface.sample) if total is None else total

    def _cast(self, numbers: Array) -> Array:
        return numbers.astype(numpy_dtype(self._dtype))
