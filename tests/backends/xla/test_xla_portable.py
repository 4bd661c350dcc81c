"""Models as files that JAX runs without torch."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import os
import subprocess
import sys

import numpy as np
import pytest

import graphopt
from graphopt.errors import ModelError, UnsupportedError

READER = """
import sys
for name in ("torch", "torchax", "graphopt"):
    sys.modules[name] = None
from pathlib import Path
import jax, numpy as np
from jax import export
jax.config.update("jax_enable_x64", True)
x, ids = np.load(sys.argv[2]), np.array([2, 0, 1])
exported = export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
assert set(exported.platforms) == {"cpu", "tpu"}, exported.platforms
np.save(sys.argv[3], np.asarray(exported.call(x, ids)[0]))
"""


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(3, 4)
        self.conv = torch.nn.ConvTranspose1d(4, 6, 3, groups=2)

    def forward(self, x, ids):
        return torch.softmax(self.conv(x + self.table(ids).T[None]), 1)


def test_a_file_runs_in_a_process_without_torch(tmp_path):
    torch.manual_seed(0)
    model, x, ids = Model().eval(), torch.randn(2, 4, 3), torch.tensor([2, 0, 1])
    run = graphopt.lower(model, "xla", example_inputs=(x, ids))
    run.save(tmp_path / "model.stablehlo")
    np.save(tmp_path / "x.npy", x.numpy())
    files = [str(tmp_path / name) for name in ("model.stablehlo", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", READER, *files], check=True)
    expected = model(x, ids).detach().numpy()
    np.testing.assert_allclose(np.load(files[2]), expected, rtol=1e-5, atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.stablehlo", "x.npy", "y.npy"]


def test_models_of_several_sizes_are_refused_and_nothing_is_written(tmp_path):
    dim = torch.export.Dim("n", min=1, max=8)
    run = graphopt.lower(
        torch.nn.Linear(3, 2).eval(), "xla", example_inputs=(torch.randn(4, 3),), dynamic_shapes=({0: dim},)
    )
    with pytest.raises(UnsupportedError, match="fixed sizes"):
        run.save(tmp_path / "model.stablehlo")
    assert not list(tmp_path.iterdir())


def test_a_file_does_not_take_the_place_of_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    run = graphopt.lower(torch.nn.Linear(3, 2).eval(), "xla", example_inputs=(torch.randn(4, 3),))
    with pytest.raises(ModelError, match="got a device or a pipe"):
        run.save(pipe)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
