"""Torch models on the onnxruntime backend: called like the module, tensors in and out."""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.export import Dim

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.errors import MissingExtraError, PipelineError, UnsupportedError


class ScaledSum(nn.Module):
    """Two tensors, a flag and an option; a nested result with constants in it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, pair=None, *, double=False):
        y = self.linear(x) + pair["a"] - pair["b"]
        y = 2 * y if double else y
        return {"y": y, "both": (y.sum(), None), "same": x, "kind": 3}


X = torch.linspace(-1, 1, 6).reshape(2, 3)
PAIR = {"a": torch.ones(2, 3), "b": torch.zeros(3)}


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    torch.testing.assert_close(got["y"], wanted["y"])
    torch.testing.assert_close(got["both"][0], wanted["both"][0])
    assert got["both"][1] is None
    assert torch.equal(got["same"], wanted["same"])
    assert got["kind"] == 3


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return ScaledSum().eval()


@pytest.fixture(scope="module")
def compiled(module):
    return graphopt.lower(module, example_inputs=((X,), {"pair": PAIR, "double": False}), threads=1)


@pytest.mark.parametrize("io_binding", [True, False])
def test_the_structure_of_inputs_and_outputs_is_the_modules_own(module, io_binding):
    example = ((X,), {"pair": PAIR, "double": True})
    compiled = graphopt.lower(module, example_inputs=example, io_binding=io_binding)

    assert_same(compiled(-X, pair=PAIR, double=True), module(-X, pair=PAIR, double=True))


def test_arguments_may_be_given_by_position_by_name_and_in_any_order(module, compiled):
    wanted = module(X, PAIR)
    swapped = {"b": PAIR["b"], "a": PAIR["a"]}

    for got in (compiled(X, PAIR), compiled(pair=swapped, x=X), compiled(X, pair=PAIR, double=False)):
        assert_same(got, wanted)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, PAIR, False, 1), {}, r"takes 3 arguments \(x, pair, double\), got 4"),
        ((X,), {}, "missing argument 'pair'; the model takes x, pair, double"),
        ((X, PAIR), {"x": X}, "'x' is given both"),
        ((X, PAIR), {"doubled": True}, r"without an argument 'doubled' \(did you mean 'double'\?\)"),
        ((X, PAIR), {"double": True}, "'double' was False when the model was exported .* got True"),
        ((X, {"a": X}), {}, "'pair' has another structure"),
        ((X.double(), PAIR), {}, r"float32\[2,3\], got float64\[2,3\]; cast it"),
        ((X[0], PAIR), {}, "of rank 2, got float32"),
        ((torch.ones(4, 3), PAIR), {}, "size 4 at axis 0 where 2 is fixed"),
        ((X.numpy(), PAIR), {}, "got ndarray; give a torch.Tensor"),
        ((X.to("meta"), PAIR), {}, "is on meta; move it to the CPU"),
    ],
)
def test_wrong_arguments_are_refused_before_onnxruntime_sees_them(compiled, args, kwargs, message):
    with pytest.raises(InputError, match=message):
        compiled(*args, **kwargs)


def test_inputs_that_are_views_or_need_gradients_are_read_right(module, compiled):
    view = torch.linspace(0, 1, 6).reshape(3, 2).t().requires_grad_()

    result = compiled(view, PAIR)["y"]

    torch.testing.assert_close(result, module(view, PAIR)["y"].detach())
    assert not result.requires_grad


def test_results_share_no_memory_with_inputs_or_with_each_other(compiled):
    x = X.clone()
    first = compiled(x, PAIR)
    kept = first["y"].clone()
    second = compiled(-x, PAIR)

    assert first["same"].data_ptr() != x.data_ptr()
    assert torch.equal(first["y"], kept)
    assert not torch.equal(second["y"], kept)


def test_a_batch_of_any_size_runs_even_an_empty_one():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    compiled = graphopt.lower(module, example_inputs=(torch.ones(4, 3),), dynamic_shapes=({0: Dim("n")},))

    for n in (1, 7, 0):
        x = torch.randn(n, 3)
        torch.testing.assert_close(compiled(x), module(x).detach())


class Wide(nn.Module):
    def forward(self, x, mask):
        return torch.where(mask, x.float(), 0.0).to(x.dtype), ~mask


@pytest.mark.parametrize(
    ("dtype", "io_binding"),
    [
        (torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True), (torch.int32, True),
        (torch.float8_e4m3fn, True), (torch.float8_e4m3fn, False), (torch.float8_e5m2, True),
        (torch.float8_e4m3fnuz, True), (torch.float8_e5m2fnuz, False),
    ],
)  # fmt: skip
def test_every_dtype_goes_in_and_out(dtype, io_binding):
    x, mask = torch.tensor([1, 2, -3]).to(dtype), torch.tensor([True, False, True])
    compiled = graphopt.lower(Wide(), example_inputs=(x, mask), io_binding=io_binding)

    kept, inverse = compiled(x, mask)

    assert kept.dtype == dtype
    assert kept.tolist() == [1, 0, -3]
    assert inverse.dtype == torch.bool
    assert inverse.tolist() == [False, True, False]


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.bias = nn.Linear(12, 36), nn.Parameter(torch.randn(5, 5, 3))

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias.permute(2, 0, 1).unsqueeze(0)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return heads.transpose(1, 2).reshape(2, 5, 12)


def test_attention_may_have_a_bias_that_is_trained():
    module, x = Biased(), torch.randn(2, 5, 12)
    torch.testing.assert_close(graphopt.lower(module, example_inputs=x)(x), module(x).detach())


@dataclass
class Moments:
    mean: torch.Tensor
    spread: torch.Tensor


torch.export.register_dataclass(Moments, serialized_type_name="test_onnxruntime_modules.Moments")


class Statistics(nn.Module):
    def forward(self, x):
        return Moments(x.mean(), x.max() - x.min())


def test_a_dataclass_comes_back_as_one():
    result = graphopt.lower(Statistics(), example_inputs=(X,))(X)

    assert isinstance(result, Moments)
    torch.testing.assert_close((result.mean, result.spread), (X.mean(), X.max() - X.min()))


class Sized(nn.Module):
    def forward(self, x):
        return x * x.shape[0], x.shape[0]


def test_a_size_among_the_results_is_a_number():
    compiled = graphopt.lower(Sized(), example_inputs=(torch.ones(4, 3),), dynamic_shapes=({0: Dim("n")},))

    y, size = compiled(torch.ones(5, 3))
    assert size == 5 and isinstance(size, int)
    assert torch.equal(y, torch.full((5, 3), 5.0))


# ---- squeezes ------------------------------------------------------------------------------------


class Squeezes(nn.Module):
    def forward(self, x):
        return x.squeeze(1) + 0, torch.squeeze(x, (0, -1)) + 0, x.squeeze() + 0


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 1), (1, 3, 1)])
def test_squeezes_do_what_they_do_in_torch(shape):
    x = torch.randn(shape)
    for got, wanted in zip(graphopt.lower(Squeezes(), example_inputs=(x,))(x), Squeezes()(x), strict=True):
        assert torch.equal(got, wanted)


def test_a_squeeze_keeps_a_symbolic_size_that_happens_to_be_1():
    x = torch.randn(4, 3, 1)
    compiled = graphopt.lower(Squeezes(), example_inputs=(x,), dynamic_shapes=({0: Dim("n")},))

    assert [tuple(y.shape) for y in compiled(torch.randn(1, 3, 1))] == [(1, 3, 1), (1, 3), (1, 3)]


def test_a_pixart_transformer_loads_and_agrees():
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=12,
        patch_size=2,
        norm_num_groups=1,
    ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 12),
        "timestep": torch.tensor([3, 700]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    result = graphopt.lower(model, example_inputs=inputs)(**inputs)

    with torch.no_grad():
        expected = model(**inputs)
    assert type(result) is type(expected)
    torch.testing.assert_close(result.sample, expected.sample, rtol=1e-4, atol=1e-5)


# ---- what stays as it was, and what cannot be ----------------------------------------------------


def test_lowering_leaves_the_model_as_it_was():
    loaded = graphopt.load(Squeezes(), example_inputs=(torch.ones(2, 3, 4),))
    before = loaded.main.fingerprint()

    graphopt.lower(loaded)

    assert loaded.main.fingerprint() == before


def test_an_operator_that_onnx_cannot_say_is_named():
    @torch.library.custom_op("graphopt_test::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    mystery.register_fake(torch.empty_like)

    class Module(nn.Module):
        def forward(self, x):
            return mystery(x)

    with pytest.raises(UnsupportedError, match=r"in ONNX at graphopt_test\.mystery\.default: "):
        graphopt.lower(Module(), example_inputs=(X,))


def test_a_missing_exporter_is_said_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)

    with pytest.raises(MissingExtraError, match=r"needs onnxscript: pip install graphopt\[torch\]"):
        graphopt.lower(Squeezes(), example_inputs=(torch.ones(2, 3, 4),))


def test_the_torch_backend_gives_the_module_back(module):
    lowered = graphopt.lower(module, "torch", example_inputs=((X,), {"pair": PAIR}))

    assert isinstance(lowered, nn.Module)
    assert_same(lowered(X, pair=PAIR), module(X, PAIR))


def test_the_torch_backend_takes_no_options_and_no_onnx_model(module):
    from onnx_models import conv_bn

    with pytest.raises(PipelineError, match="backend 'torch': unknown option 'threads'; it takes no options"):
        graphopt.lower(module, "torch", example_inputs=((X,), {"pair": PAIR}), threads=1)
    with pytest.raises(UnsupportedError, match="lower it to the backend 'onnxruntime'"):
        graphopt.lower(conv_bn(), "torch")


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.add_(1)
        return x * self.count


class WritesItsInput(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x * 2


@pytest.mark.parametrize(
    ("module", "written"),
    [(Counts(), "count"), (WritesItsInput(), "x"), (nn.BatchNorm1d(3).train(), "running_mean")],
    ids=["a buffer", "an input", "statistics"],
)
def test_a_module_that_writes_its_state_is_refused(module, written):
    with pytest.raises(UnsupportedError, match=f"programs without state, and this one writes .*{written}"):
        graphopt.lower(module, example_inputs=X.clone())


class Complex(nn.Module):
    def forward(self, x):
        return torch.complex(x, 2 * x)


class OfComplex(nn.Module):
    def forward(self, x):
        return x.abs()


@pytest.mark.parametrize(("module", "x"), [(Complex(), X), (OfComplex(), torch.complex(X, X))])
def test_complex_inputs_and_outputs_are_refused(module, x):
    with pytest.raises(UnsupportedError, match="real numbers, and .* is torch.complex64; .*view_as_real"):
        graphopt.lower(module, example_inputs=x)


class Expanded(nn.Module):
    """Two nodes of one kind, of which one is of constants alone."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.linspace(-1, 1, 4).reshape(1, 1, 4))
        self.register_buffer("mask", torch.ones(1, 1, 1, 1).bool())

    def forward(self, x):
        joined = torch.cat([self.token.expand(2, -1, -1), x], 1)
        return joined, torch.where(self.mask.expand(2, 1, 17, 17), x.sum(), 0.0)


def test_a_folded_constant_does_not_take_the_name_of_a_node_that_stays():
    x = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
    module = Expanded().eval()

    result = graphopt.optimize(module, "clean-up", example_inputs=x)

    assert any("expand" in name for name, _ in result.model.named_parameters())
    for got, wanted in zip(result.lower("onnxruntime")(x), module(x), strict=True):
        torch.testing.assert_close(got, wanted)
