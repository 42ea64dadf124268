# SPDX-License-Identifier: Apache-2.0
"""The INT8 KV cache in transformers models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import anynpu

pytest.importorskip("transformers", reason="needs transformers")

import transformers  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

from anynpu.demo import measure  # noqa: E402
from anynpu.kv_cache import ATTENTION, Int8Cache, Int8CacheModel, KVScales, _starts, calibrate_kv  # noqa: E402

VOCABULARY = 101


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def tokens(count, seed=1):
    return torch.randint(1, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scales(model):
    return calibrate_kv(model, [tokens(900), tokens(300, seed=2)])


@pytest.fixture(autouse=True)
def no_gradients(model):
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        yield


def logits(model, ids, cache, *, chunk=None, **kwargs):
    """The logits of all positions, fed in chunks of so many tokens."""
    parts = ids.split(chunk or ids.shape[1], dim=1)
    return torch.cat([model(part, past_key_values=cache, **kwargs).logits for part in parts], dim=1)


def test_import_of_anynpu_does_not_import_transformers():
    command = "import anynpu, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_scales_cover_the_sample(model, scales):
    cache = DynamicCache()
    model(tokens(900)[None, :512], past_key_values=cache)
    for layer, k, v in zip(cache.layers, scales.k, scales.v, strict=True):
        assert (layer.keys[0].abs().amax(1) <= 127 * k * (1 + 1e-6)).all()
        assert (layer.values[0].abs().amax(1) <= 127 * v * (1 + 1e-6)).all()
    assert scales.k.shape == (3, 2, 16) and (scales.k > 0).all() and (scales.v > 0).all()


def test_scales_are_saved_and_loaded(scales, tmp_path):
    assert scales.save(tmp_path).name == "kv_cache_scales.safetensors"
    loaded = KVScales.load(tmp_path)
    assert torch.equal(loaded.k, scales.k) and torch.equal(loaded.v, scales.v)


def test_foreign_scales_are_refused(scales, tmp_path):
    for tensors, match in (
        ({"k": scales.k}, "KVScales.load: .*must hold k and v, got"),
        ({"k": scales.k, "v": scales.v, "x": scales.v + 1}, "KVScales.load: .*must hold k and v, got"),
        ({"k": scales.k, "v": scales.v[0]}, "KVScales: .*must have the same shape"),
        ({"k": scales.k.half(), "v": scales.v}, "KVScales: k must be float32, got float16"),
        ({"k": scales.k, "v": scales.v * torch.nan}, "KVScales: every value of v must be finite and above 0"),
        ({"k": scales.k * torch.inf, "v": scales.v}, "KVScales: every value of k must be finite and above 0"),
        ({"k": scales.k * 0, "v": scales.v}, "KVScales: every value of k must be finite and above 0"),
    ):
        save_file(tensors, tmp_path / "kv_cache_scales.safetensors")
        with pytest.raises((TypeError, ValueError), match=match):
            KVScales.load(tmp_path)


def test_strings_need_a_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer is required"):
        calibrate_kv(model, ["text"])
    with pytest.raises(ValueError, match="at least one token"):
        calibrate_kv(model, [])


@pytest.mark.parametrize("chunk", [None, 1, 37])
def test_logits_are_near_those_of_the_float_cache(model, scales, chunk):
    ids = tokens(150, seed=3)[None]
    expected = logits(model, ids, DynamicCache())
    result = logits(model, ids, Int8Cache(model, scales), chunk=chunk)
    assert model.config._attn_implementation == ATTENTION
    # 8-bit keys and values, each off by at most half a step of 1/127 of their range, move the logits by about 1 %
    assert (result - expected).norm() < 0.02 * expected.norm()
    assert (result - expected).norm() > 0


@pytest.mark.parametrize("chunk", [None, 1, 37])
def test_codes_and_dequantised_tensors_give_the_same(model, scales, chunk):
    """The attention function against sdpa on what the same cache dequantises."""
    ids = tokens(150, seed=3)[None]
    cache = Int8Cache(model, scales)
    result = logits(model, ids, cache, chunk=chunk)
    model.set_attn_implementation("sdpa")
    for layer in cache.layers:
        layer.reset()
    expected = logits(model, ids, cache, chunk=chunk)
    assert cache.get_seq_length() == 150
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_makes_no_tensor_on_another_device(model, scales):
    """A model on a GPU, as far as a CPU can tell: what is made without a device would be on meta."""
    ids, mask = tokens(40, seed=3).reshape(2, 20), torch.ones(2, 20, dtype=torch.int64)
    ids[0, :5] = mask[0, :5] = 0
    expected = logits(model, ids, Int8Cache(model, scales), attention_mask=mask)
    cache = Int8Cache(model, scales)
    with torch.device("meta"):
        result = logits(model, ids, cache, attention_mask=mask)
        cache.batch_repeat_interleave(2)
    assert torch.equal(result, expected)
    assert all(layer.keys.shape[0] == 4 and layer.keys.device.type == "cpu" for layer in cache.layers)


def test_padding_on_the_left(model, scales):
    short, long = tokens(20, seed=4), tokens(33, seed=5)
    ids = torch.stack([torch.cat([torch.zeros(13, dtype=torch.long), short]), long])
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    together = model(ids, attention_mask=mask, position_ids=positions, past_key_values=Int8Cache(model, scales)).logits
    for row, alone in ((0, short), (1, long)):
        expected = model(alone[None], past_key_values=Int8Cache(model, scales)).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], expected, rtol=1e-4, atol=1e-4)


def tril(seen=None, dtype=torch.bool):
    """Of 10 tokens: causal, without what a pair (first query, row) hides."""
    mask = torch.ones(1, 1, 10, 10, dtype=torch.bool).tril()
    for query, row in seen or ():
        mask[..., query:, row] = False
    return mask if dtype == torch.bool else torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(dtype).min)


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1, 1, 1]]),  # a hole
        torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]),  # padding on the right
        tril([(7, 3)]),
        tril([(5, row) for row in range(5)]),  # the second half is a text of its own
        tril([(5, row) for row in range(5)], torch.float32),
    ],
    ids=["hole", "right", "hidden", "packed", "float"],
)
def test_other_masks(model, scales, mask):
    ids = tokens(10)[None]
    result = model(ids, attention_mask=mask, past_key_values=Int8Cache(model, scales)).logits
    cache = Int8Cache(model, scales)
    model.set_attn_implementation("sdpa")
    expected = model(ids, attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inference", [False, True])  # whose tensors have no versions
def test_a_mask_that_was_changed_in_place(inference):
    layers = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.inference_mode(inference):
        mask = tril()
        for first in (0, 4, 7):
            mask[..., :first] = False
            read = [_starts(mask, layer) for layer in layers]
            assert read[0].tolist() == [first] and read[1] is read[0]


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
OTHERS = {
    "Mistral": {"sliding_window": 16},
    "Gemma2": {"sliding_window": 16, "attn_logit_softcapping": 0.5},
    "GptOss": {"sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Llama4Text": {"attention_chunk_size": 16, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "Qwen3Next": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(kind):
    """Windows, chunks, capped logits, sinks and layers of linear attention, against the model's own attention."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **OTHERS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "sinks" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    scales = calibrate_kv(model, [tokens(300)])
    ids = tokens(100, seed=3).reshape(2, 50)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    for chunk in (50, 7, 1):
        cache, own = Int8Cache(model, scales), Int8Cache(model, scales)
        steps = [(ids[:, i : i + chunk], mask[:, : i + chunk]) for i in range(0, 50, chunk)]
        results = [model(part, attention_mask=seen, past_key_values=cache).logits for part, seen in steps]
        model.set_attn_implementation("eager")
        expected = [model(part, attention_mask=seen, past_key_values=own).logits for part, seen in steps]
        result, expected = (torch.cat(each, 1)[mask.bool()] for each in (results, expected))
        assert (result - expected).norm() < 1e-3 * expected.norm()


def test_attention_that_is_not_taken_is_refused(model, scales):
    cache = Int8Cache(model, scales)
    with pytest.raises(NotImplementedError, match="anynpu_int8: s_aux is not implemented"):
        model(tokens(4)[None], past_key_values=cache, s_aux=torch.zeros(6))


def test_models_without_one_size_of_keys_and_values_are_refused():
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 24}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1}
    sizes = {**SMALL, "num_hidden_layers": 1, "num_key_value_heads": 4, "head_dim": 8, **latent, **experts}
    for config, match in (
        (transformers.DeepseekV3Config(**sizes), r"must have the same \[Nkv, D\], got"),
        (transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1), "caches no keys and v"),
    ):
        with pytest.raises(NotImplementedError, match=f"calibrate_kv: .*{match}"):
            calibrate_kv(transformers.AutoModelForCausalLM.from_config(config), [tokens(10)])
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    with pytest.raises(NotImplementedError, match="must be a decoder alone, it has an encoder"):
        calibrate_kv(transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes)), [tokens(10)])
    with pytest.raises(TypeError, match="must be a language model of transformers, got Linear"):
        calibrate_kv(torch.nn.Linear(2, 2), [tokens(10)])


def test_generate(model, scales):
    """generate() goes token by token; the same tokens come from one pass over the text with the same cache."""
    prompt = tokens(40, seed=6)[None]
    generated = model.generate(
        prompt, past_key_values=Int8Cache(model, scales), max_new_tokens=30, min_new_tokens=30, do_sample=False
    )
    assert generated.shape == (1, 70)
    scores = model(generated[:, :-1], past_key_values=Int8Cache(model, scales)).logits[0, 39:]
    best = scores.max(-1).values
    chosen = scores.gather(1, generated[0, 40:, None])[:, 0]
    assert (best - chosen).max() < 1e-3  # the choice, or a tie within rounding


def test_generate_with_beams_and_a_batch(model, scales):
    prompt = torch.stack([tokens(12, seed=7), tokens(12, seed=8)])
    cache = Int8Cache(model, scales)
    generated = model.generate(prompt, past_key_values=cache, max_new_tokens=9, num_beams=3, do_sample=False)
    assert generated.shape[0] == 2 and cache.layers[0].keys.shape[0] == 6


def test_other_caches_still_work_with_the_attention_function(model, scales):
    ids = tokens(50, seed=9)[None]
    expected = logits(model, ids, DynamicCache(), chunk=20)
    Int8Cache(model, scales)
    torch.testing.assert_close(logits(model, ids, DynamicCache(), chunk=20), expected)


def test_growth_crop_and_size(model, scales):
    cache = Int8Cache(model, scales)
    assert cache.bytes_per_token() == 3 * 2 * 2 * 16
    ids = tokens(700, seed=10)[None]
    expected = logits(model, ids, cache)
    assert cache.get_seq_length() == 700 and cache.layers[0].keys.shape[1] >= 700
    for layer in cache.layers:
        layer.crop(-100)
    again = logits(model, ids[:, 600:], cache)
    torch.testing.assert_close(again, expected[:, 600:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="crop wants"):
        cache.layers[0].crop(5)
    cache.reset()
    assert model(ids[:, :9].expand(3, 9), past_key_values=cache).logits.shape[0] == 3


def test_model_wrapper(model, scales):
    wrapped = Int8CacheModel(model, scales)
    ids = tokens(30)[None]
    torch.testing.assert_close(wrapped(ids).logits, logits(model, ids, Int8Cache(model, scales)))
    assert wrapped.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 34)


def test_scales_of_another_model_are_refused(model, scales):
    with pytest.raises(ValueError, match="scales must be of 3 layers, as the model, got 2"):
        Int8Cache(model, KVScales(scales.k[:2], scales.v[:2]))
    with pytest.raises(ValueError, match="Nkv, D of the scales"):
        model(tokens(4)[None], past_key_values=Int8Cache(model, KVScales(scales.k[..., :8], scales.v[..., :8])))


def test_perplexity_of_smollm2_is_within_one_percent(smollm2_loaded):
    model, tokenizer = smollm2_loaded
    text = measure.sample_text()
    sample = tokenizer(text[20_000:], add_special_tokens=False).input_ids[:2048]
    measured = torch.tensor(tokenizer(text[:20_000], add_special_tokens=False).input_ids)
    scales = anynpu.calibrate_kv(model, [torch.tensor(sample)])
    expected = measure.perplexity(model, measured, 1024)
    result = measure.perplexity(Int8CacheModel(model, scales), measured, 1024)
    assert abs(result / expected - 1) < 0.01
