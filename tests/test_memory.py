"""Memory in proportion to what is rewritten, not to the model. Measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.memory import MEGABYTE, measure, write_chain

ALLOWED = 100 * MEGABYTE
"""Above the tensors that are rewritten; the weights are three times as much, so that they cannot all be read."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    return path, write_chain(path, 300 * MEGABYTE, width=1024, channels=256)


def test_weights_that_are_not_rewritten_are_never_in_memory(chain: tuple[Path, int], tmp_path: Path):
    source, rewritten = chain
    measured = measure(source, tmp_path / "out.onnx")

    assert measured["undone"] == []
    assert {i.partition("#")[0] for i in measured["kept"]} == {
        "fuse-conv-bn/conv-batch-norm",
        "fuse-conv-bn/linear-batch-norm",
    }
    assert measured["saved"] - measured["before"] <= rewritten + ALLOWED
    out = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert "BatchNormalization" not in {n.op_type for n in out.graph.node}
    assert (tmp_path / "out.onnx").stat().st_size > 300 * MEGABYTE
