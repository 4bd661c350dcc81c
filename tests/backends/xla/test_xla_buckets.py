"""Open sizes padded to buckets: what torch computes, few compilations, and refusals that name what couples."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import pytest
from onnx_models import conv_bn, model, node, value
from torch.export import Dim

pytest.importorskip("diffusers")
from xla_programs import denoiser, program_of

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.backends.xla import buckets as module
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


COUPLED = {
    "softmax": (lambda x: x.softmax(0), r"x:0 cannot be padded: softmax .*all of its indices"),
    "mean": (lambda x: x - x.mean(0), "mean .*all of its indices"),
    "cumsum": (lambda x: x.flip(1).cumsum(0), "cumsum .*couples"),
    "flip": (lambda x: x.flip(0), r"flip \(rev\) couples"),
    "sort": (lambda x: x.sort(0).values, r"sort \(sort\) couples"),
    "concat": (lambda x: torch.cat([x, x]), r"cat \(concatenate\) couples"),
    "contraction": (lambda x: x.t() @ x, "all of its indices"),
    "scores": (lambda x: x @ x.t(), "two dimensions"),
    "outer axis": (lambda x: x.t().reshape(-1), r"\(reshape\) couples"),
    "size": (lambda x: x / x.shape[0], "number that depends on the size"),
    "last row": (lambda x: x + x[-1:], r"\(slice\)"),
    "norm": (lambda x: torch.nn.functional.group_norm(x.t()[None], 2), "group_norm .*all of its"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "reason"), COUPLED.values(), ids=COUPLED)
def test_what_couples_the_axis_is_refused_by_name(function, reason):
    run = lowered(function, check=False)
    with pytest.raises(UnsupportedError, match=reason):
        run(draw(3, 6))
    assert run.compilations == 0


def test_padding_that_reaches_what_is_kept_is_found_when_it_is_run(monkeypatch):
    monkeypatch.setattr(module, "require_apart", lambda *_: None)
    with pytest.raises(UnsupportedError, match="other results with other padding"):
        lowered(lambda x: x.flip(0).cumsum(0))(draw(3, 6))


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


def test_sizes_that_an_onnx_model_computes_with_are_refused():
    nodes = [
        node("Shape", ["x"], ["sizes"], end=1),
        node("Cast", ["sizes"], ["count"], to=1),
        node("Div", ["x", "count"], ["y"], name="share"),
    ]
    run = graphopt.lower(model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])]), "xla", buckets=(4,))
    with pytest.raises(UnsupportedError, match="x:0 cannot be padded: share .*depends on the size"):
        run(random(3, 3))
    nodes = [node("Softmax", ["x"], ["y"], name="shares", axis=0)]
    run = graphopt.lower(model(nodes, [value("x", ["n", 3])], [value("y", ["n", 3])]), "xla", buckets=(4,))
    with pytest.raises(UnsupportedError, match="x:0 cannot be padded: shares .*all of its indices"):
        run(random(3, 3))


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
        unet, "xla", example_inputs=example, dynamic_shapes={"sample": {0: BATCH}, "timestep": None}, buckets=(4,),
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


def test_a_sequence_that_attends_to_itself_is_refused(bert):
    open_ = {"input_ids": {1: Dim("length", min=2, max=32)}}
    ids = {"input_ids": tokens(4)["input_ids"]}
    run = graphopt.lower(bert, "xla", example_inputs=ids, dynamic_shapes=open_, buckets=(8,), check=False)
    with pytest.raises(UnsupportedError, match="input_ids:1 cannot be padded: .* in two dimensions"):
        run(**ids)
