"""Models on XLA by torch_xla: equal to torch, in its dtypes, and refused by name where they would not be.

`make test-torch-xla` makes an environment for it, beside the one in which the other tests run.
"""

import importlib.util

import pytest

torch = pytest.importorskip("torch")

from torch_functions import Counter, Function, check_numbers_and_texts_stay_in_their_places  # noqa: E402

import graphopt  # noqa: E402
from graphopt.backends.inputs import InputError  # noqa: E402
from graphopt.errors import MissingExtraError, UnsupportedError  # noqa: E402

MISSING = importlib.util.find_spec("torch_xla") is None or importlib.util.find_spec("jax") is not None
pytestmark = [
    pytest.mark.torch_xla,
    pytest.mark.skipif(MISSING, reason="torch_xla is not what is installed for XLA: make test-torch-xla"),
]


def lowered(module, *args, **options):
    return graphopt.lower(module.eval(), "xla", example_inputs=args, **options)


def largest_error(module, run, *args, **kwargs):
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
    got = torch.utils._pytree.tree_leaves(run(*args, **kwargs))
    assert [(x.dtype, x.shape, x.device) for x in got] == [(x.dtype, x.shape, x.device) for x in expected]
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(expected, got, strict=True))


def convolution():
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    return torch.nn.Sequential(*layers), (torch.randn(2, 3, 9, 9),), {}


def attention():
    attend = torch.nn.functional.scaled_dot_product_attention
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    mask = torch.randn(6, 6) > -1
    return Function(lambda q, k, v, m: (attend(q, k, v, m), attend(q, k, v, is_causal=True))), (q, k, v, mask), {}


def unet():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    return model, (torch.randn(2, 3, 8, 8), torch.tensor([5, 700])), {}


def conditioned_unet():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    inputs = {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }  # fmt: skip
    return model, (), inputs


def pixart():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=20, use_additional_conditions=False,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 6, 20),
        "timestep": torch.tensor([5, 600]), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return model, (), inputs


def sd3():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10), "timestep": torch.tensor([5.0, 600.0]),
    }  # fmt: skip
    return model, (), inputs


def experts(kind="batched_mm"):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2
    )
    config._experts_implementation = kind
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block, (torch.randn(1, 7, 32),), {}


def mixtral():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    config._experts_implementation = "batched_mm"
    model = transformers.MixtralForCausalLM(config)
    logits = Function(lambda ids, mask: model(input_ids=ids, attention_mask=mask, use_cache=False).logits)
    logits.model = model
    return logits, (torch.randint(0, 64, (2, 7)), torch.ones(2, 7, dtype=torch.int64)), {}


def test_numbers_and_texts_among_the_results_stay_in_their_places():
    check_numbers_and_texts_stay_in_their_places(lowered)


@pytest.mark.parametrize("make", [convolution, attention, unet, conditioned_unet, pixart, sd3, experts, mixtral])
def test_models_equal_torch_and_are_compiled_once(make, record_property):
    torch.manual_seed(0)
    model, args, kwargs = make()
    run = graphopt.lower(model.eval(), "xla", example_inputs=(args, kwargs))
    error = largest_error(model, run, *args, **kwargs)
    record_property("largest error", error)
    print(f"\n{make.__name__}: {error:.2g}, {run.notes[0]}")
    compiled = run.compilations
    assert error < 1e-5
    assert compiled <= 1
    run(*args, **kwargs)
    assert run.compilations == compiled


def test_a_model_in_bfloat16_is_as_near_to_float32_as_torch_is():
    torch.manual_seed(0)
    model, _, inputs = sd3()
    with torch.no_grad():
        expected = model.eval()(**inputs)[0]
        model.bfloat16()
        inputs = {k: v.bfloat16() for k, v in inputs.items()}
        own = model(**inputs)[0].float()
    got = graphopt.lower(model, "xla", example_inputs=((), inputs))(**inputs)[0]
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() < min(0.02 * expected.norm(), 2 * (own - expected).norm())


def test_it_says_what_it_runs_by():
    run = lowered(Function(lambda x: x + 1), torch.randn(3))
    assert repr(run).startswith("<CompiledLazy by torch_xla 2.9")
    assert run.notes == ("1 ops of distinct sizes and the whole agree with torch",)


def test_weights_are_copied_once_and_the_model_is_not_changed():
    module = torch.nn.Linear(4, 4)
    x = torch.randn(2, 4)
    run = lowered(module, x)
    before = run(x)
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(run(x), before)
    assert module.weight.device.type == "cpu"


def test_inputs_that_are_returned_and_results_returned_twice():
    def function(x):
        y = x * 2
        return x, y, {"again": y}

    x = torch.randn(3)
    assert largest_error(Function(function), lowered(Function(function), x), x) == 0


def test_wide_types_are_not_narrowed():
    module = Function(lambda x: (x * 3_000_000_000, x.double().sum(), x.cumsum(0), torch.arange(5) + x[0]))
    x = torch.arange(1, 7)
    assert largest_error(module, lowered(module, x), x) == 0


def test_other_sizes_are_compiled_once_each():
    module = Function(lambda x: torch.softmax(x * 1.7, -1))
    dim = torch.export.Dim("n", min=1, max=64)
    run = graphopt.lower(module, "xla", example_inputs=(torch.randn(4, 3),), dynamic_shapes=(({0: dim},),))
    for rows in (1, 5, 5, 7, 1, 4):
        x = torch.randn(rows, 3)
        assert largest_error(module, run, x) < 1e-6
    assert run.compilations == 4


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions_keep_their_groups_apart(groups):
    module = torch.nn.ConvTranspose2d(8, 4 * groups, 3, stride=2, padding=1, output_padding=1, groups=groups)
    x = torch.randn(2, 8, 5, 6)
    assert largest_error(module, lowered(module, x), x) < 1e-6


def test_ops_that_torch_xla_has_no_kernel_for_are_taken_apart():
    functional = torch.nn.functional

    def resampled(x, grid):
        return (
            functional.grid_sample(x, grid, align_corners=False), functional.unfold(x, 2),
            functional.interpolate(x, scale_factor=2, mode="bicubic"),
        )  # fmt: skip

    module, args = Function(resampled), (torch.randn(1, 2, 4, 4), torch.rand(1, 3, 3, 2) * 2 - 1)
    assert largest_error(module, lowered(module, *args), *args) < 1e-6


def refused(function, *args, **options):
    with pytest.raises(UnsupportedError) as raised:
        lowered(Function(function), *args, **options)
    return str(raised.value)


def test_random_numbers_are_refused_all_at_once_with_what_to_do():
    message = refused(lambda x: torch.randn_like(x) + torch.bernoulli(x), torch.rand(3))
    assert "aten.randn_like" in message
    assert "aten.rand" in message
    assert "give the noise as an input" in message


def test_dropout_in_attention_is_refused():
    attend = torch.nn.functional.scaled_dot_product_attention
    q = torch.randn(1, 2, 4, 8)
    assert "scaled_dot_product_attention" in refused(lambda q: attend(q, q, q, dropout_p=0.5), q)


def test_ops_that_torch_xla_leaves_to_the_cpu_are_refused():
    assert "no kernel for aten.linalg_eig" in refused(lambda x: torch.linalg.eigvals(x), torch.randn(3, 3))


def test_an_op_that_differs_is_named_with_its_operands(monkeypatch):
    from graphopt.backends.xla import lazy_check

    own = lazy_check.on_device

    def wrong(target, args, kwargs):
        return own(target, args, kwargs) + (target is torch.ops.aten.relu.default)

    monkeypatch.setattr(lazy_check, "on_device", wrong)
    assert "aten.relu.default) of operands (3, 4) differs from torch: by" in refused(torch.relu, torch.randn(3, 4))


def test_a_whole_that_differs_is_refused(monkeypatch):
    from graphopt.backends.xla import lazy_check, lazy_graph

    own = lazy_graph.recorded
    monkeypatch.setattr(lazy_graph, "recorded", lambda *args: own(*args) * 3)
    monkeypatch.setattr(lazy_check, "on_device", own)
    assert "output 0 of the whole differs: by" in refused(lambda x: x * 3, torch.randn(3, 4))


def test_an_op_that_leaves_the_device_in_a_later_call_is_an_error(monkeypatch):
    run = lowered(Function(lambda x: x * 2), torch.randn(2, 2))
    from graphopt.backends.xla import lazy_graph

    own = lazy_graph.recorded

    def leaving(target, args, kwargs):
        torch.linalg.eigvals(args[0])
        return own(target, args, kwargs)

    monkeypatch.setattr(lazy_graph, "recorded", leaving)
    with pytest.raises(UnsupportedError, match="aten::linalg_eig.* on the CPU"):
        run(torch.randn(2, 2))


def test_branches_and_sizes_from_data_are_refused():
    branches = lambda x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))  # noqa: E731
    assert "cond" in refused(branches, torch.ones(3))
    assert "nonzero" in refused(lambda x: x.nonzero(), torch.ones(3))


def test_a_program_that_writes_its_state_is_refused():
    with pytest.raises(UnsupportedError, match="count"):
        lowered(Counter(), torch.randn(3))


def test_experts_whose_tokens_are_counted_by_a_histogram_are_refused_by_name():
    block, args, _ = experts("grouped_mm")
    with pytest.raises(UnsupportedError, match=r"aten\.histc"):
        lowered(block, *args)


def test_what_needs_jax_says_so(tmp_path):
    run = lowered(Function(lambda x: x + 1), torch.randn(3))
    for ask in (lambda: run.save(tmp_path / "model"), lambda: run.compile_for("v5e:2x2"), run.function, run.hlo):
        with pytest.raises(MissingExtraError, match="need JAX and torchax"):
            ask()
    assert not list(tmp_path.iterdir())


def test_onnx_models_and_programs_say_that_they_need_jax(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(MissingExtraError, match="ONNX models need JAX and torchax, and here only torch_xla"):
        graphopt.lower(tmp_path / "m.onnx", "xla")


def test_other_platforms_and_a_second_precision_are_refused():
    assert "platform 'cpu' in this process, not on 'tpu'" in refused(torch.relu, torch.randn(3), platform="tpu")
    lowered(Function(torch.relu), torch.randn(3))
    assert "precision 'highest' in this process already" in refused(torch.relu, torch.randn(3), precision="high")


def test_wrong_calls_say_what_was_expected():
    run = lowered(Function(lambda x: x + 1), torch.randn(3))
    for args in ((torch.zeros(3, dtype=torch.int64),), (torch.zeros(4),), ()):
        with pytest.raises(InputError):
            run(*args)
