"""Meanings of ONNX nodes that the vocabulary does not say: sequences, the last of several greatest, dropout of nothing.

A sequence is a tuple of tensors. How many it has must be known, and so must every place that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.onnx.dtypes import NAMES
from graphopt.verify.algebra.tensor import FieldTensor, Undecided

if TYPE_CHECKING:
    from graphopt.verify.algebra.running import Running

Results = Sequence[Any] | None


def own_meaning(run: Running, graph: Any, node: Any) -> Results:
    """The results of a node that is spoken of here; None for any other. Raises Undecided where numbers are needed that
    are not known."""
    meaning = _KINDS.get(node.op_type) if node.domain == "" else None
    return None if meaning is None else meaning(run, graph, node)


def _of(node: Any, name: str, otherwise: int) -> int:
    found = node.attributes.get(name)
    return otherwise if found is None else int(found.value)


def _operand(run: Running, node: Any, i: int) -> Any:
    """One of the operands, None if it is absent."""
    value = node.inputs[i] if i < len(node.inputs) else None
    return None if value is None else run.known.env[value]


def _integers(run: Running, node: Any, i: int) -> Any:
    found = _operand(run, node, i)
    if isinstance(found, FieldTensor):
        raise Undecided("a place or a size depends on data")
    return found


# ---- single nodes ----------------------------------------------------------------------------------------------------


def _last_of_equals(run: Running, graph: Any, node: Any) -> Results:
    """ArgMax and ArgMin with `select_last_index`: the first from the other end."""
    if not _of(node, "select_last_index", 0) or node.inputs[0] in run.known.tokens:
        return None
    x = _operand(run, node, 0)
    axis = _of(node, "axis", 0) % np.ndim(x)
    first = run.domain.arg_max if node.op_type == "ArgMax" else run.domain.arg_min
    place = np.shape(x)[axis] - 1 - first(np.flip(x, axis), axis)
    return [place if _of(node, "keepdims", 1) else np.squeeze(place, axis)]


def _dropout(run: Running, graph: Any, node: Any) -> Results:
    """Dropout that drops nothing, since it is not trained or its ratio is 0: the mask is all true."""
    ratio, training = (run.constant(v) if v is not None else None for v in [*node.inputs, None, None][1:3])
    untrained = len(node.inputs) < 3 or node.inputs[2] is None
    idle = untrained or (training is not None and not training.numpy().any())
    if graph.opset < 12 or not (idle or (ratio is not None and not ratio.numpy().any())):
        return None
    x = _operand(run, node, 0)
    return [x, np.ones(np.shape(x), bool)][: len(node.outputs)]


# ---- sequences -------------------------------------------------------------------------------------------------------


def _sequence(run: Running, node: Any, items: Sequence[Any], dtype: str) -> Results:
    run.known.types[node.outputs[0]] = TensorType(dtype, None)
    return [tuple(items)]


def _items(run: Running, node: Any) -> tuple[tuple[Any, ...], str]:
    found = _operand(run, node, 0)
    if not isinstance(found, tuple):
        raise Undecided("of its sequence nothing is known")
    return found, _dtype(run, node.inputs[0])


def _dtype(run: Running, value: Value) -> str:
    return run.known.types[value].dtype


def _tensor(run: Running, node: Any, result: Any, dtype: str) -> Results:
    run.known.types[node.outputs[0]] = TensorType(dtype, tuple(np.shape(result)))
    return [result]


def _place(run: Running, node: Any, i: int, count: int, otherwise: int) -> int:
    """A place in a sequence, from its end if it is negative."""
    found = _integers(run, node, i)
    place = otherwise if found is None else int(np.reshape(found, ()))
    if not -count <= place < count:
        raise Undecided(f"it asks for item {place} of a sequence of {count}")
    return place % count


def _empty(run: Running, graph: Any, node: Any) -> Results:
    return _sequence(run, node, (), NAMES[_of(node, "dtype", 1)])


def _construct(run: Running, graph: Any, node: Any) -> Results:
    return _sequence(run, node, [run.known.env[v] for v in node.inputs], _dtype(run, node.inputs[0]))


def _insert(run: Running, graph: Any, node: Any) -> Results:
    items, dtype = _items(run, node)
    given = _integers(run, node, 2)
    # Behind the last one is the place that the number of them names; -1 is the one before the last.
    behind = given is None or int(np.reshape(given, ())) == len(items)
    place = len(items) if behind else _place(run, node, 2, len(items), 0)
    return _sequence(run, node, (*items[:place], _operand(run, node, 1), *items[place:]), dtype)


def _erase(run: Running, graph: Any, node: Any) -> Results:
    items, dtype = _items(run, node)
    place = _place(run, node, 1, len(items), -1)
    return _sequence(run, node, (*items[:place], *items[place + 1 :]), dtype)


def _at(run: Running, graph: Any, node: Any) -> Results:
    items, dtype = _items(run, node)
    return _tensor(run, node, items[_place(run, node, 1, len(items), 0)], dtype)


def _length(run: Running, graph: Any, node: Any) -> Results:
    return _tensor(run, node, np.asarray(len(_items(run, node)[0]), np.int64), "int64")


def _concat(run: Running, graph: Any, node: Any) -> Results:
    items, dtype = _items(run, node)
    if not items:
        raise Undecided("it concatenates nothing")
    together: Callable[..., Any] = np.stack if _of(node, "new_axis", 0) else np.concatenate
    return _tensor(run, node, together(items, axis=int(node.attributes["axis"].value)), dtype)


def _split(run: Running, graph: Any, node: Any) -> Results:
    x, parts = _operand(run, node, 0), _integers(run, node, 1)
    axis = _of(node, "axis", 0) % np.ndim(x)
    size = int(np.shape(x)[axis])
    if parts is None or np.ndim(parts) == 0:
        step = 1 if parts is None else int(parts)
        ends = [*range(step, size, step), size] if step > 0 else []
    else:
        ends = [int(n) for n in np.cumsum(parts)]
    if not ends or ends[-1] != size or any(b < a for a, b in zip([0, *ends[:-1]], ends, strict=True)):
        raise Undecided(f"it splits {size} into other parts")
    front = (slice(None),) * axis
    items = [x[(*front, slice(a, b))] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    if parts is None and not _of(node, "keepdims", 1):
        items = [np.squeeze(item, axis) for item in items]
    return _sequence(run, node, items, _dtype(run, node.inputs[0]))


def _same(run: Running, graph: Any, node: Any) -> Results:
    """Of a sequence; tensors are the vocabulary's."""
    found = _operand(run, node, 0)
    return _sequence(run, node, found, _dtype(run, node.inputs[0])) if isinstance(found, tuple) else None


_KINDS: dict[str, Callable[[Any, Any, Any], Results]] = {
    "ArgMax": _last_of_equals,
    "ArgMin": _last_of_equals,
    "Dropout": _dropout,
    "SequenceEmpty": _empty,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "SplitToSequence": _split,
    "Identity": _same,
}
