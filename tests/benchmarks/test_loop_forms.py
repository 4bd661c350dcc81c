"""Both forms of a program, hoisted or not, sample what diffusers does around the same denoiser."""

import torch

from benchmarks.loop_forms import ALL, forms
from benchmarks.sampling import relative


def test_every_form_samples_the_same():
    runs = forms(ALL["tiny"](), threads=1)
    with torch.no_grad():
        samples = {name: run() for name, run in runs.items()}
    assert list(samples) == ["diffusers + onnxruntime", "loop", "loop, hoisted", "sessions", "sessions, hoisted"]
    assert max(relative(samples["diffusers + onnxruntime"], sample) for sample in samples.values()) < 1e-5
