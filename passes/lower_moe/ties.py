"""The choice of torch.topk among equal scores, in ONNX: what `torch_ties` does to one row, to all with ties at once.

    order[R, n] of the scores of R rows;  each round swaps, in all rows, the pairs that one partition swaps

The i-th score from the left that is not above the pivot and the i-th from the right that is not below it are swapped as
long as the one is left of the other, so that a partition is two cumulative sums and two permutations. A heap takes a
round for each score. Both are written in the text form of ONNX.
"""

from __future__ import annotations

from graphopt.passes.lower_moe.torch_ties import heaps_at_once, partitions


def can_differ(size: int, k: int) -> bool:
    """Whether torch.topk may choose others than the first of equals: not if all are chosen, of three at the most, nor
    the best one alone where it is found by going through the row."""
    return max(k, 3) < size and not (k == 1 and heaps_at_once(size, k))


def text_of(size: int, k: int, dtype: str) -> str:
    """A graph: from scores[..., size] (dtype float or double), the numbers[..., k + 1] that TopK chose and where the
    k-th is tied[..., 1] with the next, not nowhere, the numbers[..., k] that torch.topk chooses, the best first."""
    steps, state = [_START], ("order", "first", "last")
    if not heaps_at_once(size, k):
        steps.append(_partitions(size, k))
        state = "order_p", "first_p", "last_p"
    if heaps_at_once(size, k) or size - 3 > partitions(size):
        steps.append(_heap(size, k, *state))
        state = "order_h", "first_h", "last_h"
    head = f"ties ({dtype}[T, {size}] scores, int64[T, {k + 1}] numbers, bool[T, 1] tied) => (int64[T, {k}] chosen)"
    return "\n".join((head, "{", *_constants(size, k, dtype), *steps, _end(*state), "}"))


def first_text(k: int) -> str:
    """A graph: of the numbers[..., k + 1] that TopK chose the first k."""
    return f"""first (int64[T, {k + 1}] numbers) => (int64[T, {k}] chosen)
{{
  from = Constant <value = int64[1] {{0}}> ()
  to = Constant <value = int64[1] {{{k}}}> ()
  axis = Constant <value = int64[1] {{-1}}> ()
  chosen = Slice (numbers, from, to, axis)
}}"""


def _constants(size: int, k: int, dtype: str) -> list[str]:
    numbers = {"zero": 0, "one": 1, "two": 2, "three": 3, "size": size, "k": k, "end": size - 1, "rest": -1}
    places = ", ".join(map(str, range(size)))
    return [
        *(f"{name} = Constant <value = int64[1] {{{value}}}> ()" for name, value in numbers.items()),
        f"place = Constant <value = int64[1, {size}] {{{places}}}> ()",
        f"above = Constant <value = {dtype} {{inf}}> ()",
        f"below = Constant <value = {dtype} {{-inf}}> ()",
        "yes = Constant <value = bool {1}> ()",
    ]


_START = """
wide = Concat <axis = 0> (rest, size)
narrow = Concat <axis = 0> (rest, k)
flat_scores = Reshape (scores, wide)
flat_tied = Reshape (tied, rest)
first_numbers = Slice (numbers, zero, k, rest)
flat_numbers = Reshape (first_numbers, narrow)
s = Compress <axis = 0> (flat_scores, flat_tied)
found = NonZero (flat_tied)
rows = Transpose <perm = [1, 0]> (found)
shape = Shape (s)
order = Expand (place, shape)
first = Mul (rows, zero)
last = Add (first, size)
"""


def _end(order: str, first: str, last: str) -> str:
    """Before `first` all are chosen, from `last` on none; of those between, three at the most, the first of equals."""
    return f"""
in_order = GatherElements <axis = 1> (s, {order})
is_in = Less (place, {first})
is_out = GreaterOrEqual (place, {last})
in_or_between = Where (is_out, below, in_order)
keys = Where (is_in, above, in_or_between)
best_keys, best = TopK <axis = 1> (keys, k)
picked = GatherElements <axis = 1> ({order}, best)
picked_scores = GatherElements <axis = 1> (s, picked)
falling_scores, falling = TopK <axis = 1> (picked_scores, k)
sorted = GatherElements <axis = 1> (picked, falling)
flat_chosen = ScatterND (flat_numbers, rows, sorted)
given_shape = Shape (first_numbers)
chosen = Reshape (flat_chosen, given_shape)
"""


def _partitions(size: int, k: int) -> str:
    """While more than three are between `first` and `last`, at most so often as introselect does."""
    spare = ", ".join(map(str, range(size + 1, 2 * size + 1)))
    return f"""
most = Constant <value = int64 {{{partitions(size)}}}> ()
axis_1 = Constant <value = int64 {{1}}> ()
spare = Constant <value = int64[1, {size}] {{{spare}}}> ()
nothing = Concat <axis = 1> (order, order, first)
order_p, first_p, last_p = Loop <body = partition
  (int64 p_round, bool p_on, int64[R, {size}] o, int64[R, 1] f, int64[R, 1] l)
  => (bool p_more, int64[R, {size}] o_new, int64[R, 1] f_new, int64[R, 1] l_new)
{{{_PIVOT}{_swap("p", "f", "m")}{_PAIRS}
  goes_not = Not (goes_right)
  left_stays = And (from_left, goes_not)
  stops = Or (left_stays, goes_left)
  stops_number = Cast <to = 6> (stops)
  cut = ArgMax <axis = 1, keepdims = 1> (stops_number)
  is_right = Less (cut, k)
  is_left = Not (is_right)
  moves_first = And (open, is_right)
  moves_last = And (open, is_left)
  f_new = Where (moves_first, cut, f)
  l_new = Where (moves_last, cut, l)
  span_new = Sub (l_new, f_new)
  widest = ReduceMax <keepdims = 0> (span_new)
  p_more_one = Greater (widest, three)
  p_more = Squeeze (p_more_one)
}}> (most, yes, order, first, last)
"""


_PIVOT = """
  span = Sub (l, f)
  open = Greater (span, three)
  v = GatherElements <axis = 1> (s, o)
  f_next = Add (f, one)
  a = Min (f_next, end)
  half = Div (span, two)
  b = Add (f, half)
  c = Sub (l, one)
  at_a = GatherElements <axis = 1> (v, a)
  at_b = GatherElements <axis = 1> (v, b)
  at_c = GatherElements <axis = 1> (v, c)
  a_b = Greater (at_a, at_b)
  b_c = Greater (at_b, at_c)
  a_c = Greater (at_a, at_c)
  c_or_a = Where (a_c, c, a)
  falling_ab = Where (b_c, b, c_or_a)
  c_or_b = Where (b_c, c, b)
  rising_ab = Where (a_c, a, c_or_b)
  median_place = Where (a_b, falling_ab, rising_ab)
  m = Where (open, median_place, f)
  pivot = GatherElements <axis = 1> (v, m)"""
"""The median of three comes to `first`; rows that are done keep what they have there."""

_PAIRS = """
  w = GatherElements <axis = 1> (v, p_swapped)
  behind = Greater (place, f)
  before = Less (place, l)
  between = And (behind, before)
  inside = And (between, open)
  is_above = Greater (w, pivot)
  not_above = Not (is_above)
  is_below = Greater (pivot, w)
  not_below = Not (is_below)
  from_left = And (inside, not_above)
  from_right = And (inside, not_below)
  left_one = Cast <to = 7> (from_left)
  right_one = Cast <to = 7> (from_right)
  left_rank = CumSum (left_one, axis_1)
  right_rank = CumSum <reverse = 1> (right_one, axis_1)
  right_of = Sub (right_rank, right_one)
  left_of = Sub (left_rank, left_one)
  has_right = GreaterOrEqual (right_of, left_rank)
  has_left = GreaterOrEqual (left_of, right_rank)
  goes_right = And (from_left, has_right)
  goes_left = And (from_right, has_left)
  all_places = Expand (place, shape)
  left_slot = Where (from_left, left_rank, spare)
  right_slot = Where (from_right, right_rank, spare)
  left_places = ScatterElements <axis = 1> (nothing, left_slot, all_places)
  right_places = ScatterElements <axis = 1> (nothing, right_slot, all_places)
  right_mate = GatherElements <axis = 1> (right_places, left_rank)
  left_mate = GatherElements <axis = 1> (left_places, right_rank)
  left_mate_or_same = Where (goes_left, left_mate, place)
  source = Where (goes_right, right_mate, left_mate_or_same)
  o_swapped = GatherElements <axis = 1> (o, p_swapped)
  o_new = GatherElements <axis = 1> (o_swapped, source)"""
"""The i-th from the left and the i-th from the right change places as long as they have not met; places by rank stand
in a table, all that have no rank in slots of their own behind it."""


def _swap(prefix: str, one: str, other: str) -> str:
    """The places [R, n], those in the columns `one` and `other` exchanged."""
    return f"""
  {prefix}_is_one = Equal (place, {one})
  {prefix}_is_other = Equal (place, {other})
  {prefix}_other = Where ({prefix}_is_other, {one}, place)
  {prefix}_swapped_some = Where ({prefix}_is_one, {other}, {prefix}_other)
  {prefix}_swapped = Expand ({prefix}_swapped_some, shape)"""


def _heap(size: int, k: int, order: str, first: str, last: str) -> str:
    """Where more than three are between `first` and `last`: those before k as a heap, its least on top, in which each
    of the others that is better than that takes its place. A round makes one part of the heap, or looks at one."""
    levels = [_sink(level, size) for level in range(k.bit_length())]
    return f"""
h_span = Sub ({last}, {first})
stuck = Greater (h_span, three)
count = Sub (k, {first})
parents = Div (count, two)
others = Sub ({last}, k)
each_rounds = Add (parents, others)
no_rounds = Mul (parents, zero)
stuck_rounds = Where (stuck, each_rounds, no_rounds)
rounds = ReduceMax <keepdims = 0> (stuck_rounds)
order_h = Loop <body = heap (int64 h_round, bool h_on, int64[R, {size}] ho) => (bool h_more, int64[R, {size}] ho_new)
{{
  h_more = Identity (h_on)
  h_left = Sub (parents, h_round)
  hole_part = Sub (h_left, one)
  is_part = GreaterOrEqual (hole_part, zero)
  after = Sub (k, h_left)
  at_last = Min (after, end)
  other_place = Max (at_last, zero)
  is_there = Less (after, {last})
  h_v = GatherElements <axis = 1> (s, ho)
  at_top = GatherElements <axis = 1> (h_v, {first})
  at_other = GatherElements <axis = 1> (h_v, other_place)
  is_better = Greater (at_other, at_top)
  no_part = Not (is_part)
  is_one = And (no_part, is_there)
  comes_in = And (is_one, is_better)
  enters = And (comes_in, stuck)
  in_place = Where (enters, other_place, {first})
{_swap("h", first, "in_place")}
  h_order_0 = GatherElements <axis = 1> (ho, h_swapped)
  makes = And (is_part, stuck)
  sinks_0 = Or (makes, enters)
  hole_0 = Max (hole_part, zero)
{"".join(levels).replace("FIRST", first)}
  ho_new = Identity (h_order_{len(levels)})
}}> (rounds, yes, {order})
first_h = Where (stuck, k, {first})
last_h = Where (stuck, k, {last})
"""


def _sink(level: int, size: int) -> str:
    """One step of what is at the hole: the worse of the children, of equals the right one, comes up unless it is
    better."""
    p, next_ = f"s{level}", level + 1
    return f"""
  {p}_v = GatherElements <axis = 1> (s, h_order_{level})
  {p}_double = Mul (hole_{level}, two)
  {p}_left = Add ({p}_double, one)
  {p}_right = Add ({p}_double, two)
  {p}_any = Less ({p}_left, count)
  {p}_both = Less ({p}_right, count)
  {p}_left_far = Add ({p}_left, FIRST)
  {p}_right_far = Add ({p}_right, FIRST)
  {p}_left_place = Min ({p}_left_far, end)
  {p}_right_place = Min ({p}_right_far, end)
  {p}_hole_far = Add (hole_{level}, FIRST)
  {p}_hole_place = Min ({p}_hole_far, end)
  {p}_at_left = GatherElements <axis = 1> ({p}_v, {p}_left_place)
  {p}_at_right = GatherElements <axis = 1> ({p}_v, {p}_right_place)
  {p}_at_hole = GatherElements <axis = 1> ({p}_v, {p}_hole_place)
  {p}_right_better = Greater ({p}_at_right, {p}_at_left)
  {p}_right_worse = Not ({p}_right_better)
  {p}_is_right = And ({p}_both, {p}_right_worse)
  {p}_child = Where ({p}_is_right, {p}_right, {p}_left)
  {p}_child_place = Where ({p}_is_right, {p}_right_place, {p}_left_place)
  {p}_at_child = Where ({p}_is_right, {p}_at_right, {p}_at_left)
  {p}_better = Greater ({p}_at_child, {p}_at_hole)
  {p}_not_better = Not ({p}_better)
  {p}_comes = And ({p}_any, {p}_not_better)
  sinks_{next_} = And (sinks_{level}, {p}_comes)
  {p}_to = Where (sinks_{next_}, {p}_child_place, {p}_hole_place)
{_swap(p, f"{p}_hole_place", f"{p}_to")}
  h_order_{next_} = GatherElements <axis = 1> (h_order_{level}, {p}_swapped)
  hole_{next_} = Where (sinks_{next_}, {p}_child, hole_{level})"""
