"""A long hunt for wrong proofs: mutants of the catalogue's proved rewrites, none of which may be proved if it differs.

    python -m benchmarks.prove_mutants [--each N] [--seed N] [--seconds S]

Prints how many mutants there were, how many truly differ in float64, and every one that was proved all the same. Exit
code 1 if finite numbers of one of those differ; different NaN and infinities alone are the executed checks' part.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from benchmarks.mutants import Tally, hunt
from benchmarks.proof_catalogue_more import CATALOGUE


def main(each: int = 130, seed: int = 1, seconds: Annotated[float, typer.Option()] = 3600.0) -> None:
    tally, started = Tally(), time.perf_counter()
    rewrites = [e for e in CATALOGUE if e.after is not None]
    turn = 0
    while turn * 10 < each and time.perf_counter() - started < seconds:
        for entry in rewrites:
            assert entry.after is not None
            hunt(entry.name, entry.fragment(entry.after), entry.feeds(), min(10, each), seed * 1000 + turn, tally)
            if time.perf_counter() - started > seconds:
                break
        turn += 1
    print(
        f"{len(rewrites)} rewrites, {tally.made} mutants, {tally.failing} cannot be computed, {tally.equal} equal, "
        f"{tally.differing} differ ({tally.special} by NaN or infinities alone), {time.perf_counter() - started:.0f} s"
    )
    print(f"proved although finite numbers differ: {len(tally.wrong or [])}", *(tally.wrong or []), sep="\n")
    print(f"proved, NaN or infinities differ: {len(tally.beyond or [])}", *(tally.beyond or []), sep="\n")
    raise typer.Exit(bool(tally.wrong))


if __name__ == "__main__":
    typer.run(main)
