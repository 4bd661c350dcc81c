"""Models compiled for TPUs that are not there: figures of libtpu, files, and errors."""

from xla_support import Function, torch, tpu  # first: it skips where JAX is missing  # isort: skip

import io
import json
from importlib.metadata import PackageNotFoundError

import pytest
from tiny_denoisers import tiny
from torch.utils.flop_counter import FlopCounterMode

import graphopt
from graphopt.backends.xla import ahead
from graphopt.backends.xla.ahead_report import NOT_RUN
from graphopt.errors import MissingExtraError, PipelineError, UnsupportedError

TOPOLOGIES = ("v5e:2x2", "v6e:2x2")


class ConvNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(*(self.layer(channels) for channels in (3, 16, 16)))

    @staticmethod
    def layer(channels):
        norm = torch.nn.BatchNorm2d(16)
        torch.nn.init.uniform_(norm.running_mean)
        return torch.nn.Sequential(torch.nn.Conv2d(channels, 16, 3, padding=1), norm, torch.nn.ReLU())

    def forward(self, x):
        return self.layers(x)


IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def compiled(model, topology="v5e:2x2", **examples):
    """Compiled without the comparison on the CPU, which tests of that make; in one pass of bfloat16, which takes a
    fifth of the time."""
    return graphopt.lower(model, "xla", check=False, precision="default", **examples).compile_for(topology)


@pytest.fixture(scope="module")
def plain():
    return compiled(ConvNet().eval(), example_inputs=(IMAGE,))


# ---- errors ----------------------------------------------------------------------------------------------


def lowered():
    return graphopt.lower(Function(torch.relu), "xla", example_inputs=(torch.randn(3),), check=False)


@pytest.mark.parametrize("topology", ["", "v5e", "2x2", "v5e:2", "v5e:2x2x2x2", "v5e:axb"])
def test_what_is_no_topology_is_refused_before_anything_is_loaded(topology):
    with pytest.raises(PipelineError, match="expected a chip and a grid of them, as in v4:2x2x1"):
        lowered().compile_for(topology)


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(ahead, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'graphopt\[tpu\]' \(libtpu 0\.0\.42\.1"):
        lowered().compile_for("v5e:2x2")


def test_models_of_several_sizes_are_refused():
    dim = torch.export.Dim("n", min=1, max=8)
    run = graphopt.lower(
        torch.nn.Linear(3, 2).eval(), "xla", example_inputs=(torch.randn(4, 3),), dynamic_shapes=({0: dim},)
    )
    with pytest.raises(UnsupportedError, match="fixed sizes"):
        run.compile_for("v5e:2x2")


@tpu
@pytest.mark.parametrize("topology", ["v7x:2x2x1", "v5e:1x1", "abacus:2x2"])
def test_topologies_that_libtpu_does_not_know_are_refused(topology):
    with pytest.raises(PipelineError, match="none that libtpu compiles for .*known to work: v4:2x2x1, v5e:2x2"):
        lowered().compile_for(topology)


# ---- figures ---------------------------------------------------------------------------------------------


@tpu
def test_counts_are_those_of_the_model():
    report = compiled(torch.nn.Linear(64, 128), example_inputs=(torch.randn(32, 64),)).report
    products, sums = 2 * 32 * 64 * 128, 32 * 128
    assert report.flops == products + sums
    assert report.bytes_accessed >= 4 * (64 * 128 + 128 + 32 * 64 + 32 * 128)


@tpu
def test_the_report_names_the_chip_and_what_runs_on_it(plain):
    assert plain.report.device == "TPU v5 lite" and plain.report.versions["libtpu"]
    assert plain.report.loops == 0 and plain.report.host_transfers == ()
    assert sum(plain.report.fusions.values()) >= 3


@tpu
def test_padding_agrees_with_what_the_compiler_allocates(plain):
    report = plain.report
    assert report.argument_padding.padded_bytes == report.memory["arguments"]
    stored = sum(x.numel() * 4 for name, x in ConvNet().state_dict().items() if "num_batches" not in name)
    assert report.argument_padding.logical_bytes == stored + IMAGE.numel() * 4
    assert 0 < report.padding.waste < 1
    assert report.memory["peak"] >= report.memory["arguments"] + report.memory["outputs"]


@tpu
def test_folded_batch_norms_save_flops_and_bytes(plain):
    folded = graphopt.optimize(ConvNet().eval(), "fuse-conv-bn,clean-up", example_inputs=(IMAGE,))
    assert len(folded.report.kept) >= 3
    report = compiled(folded.model, example_inputs=(IMAGE,)).report
    assert report.flops < plain.report.flops
    assert report.bytes_accessed < plain.report.bytes_accessed
    assert report.memory["arguments"] < plain.report.memory["arguments"]


@tpu
def test_bfloat16_halves_weights_and_saves_bytes(plain):
    calibration = [(IMAGE,), (IMAGE.flip(0),)]
    narrow = graphopt.optimize(
        ConvNet().eval(), "bf16", example_inputs=(IMAGE,), budget=0.02, calibration=calibration
    )
    report = compiled(narrow).report
    assert report.bytes_accessed < plain.report.bytes_accessed
    own, other = (r.argument_padding.logical_bytes - IMAGE.nbytes for r in (report, plain.report))
    assert own == other / 2
    assert any(layout.startswith("bf16") for layout in report.layouts)


@tpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("family", ["unet", "pixart", "sd3"])
def test_denoisers_are_compiled(family, topology):
    model, inputs = tiny(family)
    with FlopCounterMode(display=False) as products, torch.no_grad():
        model(**inputs)
    report = compiled(model, topology, example_inputs=((), inputs)).report
    assert products.get_total_flops() < report.flops < 2.5 * products.get_total_flops()
    weights = sum(p.nbytes for p in model.parameters())
    assert weights < report.memory["arguments"] < report.memory["peak"] < 12 * weights
    assert report.argument_padding.padded_bytes == report.memory["arguments"]
    assert report.loops == 0 and report.host_transfers == ()
    assert report.device == {"v5e:2x2": "TPU v5 lite", "v6e:2x2": "TPU v6 lite"}[topology]


# ---- files -----------------------------------------------------------------------------------------------


@tpu
def test_executable_program_and_report_are_written(plain, tmp_path):
    plain.save(tmp_path / "made" / "out")
    written = {p.name: p for p in (tmp_path / "made" / "out").iterdir()}
    assert sorted(written) == ["model.hlo.txt", "model.pjrt", "report.json"]
    assert written["model.pjrt"].read_bytes() == plain.executable and len(plain.executable) > 10_000
    data = json.loads(written["report.json"].read_text())
    assert data == json.loads(json.dumps(plain.report.to_dict()))
    assert data["status"] == NOT_RUN == "compiled for TPU, not run on one"
    assert data["padding"]["waste"] == plain.report.padding.waste


@tpu
def test_arguments_are_listed_in_order_unread_ones_too():
    module = Function(lambda x, unread, y: x + y)
    examples = (torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.int64))
    made = compiled(module, example_inputs=examples)
    assert made.report.arguments == ("float32[2]", "float32[3]", "int64[2]")
    assert made.hlo[made.hlo.index("ENTRY"):].count(" parameter(") == 3


@tpu
def test_the_table_says_that_nothing_was_run(plain):
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plain.report)
    text = console.export_text()
    assert "TPU v5 lite (v5e:2x2): compiled for TPU, not run on one" in text
    assert f"{plain.report.flops:,.0f}" in text and f"{plain.report.memory['peak']:,}" in text
