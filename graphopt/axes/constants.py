"""What channels hold that is the same for every input: a filter of zeros leaves its bias, and what is computed of
constants is constant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graphopt.axes.analysis import Axes
from graphopt.axes.free import MOVES
from graphopt.axes.terms import Axis
from graphopt.ir.graph import Call, Literal, Node, Value
from graphopt.ir.ops import ELEMENTWISE, OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, TensorRef, numpy_dtype

Numbers = npt.NDArray[np.float64]
"""One for each index of an axis; NaN where nothing is known."""

ALIKE = ELEMENTWISE - {"cast", "is_nan", "logical_and", "logical_not", "logical_or", "logical_xor", "mod"}
"""Ops that treat every element alike and compute numbers of numbers; truth values are 0 and 1."""
SCALED = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
"""Norms that multiply by their second operand and add their third."""
PRODUCTS = {"linear": -1, "matmul": -1, "conv": 1}
"""Products with a weight, and the dimension of the result that the weight makes."""


class Constants:
    """The numbers that values hold at the indices of one leaf, whatever the inputs are, as long as they are finite."""

    def __init__(self, axes: Axes, leaf: Axis, nodes: Sequence[Node]) -> None:
        """`nodes` are those that the leaf touches, in topological order."""
        assert isinstance(leaf.size, int)
        self._axes, self._leaf, self._size = axes, leaf, leaf.size
        self._found: dict[Value, Numbers] = {}
        for node in nodes:
            call = axes.graph.call(node)
            if not isinstance(call, Call):
                continue
            for output in call.outputs:
                if output is not None and self.dim(output, node) is not None:
                    self._found[output] = self._representable(output, self._made(call, output))

    def numbers(self, value: Value | None, node: Node) -> Numbers:
        """What `value` holds at each index, as `node` reads it."""
        if isinstance(value, Literal):
            return np.full(self._size, float(value.value))
        data = None if value is None else self._axes.graph.constant(value)
        if data is None:
            return self._found.get(value, self._unknown()) if value is not None else self._unknown()
        if data.size == 1:
            return np.full(self._size, float(data.numpy().reshape(-1)[0]))
        rows = self.rows(value, node)
        if rows is None or not rows.size:
            return self._unknown()
        return np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan)

    def dim(self, value: Value, node: Node) -> int | None:
        """The one dimension of `value` in which the leaf occurs, once; None if there is no such."""
        dims = self._axes.dims_or_none(value, node) or ()
        found = [i for i, term in enumerate(dims) for leaf in self._axes.space.leaves(term) if leaf is self._leaf]
        return found[0] if len(found) == 1 else None

    def places(self, value: Value, node: Node) -> npt.NDArray[np.int64]:
        """For each place in that dimension the index that it belongs to, -1 if to none."""
        dim = self.dim(value, node)
        assert dim is not None
        return self._axes.space.places(self._axes.dims(value, node)[dim], self._leaf)

    def rows(self, value: Value | None, node: Node) -> Numbers | None:
        """[size, n]: the elements of a stored tensor by the index that they belong to; None if that is not one."""
        data = _data(self._axes, value)
        dim = None if value is None or data is None else self.dim(value, node)
        if value is None or data is None or dim is None:
            return None
        places = self.places(value, node)
        order = np.argsort(places, kind="stable")[int((places < 0).sum()) :]
        array = np.moveaxis(data.numpy().astype(np.float64), dim, 0)
        return array[order].reshape(self._size, -1)

    def _unknown(self) -> Numbers:
        return np.full(self._size, np.nan)

    def _made(self, call: Call, output: Value) -> Numbers:
        if call.op in ALIKE or (call.op == "cast" and call.fields["dtype"] in FLOATS):
            return self._computed(call, [None if o is None else self.numbers(o, call.node) for o in call.operands])
        if call.op in MOVES:
            having = [o for o in call.operands if o is not None and self._has(o, call.node)]
            return self.numbers(having[0], call.node) if len(having) == 1 else self._unknown()
        if call.op in SCALED:
            return self._normed(call)
        if call.op in PRODUCTS and self.dim(output, call.node) == PRODUCTS[call.op] % len(self._axes.dims(output)):
            return self._product(call)
        return self._unknown()

    def _representable(self, value: Value, found: Numbers) -> Numbers:
        """Without what is infinite in the dtype of `value`: what is computed of that is another number natively."""
        type_ = self._axes.graph.type(value)
        if type_ is None or type_.dtype not in FLOATS:
            return found
        with np.errstate(over="ignore"):
            return np.where(np.isfinite(found.astype(numpy_dtype(type_.dtype))), found, np.nan)

    def _has(self, value: Value, node: Node) -> bool:
        dims = self._axes.dims_or_none(value, node) or ()
        return any(self._leaf in self._axes.space.leaves(term) for term in dims)

    def _computed(self, call: Call, given: Sequence[Numbers | None]) -> Numbers:
        known = np.all([np.isfinite(x) for x in given if x is not None], axis=0)
        safe = [None if x is None else np.where(known, x, 1.0) for x in given]
        if call.op == "where" and safe[0] is not None:
            safe[0] = safe[0] != 0
        with np.errstate(all="ignore"):
            made = np.asarray(OPS[call.op].meaning(Float64(), *safe, **call.fields), np.float64)
        found = np.where(known & np.isfinite(made), made, np.nan)
        if call.op == "mul":
            found[np.any([x == 0 for x in given if x is not None], axis=0)] = 0.0
        return found

    def _normed(self, call: Call) -> Numbers:
        """A scale of zero leaves the shift; a batch norm with known statistics computes with each channel alone."""
        x, scale, shift, *statistics = (None if o is None else self.numbers(o, call.node) for o in call.operands)
        found = self._unknown()
        if call.op == "batch_norm" and not call.fields["training"] and x is not None:
            given = [o for o in (x, scale, shift, *statistics) if o is not None]
            known = np.all([np.isfinite(o) for o in given], axis=0)
            safe = [None if o is None else np.where(known, o, 1.0) for o in (scale, shift, *statistics)]
            made = OPS["batch_norm"].meaning(Float64(), np.where(known, x, 1.0)[None], *safe, **call.fields)
            found = np.where(known, np.asarray(made)[0], np.nan)
        alone = np.zeros(self._size) if shift is None else shift
        return found if scale is None else np.where(scale == 0, alone, found)

    def _product(self, call: Call) -> Numbers:
        """Rows of zeros leave the bias."""
        weight = self.rows(call.operands[1], call.node)
        bias = call.operands[2] if len(call.operands) > 2 else None
        if weight is None:
            return self._unknown()
        alone = np.zeros(self._size) if bias is None else self.numbers(bias, call.node)
        return np.where(weight.any(axis=1), np.nan, alone)


def _data(axes: Axes, value: Value | None) -> TensorRef | None:
    return None if value is None or isinstance(value, Literal) else axes.graph.constant(value)
