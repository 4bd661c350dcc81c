"""Every scheduler configuration as a schedule, beside diffusers' own scheduler.

    python -m benchmarks.schedules [--json FILE]

For each: the denoiser calls, the tensors that live between them, the noise draws, the worst error over the whole
trajectory through a nonlinear net (largest difference over the largest sample, at least 1; in float32, or in float64
where it says so), and the milliseconds it takes to read; or the reason of a refusal. Stochastic schedulers draw from
a seeded torch.Generator on both sides. Exit code 1 if one is further than 1e-5 from diffusers, or is not refused as
it should be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.schedule_cases import READ, REFUSED, Case, tanh_net, trajectory
from graphopt.errors import UnsupportedError

TOLERANCE = 1e-5
SHAPE = (2, 3, 8, 8)


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one configuration."""

    title: str
    calls: int = 0
    live_tensors: int = 0
    draws: int = 0
    clips: bool = False
    error: float = float("inf")
    milliseconds: float = 0.0
    reason: str = ""


def measure(case: Case, seed: int = 0) -> Result:
    """Read one configuration and replay it beside diffusers."""
    import torch

    start = time.perf_counter()
    try:
        schedule = case.read()
    except UnsupportedError as error:
        return Result(case.title, reason=str(error))
    milliseconds = 1e3 * (time.perf_counter() - start)
    dtype = torch.float64 if case.double else torch.float32
    sample = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * schedule.init_noise_sigma
    expected = trajectory(case, tanh_net, sample, torch.Generator().manual_seed(seed + 1))
    found = []
    schedule.run(
        tanh_net, sample, torch.Generator().manual_seed(seed + 1), callback=lambda row, time, x: found.append(x)
    )
    assert len(found) == len(expected)
    errors = [float((a - b).abs().max()) / max(1.0, float(b.abs().max())) for a, b in zip(found, expected, strict=True)]
    return Result(
        case.title,
        len(schedule),
        schedule.live_tensors,
        schedule.total_draws,
        schedule.clip is not None,
        max(errors, key=lambda error: error if error == error else float("inf")),
        milliseconds,
    )


def _table(results: list[Result]) -> Table:
    table = Table("configuration", "calls", "live", "draws", "clip", "worst error", "read, ms", "refused because")
    for result in results:
        if result.reason:
            table.add_row(result.title, "", "", "", "", "", "", result.reason)
            continue
        numbers = [str(result.calls), str(result.live_tensors), str(result.draws), "yes" if result.clips else ""]
        table.add_row(result.title, *numbers, f"{result.error:.1e}", f"{result.milliseconds:.0f}", "")
    return table


def main() -> int:
    """Measure all configurations and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here too")
    arguments = parser.parse_args()
    console = wide_console()
    read = [measure(case) for case in READ]
    refused = [measure(case) for case in REFUSED]
    console.print(_table(read + refused))
    within = [result for result in read if result.error <= TOLERANCE]
    silent = [r for r, case in zip(refused, REFUSED, strict=True) if case.refusal not in r.reason or not r.reason]
    console.print(
        f"{len(within)} of {len(read)} configurations within {TOLERANCE:g} of diffusers, worst "
        f"{max((r.error for r in within), default=0):.1e}; {len(refused) - len(silent)} of {len(refused)} refused "
        "for the reason expected"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(r) for r in read + refused], indent=1))
    return 0 if len(within) == len(read) and not silent else 1


if __name__ == "__main__":
    sys.exit(main())
