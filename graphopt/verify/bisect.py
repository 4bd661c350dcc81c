"""Finding the application that breaks a model: binary search over how many applications are let through.

Application ids are stable, so running the pipeline again with a limit replays exactly the first k of them.
"""

from __future__ import annotations

from collections.abc import Callable


def first_bad(total: int, is_good: Callable[[int], bool]) -> int | None:
    """The smallest k in 1..total such that `is_good(k)` is False, given that 0 applications are good.

    Assumes that a bad application stays visible when more follow; returns None if all of `total` are good. Calls
    `is_good` about log2(total) times.
    """
    if total == 0 or is_good(total):
        return None
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return bad
