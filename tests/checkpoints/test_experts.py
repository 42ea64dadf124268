# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts in folders of other producers, against models with a plain layer for each matrix."""

from __future__ import annotations

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import logits, mixture_of

import anynpu
from anynpu.nn import LinearExperts, RoutedExperts

CASES = {
    "gptq, Qwen3": lambda folder: folders.gptq(mixture_of("qwen3_moe"), folder),
    "gptq, Mixtral, act-order": lambda folder: folders.gptq(mixture_of("mixtral"), folder, act_order=True),
    "gptq, 8 bits": lambda folder: folders.gptq(mixture_of("qwen3_moe"), folder, bits=8, group=-1),
    "gptq, an expert in float": lambda folder: folders.gptq(
        mixture_of("qwen3_moe"), folder, skip=("lm_head", "model.layers.1.mlp.experts.3.down_proj")
    ),
    "awq, Qwen2": lambda folder: folders.awq(mixture_of("qwen2_moe"), folder, shards=2),
    "awq, Mixtral": lambda folder: folders.awq(mixture_of("mixtral"), folder),
    "pack-quantized, DeepSeek-V3": lambda folder: folders.compressed_weights(mixture_of("deepseek_v3"), folder),
    "pack-quantized, 8 bits": lambda folder: folders.compressed_weights(mixture_of("olmoe"), folder, bits=8, group=0),
    "W8A8, Qwen3": lambda folder: folders.compressed_int8(mixture_of("qwen3_moe"), folder),
    "W8A8, Mixtral": lambda folder: folders.compressed_int8(mixture_of("mixtral"), folder),
    "W8A8, DeepSeek-V2": lambda folder: folders.compressed_int8(mixture_of("deepseek_v2"), folder),
    "W8A8, GLM-4": lambda folder: folders.compressed_int8(mixture_of("glm4_moe"), folder),
    "W8A8 static": lambda folder: folders.compressed_int8(mixture_of("qwen2_moe"), folder, static=True),
}


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, (RoutedExperts, LinearExperts))]


def require_close(got, want, tolerance):
    assert torch.allclose(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_dequantised_model(case, tmp_path):
    want = logits(CASES[case](tmp_path))
    model = anynpu.load_checkpoint(tmp_path)
    kind = RoutedExperts if "W8A8" in case and "static" not in case else LinearExperts
    assert experts_of(model)
    assert all(type(each) is kind for each in experts_of(model))
    # As in test_load.py: sums in another order, and int8 activations at a border between two codes.
    require_close(logits(model), want, 2e-2 if "W8A8" in case else 2e-5)


@pytest.mark.parametrize("kind", folders.MIXTURES)
def test_float_experts(kind, tmp_path):
    model = mixture_of(kind)
    folders.write(model, tmp_path, {}, None)
    loaded = anynpu.load_checkpoint(tmp_path)
    assert not experts_of(loaded)
    require_close(logits(loaded), logits(model), 2e-5)
