"""The models of the ONNX backend tests, as they are and with inputs turned into weights.

onnx ships about two thousand small models with inputs: one for nearly every feature of every operator. Weights
instead of inputs make most of a model constant, which is what folding and fusing must get right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
VARIANTS = ("as-is", "rest-constant", "all-constant")
SEED = 0


@dataclass(frozen=True)
class Case:
    """A model and what to feed it."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    """By input name: an array, or for other than tensors whatever onnxruntime takes."""


def corpus(kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """Every model in every variant, always in the same order; names look like "node/test_conv/all-constant"."""
    for kind in kinds:
        for test in _tests(kind):
            try:
                model, inputs = _content(test)
            except Exception:  # data that this onnx cannot decode makes no case
                continue
            yield from variants(f"{kind}/{test.name}", model, inputs)


def _tests(kind: str) -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    np.random.seed(SEED)  # the tests draw their data from the global generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind=kind))


def _content(test: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """Model and first set of inputs, which "node" tests hold in memory and others as files."""
    if test.model is not None:
        return test.model, [_array(value) for value in test.data_sets[0][0]]
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    types = [i.type for i in _fed(model.graph)]
    files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda p: int(p.stem.removeprefix("input_")))
    return model, [_read(path, type_) for path, type_ in zip(files, types, strict=True)]


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _read(path: Path, type_: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if type_.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in graph.initializer}
    return [i for i in graph.input if i.name not in stored]


def variants(name: str, model: onnx.ModelProto, inputs: list[Any]) -> Iterator[Case]:
    """`model` as it is, with all inputs but the first stored as weights, and with all of them stored."""
    names = [i.name for i in _fed(model.graph)]
    feeds = dict(zip(names, inputs, strict=False))
    yield Case(f"{name}/{VARIANTS[0]}", model, feeds)
    fixable = [n for n in names if isinstance(feeds.get(n), np.ndarray)]
    if set(fixable) - set(names[:1]) and len(names) > 1:
        yield _fixed(f"{name}/{VARIANTS[1]}", model, feeds, [n for n in fixable if n != names[0]])
    if fixable:
        yield _fixed(f"{name}/{VARIANTS[2]}", model, feeds, fixable)


def _fixed(name: str, model: onnx.ModelProto, feeds: dict[str, Any], chosen: list[str]) -> Case:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.extend(numpy_helper.from_array(np.asarray(feeds[n]), n) for n in chosen)
    if model.ir_version >= 4:
        # Otherwise a caller could still override them.
        left = [i for i in copy.graph.input if i.name not in chosen]
        del copy.graph.input[:]
        copy.graph.input.extend(left)
    return Case(name, copy, {n: v for n, v in feeds.items() if n not in chosen})


def light_cases() -> Iterator[Case]:
    """The whole networks that onnx ships with weights made of one number each, as they are."""
    import onnx.backend.test

    rng = np.random.default_rng(SEED)
    folder = Path(onnx.backend.test.__file__).parent / "data" / "light"
    for path in sorted(folder.glob("light_*.onnx")):
        model = onnx.load(path)
        shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in _fed(model.graph)}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        yield Case(f"light/{path.stem}/{VARIANTS[0]}", model, feeds)
