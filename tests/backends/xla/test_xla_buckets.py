"""Open sizes padded to buckets: what torch computes, few compilations, and refusals that name what cannot be."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import jax
import numpy as np
import pytest
from onnx_models import conv_bn, model, node, value
from torch.export import Dim

pytest.importorskip("diffusers")
from xla_programs import denoiser, program_of

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.backends.xla import alongside
from graphopt.errors import PipelineError, UnsupportedError

BATCH = Dim("batch", min=2, max=63)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Of(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def lowered(function, sizes=(4, 8), shape=(4, 6), axis=0, check=True):
    return graphopt.lower(
        Of(function).eval(), "xla", example_inputs=(draw(*shape),), dynamic_shapes=({axis: BATCH},), buckets=sizes,
        check=check,
    )  # fmt: skip


def require_equal(run, model, make, sizes, compilations):
    """`make(n)`: keyword inputs of size n; the first tensor of the result is compared."""
    for n in sizes:
        inputs = make(n)
        with torch.no_grad():
            got, expected = (list(f(**inputs).values())[0] if hasattr(f(**inputs), "values") else f(**inputs)[0]
                             for f in (run, model))  # fmt: skip
        assert got.shape == expected.shape and got.shape[0] == n
        assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    assert run.compilations == compilations


APART = {
    "rows of a product": lambda x: torch.tanh(x) @ torch.ones(6, 3),
    "norm and softmax of a row": lambda x: torch.nn.functional.layer_norm(x, (6,)).softmax(1) + x.mean(1, keepdim=True),
    "sums and sorts along the other axis": lambda x: x.cumsum(1) + x.sort(1).values + x.flip(1),
    "the axis with others inside": lambda x: x.reshape(-1, 2, 3).transpose(1, 2).reshape(-1) * 2,
    "other places of the axis": lambda x: torch.cat([x.t()[1:4], x.t()[:1]]).t() * x[:, None, 2],
    "positions of the rows": lambda x: x[:, :1] + torch.arange(x.shape[0])[:, None],
}


@pytest.mark.parametrize("function", APART.values(), ids=APART)
def test_ops_that_keep_rows_apart_are_padded(function):
    run = lowered(function)
    for n in (2, 3, 4, 7):
        x = draw(n, 6, seed=n)
        torch.testing.assert_close(run(x), function(x), rtol=1e-5, atol=1e-6)
    assert run.compilations == 2


F = torch.nn.functional
MIXED = {
    "softmax": lambda x: x.softmax(0),
    "mean": lambda x: x - x.mean(0),
    "variance": lambda x: F.layer_norm(x.t(), (x.shape[0],)),
    "extremes": lambda x: x.amin(0) + x.argmax(0) + x.topk(2, 0).values,
    "sum so far": lambda x: x.cumsum(0),
    "sum from the end": lambda x: x.flip(0).cumsum(0).flip(0),
    "flip": lambda x: x.flip(0),
    "concat": lambda x: torch.cat([torch.ones(1, 6), x, x * 2]),
    "rows after others": lambda x: torch.cat([torch.ones(3, 6), x])[3:],
    "contraction": lambda x: x.t() @ x,
    "scores": lambda x: (x @ x.t()).softmax(1) @ x,
    "causal attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    "outer axis": lambda x: x.t().reshape(-1) * 2,
    "inner axis": lambda x: x.t().reshape(-1).reshape(2, -1).sum(1),
    "size": lambda x: x / x.shape[0] + x.shape[0],
    "last row": lambda x: x + x[-1:],
    "norm": lambda x: F.group_norm(x.t()[None], 2),
    "convolution": lambda x: F.conv1d(x.t()[None], torch.ones(2, 6, 3), padding=1),
    "transposed convolution": lambda x: F.conv_transpose1d(x.t()[None], torch.ones(6, 2, 3), stride=2),
    "pooling": lambda x: F.avg_pool1d(x.t()[None], 2, padding=1),
    "interleaved": lambda x: torch.stack([x, -x], 1).reshape(-1, 6).cumsum(0),
    "border": lambda x: F.pad(x, (0, 0, 1, 2), value=3.0).sum(0),
}


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED)
def test_ops_that_mix_rows_see_none_of_the_padding(function):
    run = lowered(function)
    for n in (4, 2, 3, 7, 8):
        x = draw(n, 6, seed=n)
        torch.testing.assert_close(run(x), function(x), rtol=1e-5, atol=2e-6)
    assert run.compilations == 2


def test_axes_that_are_padded_together_share_a_program():
    """A batch that fills its bucket, a length that does, both and neither: one compilation."""
    function = lambda x: (x.reshape(-1) * 2).reshape(x.shape) / x.sum() + x.mean((0, 1)) + x[-1:, -1:]  # noqa: E731
    length = Dim("length", min=2, max=63)
    run = graphopt.lower(
        Of(function).eval(),
        "xla",
        example_inputs=(draw(3, 5),),
        dynamic_shapes=({0: BATCH, 1: length},),
        buckets=(4, 8),
    )
    for shape in ((4, 7), (3, 8), (3, 6), (4, 8), (2, 5)):
        x = draw(*shape, seed=shape[1])
        torch.testing.assert_close(run(x), function(x), rtol=1e-5, atol=1e-6)
    assert run.compilations == 1
    assert any("x:1 is padded to 8, and padding of NaN gives the same bits" in note for note in run.notes)


def test_programs_that_read_results_in_another_order_are_no_pair():
    """As products of several matrices are taken: op by op they are the same."""

    def traced(n):
        def program(x, y):
            doubled, negated = x * 2, y * 2
            return doubled - negated if n < 5 else negated - doubled

        return jax.make_jaxpr(program)(*(jax.ShapeDtypeStruct((n, 3), "float32"),) * 2)

    alongside.Alongside(traced(2), traced(4))
    with pytest.raises(alongside.CannotPad, match="another program at another size"):
        alongside.Alongside(traced(2), traced(8))


REFUSED = {
    "sort": (lambda x: x.sort(0).values, r"x:0 cannot be padded: sort \(sort\) couples its indices"),
    "scatter": (lambda x: torch.zeros(9, 6).index_add(0, torch.arange(x.shape[0]), x), "says nothing about axes"),
}


@pytest.mark.parametrize(("function", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_hidden_from_is_refused_by_name(function, reason):
    run = lowered(function, check=False)
    with pytest.raises(UnsupportedError, match=reason):
        run(draw(3, 6))
    assert run.compilations == 0


@pytest.mark.parametrize("name", ["softmax", "scores", "outer axis", "concat", "last row", "convolution"])
def test_a_correction_that_is_forgotten_is_found_when_it_is_run(name, monkeypatch):
    monkeypatch.setattr(alongside, "correction_of", lambda *_: None)
    with pytest.raises(UnsupportedError, match="other results with other padding"):
        lowered(MIXED[name])(draw(3, 6))


def test_sizes_beyond_the_buckets_and_unknown_axes_are_refused():
    with pytest.raises(InputError, match="x:0 has size 9, and the buckets are 4, 8"):
        lowered(torch.tanh)(x=draw(9, 6))
    with pytest.raises(PipelineError, match=r"buckets are given for x:1, and open are x:0"):
        lowered(torch.tanh, {"x:1": (4,)})
    with pytest.raises(PipelineError, match="positive integers"):
        lowered(torch.tanh, (0, 4))


def random(*shape):
    return draw(*shape, seed=len(shape)).numpy()


def test_onnx_models_of_open_batch_are_padded():
    proto = conv_bn()
    run, expected = graphopt.lower(proto, "xla", buckets=(4,)), graphopt.lower(proto, "onnxruntime")
    for n in (1, 3, 4):
        x = random(n, 3, 8, 8)
        for got, own in zip(run(x), expected(x), strict=True):
            assert got.shape == own.shape and abs(got - own).max() < 1e-5 * abs(own).max()
    assert run.compilations == 1


def test_onnx_models_that_compute_with_a_size_and_mix_along_it_are_padded():
    nodes = [
        node("Shape", ["x"], ["sizes"], end=1),
        node("Cast", ["sizes"], ["count"], to=1),
        node("Div", ["x", "count"], ["shares"], name="share"),
        node("Softmax", ["shares"], ["y"], axis=0),
    ]
    proto = model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])])
    run, expected = graphopt.lower(proto, "xla", buckets=(4,)), graphopt.lower(proto, "onnxruntime")
    for n in (2, 3, 4):
        x = random(n, 3)
        assert abs(run(x)[0] - expected(x)[0]).max() < 1e-6
    assert run.compilations == 1


def test_ops_of_onnx_models_that_cannot_be_hidden_from_are_refused():
    nodes = [
        node("Cast", ["x"], ["places"], to=7),
        node("ScatterElements", ["all", "places", "x"], ["y"], name="put", reduction="add"),
    ]
    weights = {"all": np.zeros((9, 3), np.float32)}
    proto = model(nodes, [value("x", ["n", 3])], [value("y", [9, 3])], weights)
    run = graphopt.lower(proto, "xla", buckets=(4,))
    with pytest.raises(UnsupportedError, match=r"x:0 cannot be padded: put \(scatter-add\) says nothing about axes"):
        run(np.abs(random(3, 3)))


def test_programs_take_no_buckets():
    program = program_of(denoiser())
    with pytest.raises(UnsupportedError, match="takes no buckets"):
        program.lower("xla", buckets=(4,))


def test_a_unet_of_open_batch_is_compiled_once_for_each_bucket():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).eval()  # fmt: skip
    example = {"sample": draw(4, 3, 8, 8), "timestep": torch.tensor(3)}
    run = graphopt.lower(
        unet,
        "xla",
        example_inputs=example,
        dynamic_shapes={"sample": {0: BATCH}, "timestep": None},
        buckets=(4,),
        check=False,
    )
    require_equal(run, unet, lambda n: {**example, "sample": draw(n, 3, 8, 8, seed=n)}, (2, 3, 4), 1)


def test_a_transformer_of_diffusers_of_open_batch_is_compiled_once_for_each_bucket():
    from tiny_denoisers import tiny

    dit, example = tiny("dit")
    open_ = {k: {0: BATCH} if isinstance(v, torch.Tensor) and v.ndim else None for k, v in example.items()}
    run = graphopt.lower(dit, "xla", example_inputs=example, dynamic_shapes=open_, buckets=(4, 6), check=False)

    def make(n):
        return {k: v[:1].expand(n, *v.shape[1:]) * 1 if open_[k] else v for k, v in example.items()}

    require_equal(run, dit, make, (2, 3, 5), 2)


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


def tokens(batch, length=7):
    ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(batch))
    visible = torch.arange(length)[None] < torch.arange(2, batch + 2)[:, None]
    return {"input_ids": ids, "attention_mask": visible[:, None, None].expand(batch, 1, length, length) * 1.0}


def test_an_encoder_of_open_batch_is_compiled_once_for_each_bucket(bert):
    open_ = {"input_ids": {0: BATCH}, "attention_mask": {0: BATCH}}
    run = graphopt.lower(bert, "xla", example_inputs=tokens(4), dynamic_shapes=open_, buckets=(4, 8), check=False)
    require_equal(run, bert, tokens, (2, 3, 6), 2)
