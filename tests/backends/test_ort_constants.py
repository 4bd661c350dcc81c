import torch
from tiny_denoisers import tiny

import graphopt
from graphopt.backends.ort_constants import store_constants


class Waves(torch.nn.Module):
    """A timestep embedding; zeros and counts, which are the same everywhere; a name that is taken."""

    def __init__(self):
        super().__init__()
        self.constant_exp = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, t):
        frequencies = torch.exp(-9.21 * torch.arange(512, dtype=torch.float32) / 512)
        return torch.sin(t[:, None] * frequencies) * self.constant_exp, t + torch.zeros(1), torch.arange(3)[:, None] * t


T = torch.tensor([999.0, 250.0])


def test_what_is_computed_from_nothing_has_torchs_bits():
    module = Waves().eval()
    lowered = graphopt.lower(module, "onnxruntime", example_inputs=(T,))
    for got, expected in zip(lowered(T), module(T), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    program = torch.export.export(module, (T,)).run_decompositions({})
    expected = program.module()(T)
    store_constants(program)
    program.validate()
    assert [name for name in program.constants] == ["constant_exp_"]
    assert all(torch.equal(a, b) for a, b in zip(program.module()(T), expected, strict=True))
    assert len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.zeros.default)) <= 1


def test_a_denoiser_is_as_near_to_torch_at_its_last_timestep_as_elsewhere():
    flux, inputs = tiny("flux")
    inputs["timestep"] = torch.tensor([0.999, 0.999])
    run = graphopt.lower(flux, "onnxruntime", example_inputs=inputs)
    with torch.no_grad():
        expected = flux(**inputs)[0]
    got = run(**{name: value for name, value in inputs.items() if torch.is_tensor(value)})[0]
    assert float((got - expected).abs().max() / expected.abs().max()) <= 3e-6
