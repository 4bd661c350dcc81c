"""A schedule as text, one line a denoiser call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt.program.rows import Floats

if TYPE_CHECKING:
    from graphopt.program.schedule import Schedule


def schedule_table(schedule: Schedule, rows: int = 24) -> str:
    """Head, column names and rows; the middle of more than `rows` rows is left out."""
    columns = _columns(schedule)
    lines = [[_cell(column[j]) for column in columns.values()] for j in range(len(schedule))]
    lines = [[str(j), _cell(schedule.timesteps[j]), *line] for j, line in enumerate(lines)]
    names = ["row", "t", *columns]
    widths = [max(len(name), *(len(line[i]) for line in lines)) for i, name in enumerate(names)]
    shown = [_line(names, widths), *_elided([_line(line, widths) for line in lines], rows)]
    return "\n".join([_head(schedule), *shown])


def _head(schedule: Schedule) -> str:
    live = f"{schedule.live_tensors} live tensor{'s' if schedule.live_tensors > 1 else ''}"
    names = ", ".join(schedule.state_names)
    return (
        f"{schedule.source}: {len(schedule)} denoiser calls, {live} ({names}), {schedule.total_draws} noise draws, "
        f"predicts {schedule.prediction_type}, x_T of deviation {schedule.init_noise_sigma:.6g}"
    )


def _columns(schedule: Schedule) -> dict[str, Floats]:
    """Every coefficient that is not zero in all rows, as "result <- factor"."""
    columns: dict[str, Floats] = {}
    if (schedule.input_scale != 1).any():
        columns["scale"] = schedule.input_scale
    clip = schedule.clip
    for i, target in enumerate(schedule.state_names):
        columns |= {f"{target}<-{name}": schedule.transition[:, i, k] for k, name in enumerate(schedule.state_names)}
        columns[f"{target}<-m"] = schedule.model_gain[:, i]
        if clip is not None:
            columns[f"{target}<-clip"] = clip.gain[:, i]
        columns |= {f"{target}<-z{d}": schedule.noise_gain[:, i, d] for d in range(schedule.noise_gain.shape[2])}
    if clip is not None:
        columns |= {f"clip<-{name}": clip.state[:, k] for k, name in enumerate(schedule.state_names)}
        columns |= {"clip<-m": clip.model, "low": clip.low, "high": clip.high}
    columns = {name: values for name, values in columns.items() if np.any(values)}
    if (schedule.draws != 0).any():
        columns["draws"] = schedule.draws.astype(np.float64)
    return columns


def _cell(value: float) -> str:
    return "." if value == 0 else f"{value:.6g}"


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _elided(lines: list[str], rows: int) -> list[str]:
    if len(lines) <= rows:
        return lines
    head, tail = (rows + 1) // 2, rows // 2
    return [*lines[:head], f"... {len(lines) - head - tail} rows ...", *lines[len(lines) - tail :]]
