"""What README.md and docs/ show is what happens: their Python and their command lines are run."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from documents import DOCUMENTS, ROOT, blocks, commands, is_as_shown, run_command, run_python
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.ops import OPS
from graphopt.pipeline import registry


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with the model.onnx of the documents and inputs for it; registrations are forgotten
    afterwards."""
    onnx.save(small_model(), tmp_path / "model.onnx")
    images = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    yield tmp_path
    registry.passes.cache_clear()
    registry.backends.cache_clear()


def small_model():
    """Two folded pairs of convolution and batch norm, one that cannot be folded because a sum reads the
    convolution too, and a transpose that another one takes back."""
    rng = np.random.default_rng(0)
    weights, nodes = {}, []

    def layer(number, source, channels):
        weights[f"w{number}"] = rng.standard_normal((8, channels, 3, 3)) * 0.1
        for name, values in (
            ("scale", rng.uniform(0.5, 1.5, 8)), ("shift", rng.standard_normal(8)),
            ("mean", rng.standard_normal(8)), ("var", rng.uniform(0.5, 1.5, 8)),
        ):  # fmt: skip
            weights[f"{name}{number}"] = values
        statistics = [f"{name}{number}" for name in ("scale", "shift", "mean", "var")]
        conv = helper.make_node(
            "Conv", [source, f"w{number}"], [f"c{number}"], name=f"conv{number}", pads=[1, 1, 1, 1]
        )
        norm = helper.make_node("BatchNormalization", [f"c{number}", *statistics], [f"n{number}"], name=f"bn{number}")
        nodes.extend([conv, norm])
        return f"n{number}"

    def node(op, operands, output, **attributes):
        nodes.append(helper.make_node(op, operands, [output], name=output, **attributes))
        return output

    x = node("Relu", [layer(1, "x", 3)], "relu1")
    x = node("Relu", [layer(2, x, 8)], "relu2")
    x = node("Add", [layer(3, x, 8), "c3"], "sum")
    x = node("Transpose", [x], "channels_last", perm=[0, 2, 3, 1])
    x = node("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
    node("GlobalAveragePool", [x], "y")
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 1, 1])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def documents_with(language):
    found = [d for d in DOCUMENTS if any(b.language == language for b in blocks(d))]
    return pytest.mark.parametrize("document", found, ids=[d.name for d in found])


@documents_with("python")
def test_python_runs_and_prints_what_is_shown(document, folder):
    for block, printed, shown in run_python(document, folder):
        where = f"{document.name}, line {block.line}"
        if shown is not None:
            assert is_as_shown(shown, printed), f"{where} prints\n{printed}\nand is shown to print\n{shown}"


@documents_with("console")
def test_command_lines_succeed_and_print_what_is_shown(document, folder):
    for command in commands(document):
        code, printed = run_command(command.line)
        assert code == 0, f"{document.name}: `{command.line}` exits with {code}"
        if command.output.strip():
            assert is_as_shown(command.output, printed), f"{document.name}: `{command.line}` prints\n{printed}"


def test_the_vocabulary_is_listed_whole():
    text = (ROOT / "docs/ir.md").read_text(encoding="utf-8")
    section = text.partition("## The vocabulary")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row.partition(" | ")[2])}
    assert listed == set(OPS)


def test_links_between_the_documents_lead_somewhere():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            assert "://" in link or (document.parent / link).exists(), f"{document.name}: {link}"


def test_every_block_says_its_language():
    for document in DOCUMENTS:
        unnamed = [block.line for block in blocks(document) if not block.language]
        assert not unnamed, f"{document.name}: blocks without a language at lines {unnamed}"


def test_the_guides_have_examples():
    languages = [block.language for document in DOCUMENTS for block in blocks(document)]
    assert languages.count("python") >= 15
    assert sum(1 for document in DOCUMENTS for _ in commands(document)) >= 10


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("3 nodes, 0.5 s", "3 nodes,   0.7 s", True),
        ("3 nodes, 0.5 s", "4 nodes, 0.5 s", False),
        ("worst 1.2e-07", "worst 3e-08", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("", "anything", False),
    ],
)
def test_output_is_compared_but_for_measurements(shown, printed, same):
    assert is_as_shown(shown, printed) is same
