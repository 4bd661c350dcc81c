"""Leaving behind what reproduces an undone application: the fragment, its inputs and the pipeline that was run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.ir.graph import Graph
from graphopt.ir.text import graph_text
from graphopt.rewrite.change import Change, Rejected, Verifier
from graphopt.rewrite.contract import Evidence
from graphopt.verify.execute import to_proto
from graphopt.verify.fragment import Fragment, Side, cut


@dataclass(frozen=True)
class Recorded:
    """A verifier that writes a folder for every change that `inner` rejects."""

    inner: Verifier
    folder: Path
    pipeline: str

    def verify(self, change: Change) -> Evidence:
        try:
            return self.inner.verify(change)
        except Rejected as rejected:
            path = self.folder / re.sub(r"[^\w.#-]+", "_", change.id)
            reason = rejected.reason
            written: str | None = str(path)
            try:
                write_repro(path, change, rejected, self.pipeline)
            except OSError as error:
                reason, written = f"{reason}; what reproduces it cannot be written: {error}", None
            raise Rejected(reason, rejected.evidence, written) from rejected


def write_repro(path: Path, change: Change, rejected: Rejected, pipeline: str) -> None:
    """Write `before` and `after` (as .onnx where the storage is ONNX, as text always) and `repro.json` to `path`.

    For ONNX, `graphopt run before.onnx -o out.onnx -p PIPELINE` replays the application on the fragment alone.
    """
    path.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "application": change.id,
        "reason": rejected.reason,
        "contract": str(change.contract),
        "pipeline": pipeline,
        "storage": change.graph.storage,
        "evidence": replace(rejected.evidence).__dict__ | {"worst": str(rejected.evidence.worst)},
    }
    if change.journal.replaced:
        fragment = cut(change)
        for name, side in (("before", fragment.before), ("after", fragment.after)):
            _write_side(path, name, fragment, side)
        about["declared"] = [fragment.graph.name(v) for v in change.declared]
        about["inputs"] = [f"{fragment.graph.name(v)}: {fragment.graph.type(v)}" for v in fragment.inputs]
    (path / "repro.json").write_text(json.dumps(about, indent=2, sort_keys=True, default=str), encoding="utf-8")


def _write_side(path: Path, name: str, fragment: Fragment, side: Side) -> None:
    outputs = [v for v in side.outputs if v not in fragment.inputs and fragment.graph.constant(v) is None]
    if not side.nodes or not outputs:
        return
    part: Graph = fragment.graph.cut(side.nodes, fragment.inputs, outputs)
    (path / f"{name}.txt").write_text(graph_text(part), encoding="utf-8")
    if part.storage == "onnx":
        (path / f"{name}.onnx").write_bytes(to_proto(part).SerializeToString())


