"""Models whose tokens attend to each other, of open length: what torch computes, one compilation for each bucket."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import pytest
from torch.export import Dim

import graphopt

transformers = pytest.importorskip("transformers")

LENGTH = Dim("length", min=2, max=32)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert():
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **SMALL)
    return transformers.BertModel(config)


def bert_of_products():
    """Attention by products and a softmax, with a mask that is added."""
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **SMALL)
    return transformers.BertModel._from_config(config, attn_implementation="eager")


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=32
    )
    return transformers.DistilBertModel(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, use_cache=False, bos_token_id=48, eos_token_id=49
    )
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return transformers.T5EncoderModel(config)


def clip():
    """Its second result is read at the position of the last token."""
    config = transformers.CLIPTextConfig(
        vocab_size=50, max_position_embeddings=32, projection_dim=8, bos_token_id=48, eos_token_id=49, **SMALL
    )
    return transformers.CLIPTextModelWithProjection(config)


def tokens(length, *, masked):
    ids = torch.randint(0, 48, (2, length), generator=torch.Generator().manual_seed(length))
    ids[:, -1] = 49
    mask = torch.ones(2, length, dtype=torch.int64)
    mask[1, max(length // 2, 1) :] = 0
    return {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}


def require_equal(run, model, inputs):
    with torch.no_grad():
        found, expected = run(**inputs), model(**inputs)
    if isinstance(found, dict):
        found, expected = found.values(), expected.values()
    for got, own in zip(found, expected, strict=True):
        assert got.shape == own.shape
        assert float((got - own).abs().max() / own.abs().max()) < 1e-5


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("make", [bert, bert_of_products, distilbert, gpt2, t5, clip])
def test_text_models_of_open_length_are_compiled_once(make, masked):
    torch.manual_seed(0)
    model = make().eval()
    example = tokens(6, masked=masked)
    run = graphopt.lower(
        model, "xla", example_inputs=example, dynamic_shapes={k: {1: LENGTH} for k in example}, buckets=(8,)
    )
    for length in (5, 8, 3):
        require_equal(run, model, tokens(length, masked=masked))
    assert run.compilations == 1


def test_a_row_whose_mask_hides_all_is_what_it_is_without_padding():
    """Attention to nothing is the mean over as many tokens as there are."""
    torch.manual_seed(0)
    model = bert_of_products().eval()
    example = tokens(6, masked=True)
    run = graphopt.lower(
        model, "xla", example_inputs=example, dynamic_shapes={k: {1: LENGTH} for k in example}, buckets=(8,)
    )
    hidden = tokens(5, masked=True)
    hidden["attention_mask"][0] = 0
    require_equal(run, model, hidden)


def test_batch_and_length_are_padded_together():
    torch.manual_seed(0)
    model = bert().eval()
    batch = Dim("batch", min=2, max=16)
    example = tokens(6, masked=True)
    example = {k: torch.cat([v, v.flip(0)])[:3] for k, v in example.items()}
    run = graphopt.lower(
        model, "xla", example_inputs=example, dynamic_shapes={k: {0: batch, 1: LENGTH} for k in example},
        buckets={"input_ids:0": (4,), "input_ids:1": (8,)},
    )  # fmt: skip
    for count, length in ((3, 6), (4, 5), (2, 8), (4, 8)):
        given = tokens(length, masked=True)
        require_equal(run, model, {k: torch.cat([v, v.flip(0)])[:count] for k, v in given.items()})
    assert run.compilations == 1


@pytest.mark.parametrize("name", ["pixart", "sd3"])
def test_denoisers_of_prompts_of_open_length_are_compiled_once(name):
    pytest.importorskip("diffusers")
    from tiny_denoisers import tiny

    model, example = tiny(name)
    prompt = example["encoder_hidden_states"]

    def given(length):
        drawn = torch.randn(prompt.shape[0], length, prompt.shape[2], generator=torch.Generator().manual_seed(length))
        inputs = {**example, "encoder_hidden_states": drawn}
        if name == "pixart":
            inputs["encoder_attention_mask"] = (torch.arange(length) < length - 1).expand(len(drawn), length) * 1
        return inputs

    inputs = given(6)
    open_ = {"encoder_hidden_states", "encoder_attention_mask"}
    run = graphopt.lower(
        model, "xla", example_inputs=inputs, dynamic_shapes={k: {1: LENGTH} if k in open_ else None for k in inputs},
        buckets=(8,), check=False,
    )  # fmt: skip
    for length in (5, 7, 8):
        require_equal(run, model, given(length))
    assert run.compilations == 1
