"""Names of what one side of a fragment computes, equal for equal expressions: so that no mutant counts twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.ir.graph import Value
from graphopt.ir.weights import Deferred, TensorRef
from graphopt.verify.algebra.sides import spelled
from graphopt.verify.fragment import Fragment, Side

COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or",
                         "logical_xor"})  # fmt: skip


class Namer:
    """Names expressions by what they are made of: ops, fields, inputs by place, constants by their numbers.

    Nodes that no output needs and identities do not count, nor does the order of operands that may be swapped.
    """

    def __init__(self) -> None:
        self._digests: dict[object, tuple[TensorRef, str]] = {}
        """Those of stored tensors, which stay alive so that no other gets their identities."""

    def name(self, fragment: Fragment, side: Side) -> str:
        names: dict[Value | None, str] = {v: f"input {i}" for i, v in enumerate(fragment.inputs)}
        names[None] = "absent"

        def of(value: Value | None) -> str:
            if value not in names:
                data = fragment.graph.constant(value)
                assert data is not None
                names[value] = self._constant(data)
            return names[value]

        for node in side.nodes:
            call = fragment.graph.raw_call(node)
            made = _made(call.op, call.fields, [of(o) for o in call.operands])
            for i, output in enumerate(call.outputs):
                names[output] = of(call.operands[0]) if call.op == "identity" else f"{made} {i}"
        return _hash(*(of(o) for o in side.outputs))

    def _constant(self, data: TensorRef) -> str:
        if isinstance(data, Deferred):
            return _made(data.op, data.fields, [self._constant(o) for o in data.operands])
        if data.identity not in self._digests:
            array = data.numpy()
            said = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
            said.update(array.tobytes())
            self._digests[data.identity] = data, said.hexdigest()
        return self._digests[data.identity][1]


def _made(op: str, fields: Mapping[str, Any], operands: Sequence[str]) -> str:
    return _hash(op, spelled(fields), *(sorted(operands) if op in COMMUTATIVE else operands))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
