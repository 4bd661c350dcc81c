"""Running fragments natively: onnxruntime for ONNX, torch for FX, the ops' own meanings for scratch graphs.

A fragment whose low-precision kernels the runtime lacks is run in float32 instead; the caller is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.scratch import ScratchGraph, float64_leaf
from graphopt.ir.weights import Array
from graphopt.verify.fragment import Fragment, Side

Runner = Callable[[Sequence[Array]], list[Array]]


class CannotRun(Exception):
    """The runtime refuses the fragment; carries its reason."""


def side_runner(fragment: Fragment, side: Side) -> Runner:
    """A function from the fragment's inputs to the outputs of one side.

    Outputs that are inputs or constants are passed through, so that no runtime needs to accept a graph without
    nodes. Raises CannotRun, at once or when called.
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
    native = native_runner(graph, side.nodes, fragment.inputs, computed) if computed else None

    def run(feeds: Sequence[Array]) -> list[Array]:
        results = native(feeds) if native is not None else []
        sources = {"input": feeds, "computed": results}
        return [what.numpy() if source == "constant" else sources[source][what] for source, what in plan]

    return run


def native_runner(graph: Graph, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> Runner:
    """A runner for `nodes` cut out of `graph`, with the kernels of its storage's runtime."""
    try:
        part = graph.cut(nodes, inputs, outputs)
    except Exception as error:
        raise CannotRun(f"the fragment cannot be cut out: {error}") from error
    match part.storage:
        case "onnx":
            return onnx_runner(part)
        case "fx":
            return lambda feeds: _guarded(part.run, feeds)  # type: ignore[attr-defined]
        case _:
            return lambda feeds: _guarded(lambda f: evaluate(part, f), feeds)


def evaluate(part: Graph, feeds: Sequence[Any]) -> list[Array]:
    """A scratch graph in float64 by the meanings of its ops; nothing is rounded at casts between floats."""
    from graphopt.ir.ops.domain import Float64

    assert isinstance(part, ScratchGraph)
    wide = [f.astype(np.float64) if np.asarray(f).dtype.name in _LOW else f for f in feeds]
    with np.errstate(all="ignore"):
        return [np.asarray(r) for r in part.evaluate(wide, Float64(), float64_leaf)]


_LOW = frozenset({"float16", "bfloat16", "float32"})


def onnx_runner(part: Graph) -> Runner:
    """An onnxruntime session without optimisations, one thread; low precision falls back to float32."""
    model = to_proto(part)
    _forget_sizes(model)
    names = [part.name(v) for v in part.inputs()]
    try:
        session = _session(model.SerializeToString())
    except CannotRun as error:
        if not _has_low_precision(model):
            raise
        return _float32_runner(model, names, error)

    def run(feeds: Sequence[Array]) -> list[Array]:
        return _guarded(lambda f: _run_session(session, names, f), feeds)

    return run


def model_runner(model: Model, *, optimised: bool = False) -> Runner:
    """A whole model natively, from the inputs of its main region in order; `optimised` turns the runtime's own
    optimisations on."""
    main = model.main
    if model.storage == "fx":
        return lambda feeds: _guarded(main.run, feeds)  # type: ignore[attr-defined]
    names = [main.name(v) for v in main.inputs()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        session = _session(str(path), optimised=optimised)
    return lambda feeds: _guarded(lambda f: _run_session(session, names, f), feeds)


def to_proto(part: Graph) -> Any:
    """The onnx.ModelProto of a fragment of the ONNX storage; deferred weights are computed now."""
    import onnx_ir

    return onnx_ir.to_proto(part.shared.model)  # type: ignore[attr-defined]


def _forget_sizes(model: Any) -> None:
    """Keep ranks only: onnxruntime refuses inputs of other sizes than declared, and fragments run on smaller ones."""
    for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in info.type.tensor_type.shape.dim:
            dim.Clear()


def _guarded(run: Callable[[Sequence[Array]], list[Array]], feeds: Sequence[Array]) -> list[Array]:
    try:
        return run(feeds)
    except Exception as error:
        raise CannotRun(str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__) from error


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
    wanted = {i.name for i in session.get_inputs()}
    return [np.asarray(r) for r in session.run(None, {n: f for n, f in zip(names, feeds, strict=True) if n in wanted})]


def _has_low_precision(model: Any) -> bool:
    import onnx

    low = {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}
    graph = model.graph
    types = {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]}
    return bool(low & (types | {t.data_type for t in graph.initializer}))


def _float32_runner(model: Any, names: Sequence[str], cause: CannotRun) -> Runner:
    """The same fragment with every low-precision tensor in float32, and its results rounded back."""
    from graphopt.ir.onnx.widen import widen_to_float32

    wide, result_dtypes = widen_to_float32(model)
    try:
        session = _session(wide.SerializeToString())
    except CannotRun:
        raise cause from None

    def run(feeds: Sequence[Array]) -> list[Array]:
        floats = [f.astype(np.float32) if f.dtype.name in ("float16", "bfloat16") else f for f in feeds]
        results = _guarded(lambda f: _run_session(session, names, f), floats)
        return [r if d is None else r.astype(d) for r, d in zip(results, result_dtypes, strict=True)]

    run.note = "run in float32: the runtime has no kernel for its precision"  # type: ignore[attr-defined]
    return run


def note_of(runner: Runner) -> tuple[str, ...]:
    """What a runner wants to be said about its results."""
    note = getattr(runner, "note", None)
    return () if note is None else (note,)
