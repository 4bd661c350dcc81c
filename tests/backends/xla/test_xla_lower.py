"""Models on XLA: equal to torch, in its dtypes, and refused where they would not be."""

from xla_support import Counter, Function, torch  # first: it skips where JAX is missing  # isort: skip

import pytest
from torch_functions import check_numbers_and_texts_stay_in_their_places

import graphopt
from graphopt.backends.inputs import InputError
from graphopt.errors import PipelineError, UnsupportedError


def lowered(module, *args, **options):
    return graphopt.lower(module.eval(), "xla", example_inputs=args, **options)


def largest_error(module, run, *args, **kwargs):
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
    got = torch.utils._pytree.tree_leaves(run(*args, **kwargs))
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(expected, got, strict=True))


def test_conv_batch_norm_and_relu_equal_torch():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    x = torch.randn(2, 3, 9, 9)
    assert largest_error(module.eval(), lowered(module, x), x) < 1e-6


@pytest.mark.parametrize("kind", ["grouped_mm", "batched_mm"])
def test_experts_of_transformers_equal_torch(kind):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2
    )
    config._experts_implementation = kind
    torch.manual_seed(0)
    block = MixtralSparseMoeBlock(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(1, 7, 32)
    assert largest_error(block, lowered(block, x), x) < 1e-5


def test_a_unet_of_diffusers_equals_torch():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    ).eval()  # fmt: skip
    args = (torch.randn(2, 3, 8, 8), torch.tensor([5, 700]))
    run = lowered(unet, *args)
    assert largest_error(unet, run, *args) < 1e-5
    assert run.compilations == 1


def test_branches_are_run_on_xla_and_still_traced_afterwards():
    module = Function(lambda x: torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,)))
    for sign in (1.0, -1.0):
        x = sign * torch.ones(3)
        assert largest_error(module, lowered(module, x), x) == 0


def test_numbers_and_texts_among_the_results_stay_in_their_places():
    check_numbers_and_texts_stay_in_their_places(lowered)


def test_other_sizes_are_compiled_once_each():
    module = Function(lambda x: torch.softmax(x, -1))
    dim = torch.export.Dim("n", min=1, max=64)
    run = graphopt.lower(module, "xla", example_inputs=(torch.randn(4, 3),), dynamic_shapes=(({0: dim},),))
    for rows in (1, 5, 5, 7, 1):
        x = torch.randn(rows, 3)
        assert largest_error(module, run, x) < 1e-6
    assert run.compilations == 3


def test_wide_types_are_not_narrowed():
    module = Function(lambda x: (x * 3_000_000_000, x.double().sum(), x.cumsum(0), torch.arange(5) + x[0]))
    x = torch.arange(1, 7)
    assert largest_error(module, lowered(module, x), x) == 0


def test_random_numbers_are_refused_with_what_to_do():
    with pytest.raises(UnsupportedError, match=r"aten\.randn_like.*give the noise as an input"):
        lowered(Function(lambda x: x + torch.randn_like(x)), torch.randn(3))


def test_all_ops_without_a_kernel_are_named_at_once():
    module = Function(lambda x: (torch.randn_like(x), torch.bernoulli(x)))
    with pytest.raises(UnsupportedError, match=r"aten\.rand\.default.*aten\.randn_like"):
        lowered(module, torch.rand(3))


def test_an_op_that_torch_takes_apart_for_other_sizes_alone_is_named():
    module = Function(lambda x: torch.nn.functional.adaptive_max_pool2d(x, (3, 2)))
    with pytest.raises(UnsupportedError, match=r"no kernel for aten\.adaptive_max_pool2d\.default"):
        lowered(module, torch.randn(1, 2, 7, 5))


def test_a_program_that_writes_its_state_is_refused():
    with pytest.raises(UnsupportedError, match="count"):
        lowered(Counter(), torch.randn(3))


def test_wrong_calls_say_what_was_expected():
    run = lowered(Function(lambda x: x + 1), torch.randn(3))
    with pytest.raises(InputError, match="float32"):
        run(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError):
        run(torch.zeros(4))
    with pytest.raises(InputError):
        run()


def test_wrong_options_are_errors():
    module = Function(lambda x: x + 1)
    with pytest.raises(PipelineError, match="platform"):
        lowered(module, torch.randn(3), platform="npu")
    with pytest.raises(UnsupportedError, match="no device of platform 'tpu'"):
        lowered(module, torch.randn(3), platform="tpu")


def test_products_of_groups_stay_whole_for_xla():
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = transformers.MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=4)
    config._experts_implementation = "grouped_mm"
    block = MixtralSparseMoeBlock(config).eval()
    result = graphopt.optimize(block, "lower-moe", target="xla", example_inputs=(torch.randn(1, 5, 16),))
    assert not result.report.applications
