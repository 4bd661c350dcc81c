"""A long hunt for wrong proofs: mutants of proved rewrites, none of which may be proved if it differs.

    python -m benchmarks.prove_mutants [MODEL ...] [--differing N] [--seed N] [--seconds S] [--no-torch] [--dest FOLDER]

The rewrites are those of the catalogue, and what passes do to the named ONNX models of the manifest and to small models
of transformers (`mutant_corpus`). Mutants are drawn from all of them in turn, until so many differ in float64; none
counts twice. Prints how many there were of each kind of rewrite, and every one that was proved all the same. Different
NaN and infinities alone are no fault of a proof, which speaks of real numbers, and the executed checks have to catch
them. Exit code 1 if finite numbers of a proved mutant differ, if one that is proved and differs passes the executed
checks, or if there were fewer than asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.mutant_corpus import Recorded, of_models, of_torch
from benchmarks.mutants import Hunt, Tally
from benchmarks.proof_catalogue_more import CATALOGUE
from graphopt.tools.fetch import DEFAULT_FOLDER

MODELS = ("ppocrv2_cls", "silero_vad_v4", "oww_hey_jarvis_if", "dnsmos_p808", "basic_pitch", "open_nsfw_resnet50")
EACH = 10
"""New mutants of one rewrite in one turn."""
CATALOGUED, MODELLED, TRACED = "catalogue", "ONNX models", "torch models"


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Ids of ONNX models; a few if none is given.")] = None,
    differing: Annotated[int, typer.Option(help="Until so many mutants differ.")] = 5000,
    seed: int = 1,
    seconds: Annotated[float, typer.Option(help="Give up after that.")] = 3600.0,
    torch: Annotated[bool, typer.Option(help="Also what passes do to models of transformers.")] = True,
    dest: Annotated[Path, typer.Option(help="Folder of the models.")] = DEFAULT_FOLDER,
) -> None:
    """Hunt for mutants of proved rewrites that are proved although they differ."""
    started = time.perf_counter()
    sources = [(CATALOGUED, _catalogue()), (MODELLED, of_models(tuple(models or MODELS), dest))]
    sources += [(TRACED, of_torch())] if torch else []
    tallies = {name: Tally() for name, _ in sources}
    hunts: list[Hunt] = []
    for name, source in sources:
        made = list(_hunts(source, seed, tallies[name]))
        print(f"{name}: {len(made)} proved rewrites")
        hunts += made
    while hunts and sum(t.differing for t in tallies.values()) < differing:
        going = []
        for hunt in hunts:
            if time.perf_counter() - started > seconds:
                break
            if hunt.make(EACH):
                going.append(hunt)
        hunts = going if time.perf_counter() - started <= seconds else []
    for name, tally in tallies.items():
        print(
            f"{name}: {tally.made} different mutants ({tally.repeated} drawn again), {tally.failing} cannot be "
            f"computed, {tally.equal} equal, {tally.differing} differ ({tally.special} by NaN or infinities alone)"
        )
    total = sum(t.differing for t in tallies.values())
    wrong, beyond, missed = (
        [line for t in tallies.values() for line in lines(t)] for lines in (_wrong, _beyond, _missed)
    )
    print(f"{total} mutants differ, {time.perf_counter() - started:.0f} s")
    print(f"proved although finite numbers differ: {len(wrong)}", *wrong, sep="\n")
    print(f"proved, NaN or infinities differ: {len(beyond) + len(missed)}")
    print(f"caught by the executed checks: {len(beyond)}", *beyond, sep="\n")
    print(f"not caught: {len(missed)}", *missed, sep="\n")
    raise typer.Exit(bool(wrong or missed) or total < differing)


def _catalogue() -> Iterator[Recorded]:
    for entry in CATALOGUE:
        if entry.after is not None:
            yield Recorded(entry.name, entry.fragment(entry.after), entry.feeds())


def _hunts(source: Iterator[Recorded], seed: int, tally: Tally) -> Iterator[Hunt]:
    for one in source:
        try:
            yield Hunt(one.name, one.fragment, one.feeds, seed, tally)
        except Exception as error:  # meanings raise whatever numpy raises
            print(f"left out: {one.name}: {type(error).__name__}: {error}")


def _wrong(tally: Tally) -> list[str]:
    return tally.wrong


def _beyond(tally: Tally) -> list[str]:
    return tally.beyond


def _missed(tally: Tally) -> list[str]:
    return tally.missed


if __name__ == "__main__":
    typer.run(main)
