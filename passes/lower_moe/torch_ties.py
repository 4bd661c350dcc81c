"""Which experts torch.topk chooses among equal scores on a CPU.

torch (aten/native/TopKImpl.h) hands the C++ library a row of pairs of a score and its number, and an order that looks
at scores alone: std::partial_sort if k * 64 <= n, std::nth_element otherwise. What these do with equals is a matter of
the library, libstdc++ in torch's builds for Linux: introselect, with the median of three as pivot and the partition of
Hoare; after 2 log2(n) partitions a heap (bits/stl_algo.h, bits/stl_heap.h).

    choice[k] of scores[n];  scores above the k-th are in it whatever is done, those equal to it some of them
"""

from __future__ import annotations

from collections.abc import Sequence


def heaps_at_once(size: int, k: int) -> bool:
    """Whether torch keeps the k best of `size` scores in a heap, without any partition."""
    return k * 64 <= size


def partitions(size: int) -> int:
    """After how many partitions introselect keeps the rest in a heap."""
    return 2 * (size.bit_length() - 1)


def chosen(scores: Sequence[float], k: int) -> set[int]:
    """The numbers of the k best of `scores`, none of which is NaN, as torch.topk chooses them."""
    row = list(enumerate(scores))
    first, last = 0, len(row)
    if heaps_at_once(last, k):
        _select_by_heap(row, first, k, last)
        return {number for number, _ in row[:k]}
    for _ in range(partitions(last)):
        if last - first <= 3:
            break
        cut = _partitioned(row, first, last)
        first, last = (cut, last) if cut <= k - 1 else (first, cut)
    if last - first > 3:
        _select_by_heap(row, first, k, last)
    else:
        row[first:last] = sorted(row[first:last], key=lambda pair: -pair[1])  # stable, as insertion is
    return {number for number, _ in row[:k]}


Row = list[tuple[int, float]]


def _partitioned(row: Row, first: int, last: int) -> int:
    """std::__unguarded_partition_pivot: no score before the place returned is below any from there on."""
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    if row[a][1] > row[b][1]:
        middle = b if row[b][1] > row[c][1] else c if row[a][1] > row[c][1] else a
    else:
        middle = a if row[a][1] > row[c][1] else c if row[b][1] > row[c][1] else b
    row[first], row[middle] = row[middle], row[first]
    pivot, left, right = row[first][1], first + 1, last
    while True:
        while row[left][1] > pivot:
            left += 1
        right -= 1
        while pivot > row[right][1]:
            right -= 1
        if left >= right:
            return left
        row[left], row[right] = row[right], row[left]
        left += 1


def _select_by_heap(row: Row, first: int, middle: int, last: int) -> None:
    """std::__heap_select: the best of [first, last) come before `middle`."""
    size = middle - first
    for hole in range(size // 2 - 1, -1, -1):
        _sift(row, first, hole, size)
    for place in range(middle, last):
        if row[place][1] > row[first][1]:
            row[place], row[first] = row[first], row[place]
            _sift(row, first, 0, size)


def _sift(row: Row, first: int, hole: int, size: int) -> None:
    """The pair at `hole` sinks below all that are not better; of equal children the right one comes up."""
    while (child := 2 * hole + 2) <= size:
        if child == size or row[first + child][1] > row[first + child - 1][1]:
            child -= 1
        if row[first + child][1] > row[first + hole][1]:
            return
        row[first + child], row[first + hole] = row[first + hole], row[first + child]
        hole = child
