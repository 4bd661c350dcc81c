"""Running fragments natively: onnxruntime for ONNX, torch for FX, the ops' own meanings for scratch graphs.

A fragment whose low-precision kernels the runtime lacks is run in float32 instead; the caller is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.rowwise import evaluated
from graphopt.ir.scratch import ScratchGraph, ScratchValue, float64_leaf
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.verify.fragment import Fragment, Side

Runner = Callable[[Sequence[Array]], list[Array]]


class CannotRun(Exception):
    """The runtime refuses the fragment; carries its reason."""


def side_runner(fragment: Fragment, side: Side, *, wide: bool = False) -> Runner:
    """A function from the fragment's inputs to the outputs of one side.

    Outputs that are inputs or constants are passed through, so that no runtime needs to accept a graph without
    nodes. Declared weights are fed beside the inputs. With `wide`, low-precision floats are float32 throughout. Raises
    CannotRun, at once or when called.
    """
    graph = fragment.graph
    plan: list[tuple[str, Any]] = []
    computed: list[Value] = []
    for value in side.outputs:
        if value in fragment.inputs:
            plan.append(("input", fragment.inputs.index(value)))
        elif (data := graph.constant(value)) is not None:
            plan.append(("constant", data))
        else:
            plan.append(("computed", len(computed)))
            computed.append(value)
    fed = [*fragment.inputs, *side.declared]
    weights = [_declared(ref, wide=wide) for ref in side.declared.values()]
    native = native_runner(graph, side.nodes, fed, computed, wide=wide) if computed else None

    def run(feeds: Sequence[Array]) -> list[Array]:
        results = native([*feeds, *weights]) if native is not None else []
        sources = {"input": feeds, "computed": results}
        return [what.numpy() if source == "constant" else sources[source][what] for source, what in plan]

    run.note = getattr(native, "note", None)  # type: ignore[attr-defined]
    return run


def _declared(ref: TensorRef, *, wide: bool) -> Array:
    """A declared weight as it would be stored; in float32, with `wide`, also what is computed of narrower numbers."""
    return evaluated(ref, np.dtype(np.float32)) if wide and ref.dtype in ("float16", "bfloat16") else ref.numpy()


def native_runner(
    graph: Graph, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value], *, wide: bool = False
) -> Runner:
    """A runner for `nodes` cut out of `graph`, with the kernels of its storage's runtime."""
    try:
        part = graph.cut(nodes, inputs, outputs)
    except Exception as error:
        raise CannotRun(f"the fragment cannot be cut out: {error}") from error
    match part.storage:
        case "onnx":
            run = onnx_runner(part, wide=wide)
        case "fx":
            run = _fx_runner(part, wide=wide)
        case _:
            return lambda feeds: _guarded(lambda f: evaluate(part, f), feeds)
    return (lambda feeds: run(_to_float32(feeds))) if wide else run


def _fx_runner(part: Graph, *, wide: bool) -> Runner:
    if wide:
        from graphopt.ir.fx.widen import widen_to_float32

        part = widen_to_float32(part)  # type: ignore[arg-type]
    return lambda feeds: _guarded(part.run, feeds)  # type: ignore[attr-defined]


def _to_float32(feeds: Sequence[Array]) -> list[Array]:
    return [f.astype(np.float32) if f.dtype.name in ("float16", "bfloat16") else f for f in feeds]


def evaluate(
    part: Graph,
    feeds: Sequence[Array],
    observe: Callable[[ScratchValue, Any], None] | None = None,
    leaf: Callable[[TensorRef], Array] = float64_leaf,
) -> list[Array]:
    """A scratch graph in float64 by the meanings of its ops; nothing is rounded at casts between floats. `observe` is
    told every value that is computed; `leaf` gives the constants."""
    from graphopt.ir.ops.domain import Float64

    assert isinstance(part, ScratchGraph)
    wide = [f.astype(np.float64) if f.dtype.name in FLOATS else f for f in feeds]
    with np.errstate(all="ignore"):
        return [np.asarray(r) for r in part.evaluate(wide, Float64(), leaf, observe)]


def onnx_runner(part: Graph, *, wide: bool = False) -> Runner:
    """An onnxruntime session without optimisations, one thread. `part` is the runner's from now on.

    Where the runtime has no kernel for a low precision, or its Python interface cannot take it (bfloat16), the
    fragment runs in float32 and its results are rounded back; the runner's `note` says so.
    """
    from graphopt.verify.division import guarded
    from graphopt.verify.endless import bound_loops

    fed = _feed_large_constants(part)
    model = to_proto(part)
    model = guarded(model) or model
    bound_loops(model)
    _forget_sizes(model)
    names = [i.name for i in model.graph.input]
    if wide:
        return _with_constants(_session_runner(_session(_widened(model)[0]), names), _to_float32(fed))
    try:
        if _has_type(model, ("BFLOAT16",)):
            raise CannotRun("onnxruntime takes no bfloat16 from numpy")
        return _with_constants(_session_runner(_session(model.SerializeToString()), names), fed)
    except CannotRun as error:
        if not _has_type(model, ("BFLOAT16", "FLOAT16")):
            raise
        return _with_constants(_rounding_runner(model, names, error), _to_float32(fed))


LARGE = 1 << 20
"""Bytes from which a constant is an input of the session: stored in the model it would be copied four times."""


def _feed_large_constants(part: Graph) -> list[Array]:
    """Let the large constants of `part` be its last inputs; returns what they are."""
    graph = part.shared.model.graph  # type: ignore[attr-defined]
    fed = []
    for name, value in list(graph.initializers.items()):
        data = part.constant(value)
        if data is not None and data.nbytes >= LARGE and data.dtype in FLOATS:
            fed.append(np.asarray(data.numpy(), order="C"))
            graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
    return fed


def _with_constants(run: Runner, constants: Sequence[Array]) -> Runner:
    if not constants:
        return run

    def run_with(feeds: Sequence[Array]) -> list[Array]:
        return run([*feeds, *constants])

    run_with.note = getattr(run, "note", None)  # type: ignore[attr-defined]
    return run_with


def _session_runner(session: Any, names: Sequence[str]) -> Runner:
    return lambda feeds: _guarded(lambda f: _run_session(session, names, f), feeds)


def _widened(model: Any) -> tuple[bytes, list[Any]]:
    from graphopt.ir.onnx.widen import widen_to_float32

    wide, dtypes = widen_to_float32(model)
    return wide.SerializeToString(), dtypes


def _rounding_runner(model: Any, names: Sequence[str], cause: CannotRun) -> Runner:
    wide, dtypes = _widened(model)
    try:
        session = _session(wide)
    except CannotRun:
        raise cause from None

    def run(feeds: Sequence[Array]) -> list[Array]:
        results = _guarded(lambda f: _run_session(session, names, f), _to_float32(feeds))
        return [r if d is None else r.astype(d) for r, d in zip(results, dtypes, strict=True)]

    run.note = "run in float32: the runtime cannot run its precision"  # type: ignore[attr-defined]
    return run


def model_runner(model: Model, *, optimised: bool = False) -> Runner:
    """A whole model natively, from the inputs of its main region in order; `optimised` turns the runtime's own
    optimisations on.

    An output that is a sequence or a map is one array of objects; `arrays_in` gives the arrays in it.
    """
    main = model.main
    if model.storage == "fx":
        return lambda feeds: _guarded(main.run, feeds)  # type: ignore[attr-defined]
    from graphopt.verify.division import may_divide

    names = [main.name(v) for v in main.inputs()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        if may_divide(model):
            guard_file(path)
        session = _session(str(path), optimised=optimised)

    def run(feeds: Sequence[Array]) -> list[Array]:
        return [_one_array(result) for result in _results(session, names, feeds)]

    return lambda feeds: _guarded(run, feeds)


def _one_array(result: Any) -> Array:
    if not isinstance(result, list):
        return np.asarray(result)
    held = np.empty(len(result), object)
    for i, element in enumerate(result):  # numpy would make one array of arrays of equal shapes.
        held[i] = element
    return held


def arrays_in(result: Any, *, keys: bool = True) -> Iterator[Array]:
    """The arrays in an output of `model_runner`: itself if it is a tensor, those in each element of a sequence, `keys`
    and values of a map."""
    if isinstance(result, dict):
        yield from (np.asarray(list(part)) for part in ((result, result.values()) if keys else (result.values(),)))
    elif isinstance(result, list) or (result.dtype == object and any(isinstance(e, _HOLDERS) for e in result.flat)):
        for element in result if isinstance(result, list) else result.flat:
            yield from arrays_in(element, keys=keys)
    else:
        yield result


_HOLDERS = (dict, list, np.ndarray)


def guard_file(path: Path) -> None:
    """Let the model in this file fail where a division of integers would end the process."""
    import onnx

    from graphopt.verify.division import guarded

    if (model := guarded(onnx.load(path, load_external_data=False))) is not None:
        path.write_bytes(model.SerializeToString())


def to_proto(part: Graph) -> Any:
    """The onnx.ModelProto of a fragment of the ONNX storage; deferred weights are computed now."""
    import onnx_ir

    return onnx_ir.to_proto(part.shared.model)  # type: ignore[attr-defined]


def _forget_sizes(model: Any) -> None:
    """Keep ranks only: onnxruntime refuses inputs of other sizes than declared, and fragments run on smaller
    ones."""
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in info.type.tensor_type.shape.dim:
            dim.Clear()


def _guarded(run: Callable[[Sequence[Array]], list[Array]], feeds: Sequence[Array]) -> list[Array]:
    try:
        return run(feeds)
    except Exception as error:
        raise CannotRun(_reason(error)) from error


def _reason(error: Exception) -> str:
    from graphopt.verify import division, endless

    for guard, reason in ((division.GUARD, division.REASON), (endless.GUARD, endless.REASON)):
        if guard in str(error):
            return reason
    return str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__


def _session(model: bytes | str, *, optimised: bool = False) -> Any:
    """A single-threaded session over serialised bytes or a path."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CannotRun(str(error).strip().splitlines()[0][:300]) from error


def _run_session(session: Any, names: Sequence[str], feeds: Sequence[Array]) -> list[Array]:
    return [np.asarray(result) for result in _results(session, names, feeds)]


def _results(session: Any, names: Sequence[str], feeds: Sequence[Array]) -> list[Any]:
    wanted = {i.name for i in session.get_inputs()}
    return list(session.run(None, {n: f for n, f in zip(names, feeds, strict=True) if n in wanted}))


def _has_type(model: Any, names: Sequence[str]) -> bool:
    """Whether inputs, outputs, annotated values or weights of `model` have one of these element types."""
    import onnx

    wanted = {onnx.TensorProto.DataType.Value(n) for n in names}
    graph = model.graph
    types = {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]}
    return bool(wanted & (types | {t.data_type for t in graph.initializer}))


def note_of(runner: Runner) -> tuple[str, ...]:
    """What a runner wants to be said about its results."""
    note = getattr(runner, "note", None)
    return () if note is None else (note,)
