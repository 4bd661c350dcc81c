"""Unified diffs: they lead from one text to the other, and take no quadratic time."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from graphopt.ir.diff import text_diff

texts = st.lists(st.sampled_from("abcdefgh"), max_size=25).map(lambda lines: "".join(f"{x}\n" for x in lines))


def patched(before: str, diff: str) -> str:
    """`before` with a unified diff applied, every context and removed line checked."""
    lines, result, at = before.splitlines(), [], 0
    for line in diff.splitlines()[2:]:
        header = re.match(r"@@ -(\d+)(?:,(\d+))? \+", line)
        if header:
            start = int(header[1]) - (header[2] != "0")
            result += lines[at:start]
            at = start
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            assert lines[at] == line[1:]
            result += [] if line.startswith("-") else [lines[at]]
            at += 1
    return "".join(f"{line}\n" for line in [*result, *lines[at:]])


@given(texts, texts)
def test_a_diff_leads_from_one_text_to_the_other(before, after):
    assert patched(before, text_diff(before, after)) == after


@given(texts)
def test_equal_texts_have_no_diff(text):
    assert text_diff(text, text) == ""


def test_a_diff_shows_the_change_and_three_lines_around_it():
    before = "".join(f"line {i}\n" for i in range(20))
    assert text_diff(before, before.replace("line 9\n", "new\n"), "old.txt", "new.txt").splitlines() == [
        "--- old.txt",
        "+++ new.txt",
        "@@ -7,7 +7,7 @@",
        *[" line 6", " line 7", " line 8", "-line 9", "+new", " line 10", " line 11", " line 12"],
    ]


def test_a_line_that_moved_is_removed_and_added_and_nothing_else():
    before = "".join(f"line {i}\n" for i in range(20))
    after = before.replace("line 3\n", "") + "line 3\n"
    changed = [x for x in text_diff(before, after).splitlines()[2:] if x[0] in "+-"]
    assert changed == ["-line 3", "+line 3"]


def test_an_insertion_among_repeated_lines_is_small():
    changed = [x for x in text_diff("a\n" * 50, "a\n" * 51).splitlines()[2:] if x[0] in "+-"]
    assert changed == ["+a"]


def seconds(length: int) -> float:
    """A graph of which every fourth node goes and every fourth changes."""
    before = [f"%v{i} = relu(%v{i - 1}) : float32[4]" for i in range(length)]
    after = [
        line.replace("relu", "tanh") if i % 4 == 2 else line for i, line in enumerate(before) if i % 4 != 1
    ]
    started = time.process_time()
    text_diff("\n".join(before), "\n".join(after))
    return time.process_time() - started


def test_time_grows_little_more_than_linearly():
    assert min(seconds(16_000) for _ in range(3)) < 8 * min(seconds(4_000) for _ in range(3))
