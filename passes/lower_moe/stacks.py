"""Weights of all experts in one tensor, the experts along axis 0."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Call, Graph, Value
from graphopt.ir.weights import Array, TensorRef

UNCHANGED = frozenset({"reshape", "identity", "cast", "unsqueeze", "squeeze"})
"""Ops that leave numbers what they are, where those are small integers."""


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
    """Whether `ids` are certainly indices of `experts` experts: what a selection of the best of so many found."""
    value: Value | None = ids
    while value is not None:
        node = graph.producer(value)
        if node is None:
            return False
        call = graph.call(node)
        if isinstance(call, Call) and call.op in UNCHANGED:
            value = call.operands[0]
            continue
        raw = graph.raw_call(node)
        if graph.raw_name(node) not in ("aten.topk.default", "ai.onnx::TopK") or value != raw.outputs[1]:
            return False
        scores = graph.type(raw.operands[0])
        axis = int(raw.fields.get("dim", raw.fields.get("axis", -1)))
        return scores is not None and bool(scores.shape) and scores.shape[axis] == experts  # type: ignore[index]
    return False
