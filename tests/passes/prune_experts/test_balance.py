"""The load of experts is what the block's own router in torch does, in every form of the graph."""

from __future__ import annotations

import io
import json
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from expert_models import BLOCKS, FORMS, K, batches, block, exported, routed
from rich.console import Console
from typer.testing import CliRunner

import graphopt
from graphopt.errors import ModelError
from graphopt.passes.prune_experts import Load, balance, bars, svg, table
from graphopt.tools.main import app

DEAD = (1, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BLOCKS)
def test_loads_are_what_torch_routes(name: str, form: str) -> None:
    module = block(name, form.split()[0], dead=DEAD)
    (load,) = balance(exported(module, form), batches())
    tokens, gate = routed(module, batches())
    assert load.tokens.tolist() == tokens.tolist()
    assert load.gate is not None and np.allclose(load.gate, gate, rtol=1e-5)
    assert load.name == "gate.weight" and load.k == K and load.total == tokens.sum() // K
    assert load.dead == DEAD


@pytest.mark.parametrize("kind", ("grouped_mm", "batched_mm"))
def test_routers_with_groups_are_counted(kind: str) -> None:
    module = block("deepseek", kind, groups=4)
    (load,) = balance(exported(module, f"{kind} fx"), batches())
    tokens, gate = routed(module, batches())
    assert load.tokens.tolist() == tokens.tolist()
    assert load.gate is not None and np.allclose(load.gate, gate, rtol=1e-5)


def test_a_model_that_was_lowered_is_counted_too() -> None:
    module = block("mixtral", "batched_mm", dead=DEAD)
    lowered = graphopt.optimize(exported(module, "batched_mm onnx"), "lower-moe", target="onnxruntime")
    assert any(a.rule == "picked-experts" for a in lowered.report.kept)
    (load,) = balance(lowered.model, batches())
    assert load.tokens.tolist() == routed(module, batches())[0].tolist()


def test_each_layer_has_a_load_of_its_own() -> None:
    layers = torch.nn.Sequential(block("mixtral"), block("qwen3", dead=DEAD))
    found = balance(layers, batches(), example_inputs=(torch.from_numpy(batches()[0]),))
    assert [load.name for load in found] == ["0.gate.weight", "1.gate.weight"]
    assert found[0].tokens.tolist() == routed(layers[0], batches())[0].tolist()


def test_figures_of_known_loads() -> None:
    even = Load("even", 2, np.array([6, 6, 6, 6]), np.array([3.0, 3.0, 1.5, 4.5]))
    assert (even.total, even.entropy, even.variation, even.dead) == (12, pytest.approx(1.0), 0.0, ())
    assert even.mean_gate is not None and even.mean_gate.tolist() == [0.5, 0.5, 0.25, 0.75]
    one = Load("one", 1, np.array([0, 8, 0, 0]), None)
    assert (one.entropy, one.variation, one.dead) == (0.0, pytest.approx(3**0.5), (0, 2, 3))
    assert one.mean_gate is None and one.share.tolist() == [0, 1, 0, 0]
    none = Load("none", 1, np.zeros(3, np.int64), np.zeros(3))
    assert (none.total, none.entropy, none.variation, none.dead) == (0, 0.0, 0.0, (0, 1, 2))


def test_bars_table_and_picture_have_every_expert() -> None:
    load = Load("a<b", 1, np.array([0, 8, 4]), np.array([0.0, 4.0, 1.0]))
    assert bars(load, 8).splitlines() == ["0          0.0 %", "1 ████████ 66.7 %", "2 ████     33.3 %"]
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(table([load]))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines[2:] == ["0 0 0.0 % -", f"1 8 66.7 % 0.500 {'█' * 40}", f"2 4 33.3 % 0.250 {'█' * 20}"]
    assert "dead: 0" in lines[0]
    picture = ElementTree.fromstring(svg([load, load]))
    lengths = [float(r.get("width", "")) for r in picture.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert lengths == [0, 480, 240] * 2


def test_a_model_without_experts_is_an_error() -> None:
    with pytest.raises(ModelError, match="no mixture of experts"):
        balance(torch.nn.Linear(4, 4), [np.ones((2, 4), np.float32)], example_inputs=(torch.ones(2, 4),))


def test_the_command_prints_and_draws(tmp_path) -> None:  # type: ignore[no-untyped-def]
    module = block("mixtral", "batched_mm", dead=DEAD)
    onnx.save(exported(module, "batched_mm onnx", dynamic=False).export(), tmp_path / "moe.onnx")
    np.save(tmp_path / "x.npy", np.concatenate(batches()))
    arguments = ["experts", str(tmp_path / "moe.onnx"), "--calibration", str(tmp_path / "x.npy")]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    (load,) = json.loads(done.stdout)
    assert load["tokens"] == routed(module, batches())[0].tolist() and load["dead"] == list(DEAD)
    picture = tmp_path / "moe.svg"
    done = CliRunner().invoke(app, [*arguments, "--svg", str(picture)])
    assert "dead: 1, 5" in done.stdout and "█" in done.stdout
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
