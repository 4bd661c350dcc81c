"""Unified diff of long texts: patience diff, in n log n time.

The lines of a graph's text are mostly unique, so lines that occur once in both texts anchor the comparison
(Bram Cohen's patience diff). difflib alone takes quadratic time on such texts: 88 s for 64,000 nodes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import Match, SequenceMatcher

Pair = tuple[int, int]
Opcode = tuple[str, int, int, int, int]

CONTEXT = 3
"""Unchanged lines shown around a change."""


def text_diff(before: str, after: str, before_name: str = "before", after_name: str = "after") -> str:
    """Unified diff of two texts; empty if they are equal."""
    a, b = before.splitlines(), after.splitlines()
    groups = _Patience(a, b).get_grouped_opcodes(CONTEXT)
    hunks = [line for group in groups for line in _hunk(a, b, group)]
    return "\n".join([f"--- {before_name}", f"+++ {after_name}", *hunks, ""]) if hunks else ""


class _Patience(SequenceMatcher[str]):
    """difflib's grouping of changes over other matching blocks."""

    def __init__(self, a: Sequence[str], b: Sequence[str]) -> None:
        super().__init__(None, a, b, autojunk=False)
        self._blocks = _blocks(a, b)

    def get_matching_blocks(self) -> list[Match]:
        return self._blocks


def _hunk(a: Sequence[str], b: Sequence[str], group: Sequence[Opcode]) -> Iterator[str]:
    first, last = group[0], group[-1]
    yield f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@"
    for tag, a_start, a_end, b_start, b_end in group:
        if tag == "equal":
            yield from (f" {line}" for line in a[a_start:a_end])
        else:
            yield from (f"-{line}" for line in a[a_start:a_end])
            yield from (f"+{line}" for line in b[b_start:b_end])


def _range(start: int, end: int) -> str:
    """Lines `start` to `end` as unified diffs count them: from 1, and from 0 for an empty range."""
    length = end - start
    return f"{start + 1 if length else start},{length}" if length != 1 else str(start + 1)


def _blocks(a: Sequence[str], b: Sequence[str]) -> list[Match]:
    """Runs of equal lines in order, closed by an empty one as difflib does."""
    blocks: list[list[int]] = []
    for i, j in _matches(a, b):
        if blocks and (blocks[-1][0] + blocks[-1][2], blocks[-1][1] + blocks[-1][2]) == (i, j):
            blocks[-1][2] += 1
        else:
            blocks.append([i, j, 1])
    return [*(Match(i, j, n) for i, j, n in blocks), Match(len(a), len(b), 0)]


def _matches(a: Sequence[str], b: Sequence[str]) -> Iterator[Pair]:
    """Equal lines: the anchors, and between two anchors what is equal from either end."""
    i = j = 0
    for anchor_i, anchor_j in [*_anchors(a, b), (len(a), len(b))]:
        while i < anchor_i and j < anchor_j and a[i] == b[j]:
            yield i, j
            i, j = i + 1, j + 1
        back = 0
        while (
            i < anchor_i - back and j < anchor_j - back and a[anchor_i - back - 1] == b[anchor_j - back - 1]
        ):
            back += 1
        yield from ((anchor_i - k, anchor_j - k) for k in range(back, 0, -1))
        if anchor_i < len(a):
            yield anchor_i, anchor_j
        i, j = anchor_i + 1, anchor_j + 1


def _anchors(a: Sequence[str], b: Sequence[str]) -> list[Pair]:
    """The longest sequence of lines that are unique in both texts and in the same order in both."""
    count_a, count_b = Counter(a), Counter(b)
    place = {line: j for j, line in enumerate(b) if count_b[line] == 1}
    pairs = [(i, place[line]) for i, line in enumerate(a) if count_a[line] == 1 and line in place]
    return _longest_increasing(pairs)


def _longest_increasing(pairs: Sequence[Pair]) -> list[Pair]:
    """The longest subsequence whose second members increase, by patience sorting."""
    tops: list[int] = []
    piles: list[int] = []
    previous: list[int] = []
    for index, (_, j) in enumerate(pairs):
        pile = bisect_left(tops, j)
        previous.append(piles[pile - 1] if pile else -1)
        tops[pile : pile + 1] = [j]
        piles[pile : pile + 1] = [index]
    chain: list[Pair] = []
    index = piles[-1] if piles else -1
    while index >= 0:
        chain.append(pairs[index])
        index = previous[index]
    return chain[::-1]
