"""Weights of all experts in one tensor, the experts along axis 0."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Call, Graph, Value
from graphopt.ir.weights import Array, TensorRef
from graphopt.passes.value_ranges import value_range


@dataclass(frozen=True)
class Stack:
    """Constant `data`, of which `perm` is a view; its axis 0 counts the experts."""

    data: TensorRef
    perm: tuple[int, ...]

    @property
    def experts(self) -> int:
        return self.data.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[axis] for axis in self.perm)

    def of(self, expert: int, *, transposed: bool = False) -> TensorRef:
        """The weight of one expert, without the axis of experts; a matrix `transposed` if that is asked for."""
        perm = [axis - 1 for axis in self.perm[1:]]
        return ExpertRef(self.data, expert, tuple(reversed(perm) if transposed else perm))


class ExpertRef(TensorRef):
    """The slice of one expert of a stack, its axes permuted; read when somebody needs the numbers."""

    def __init__(self, data: TensorRef, expert: int, perm: tuple[int, ...]) -> None:
        self._data = data
        self._expert = expert
        self._perm = perm
        self.dtype = data.dtype
        self.shape = tuple(data.shape[1:][axis] for axis in perm)

    def numpy(self) -> Array:
        found: Array = self._data.rows(self._expert, self._expert + 1)[0].transpose(self._perm)
        return found


def stack_of(graph: Graph, value: Value | None) -> Stack | None:
    """`value` as a stack: a constant of two axes or more, or transpositions of one that leave axis 0 where it is."""
    perms: list[tuple[int, ...]] = []
    while value is not None and (data := graph.constant(value)) is None:
        node = graph.producer(value)
        call = None if node is None else graph.call(node)
        if not isinstance(call, Call) or call.op != "transpose" or call.fields["perm"][0] != 0:
            return None
        perms.append(call.fields["perm"])
        value = call.operands[0]
    if value is None or data is None or data.ndim < 2:
        return None
    perm = tuple(range(data.ndim))
    for step in reversed(perms):
        perm = tuple(perm[axis] for axis in step)
    return Stack(data, perm)


def are_experts(graph: Graph, ids: Value, experts: int) -> bool:
    """Whether `ids` are certainly numbers of `experts` experts, because of how they are computed: the places of the
    best scores among so many, say."""
    found = value_range(graph, ids)
    return found is not None and found[0] >= 0 and found[1] <= experts - 1
