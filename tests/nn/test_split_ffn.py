# SPDX-License-Identifier: Apache-2.0
"""Experts with a known answer: the feed-forward layers of a real model, split into eight experts of 192 units."""

from __future__ import annotations

import pytest
import torch
from expert_bounds import quantised_expert_and_bound

import anynpu
from anynpu.demo import measure, split_ffn

LAYERS = (0, 3, 29)
U = 2.0**-24  # half a unit in the last place of float32


@pytest.fixture(scope="module")
def inputs(smollm2_loaded):
    """What reaches the feed-forward layers of the model, 40 tokens of a text."""
    model, tokenizer = smollm2_loaded
    seen = {}
    hooks = [
        model.model.layers[i].mlp.register_forward_pre_hook(lambda module, args, i=i: seen.__setitem__(i, args[0][0]))
        for i in LAYERS
    ]
    with torch.inference_mode():
        model(torch.tensor([tokenizer(measure.sample_text(), add_special_tokens=False).input_ids[:40]]))
    for hook in hooks:
        hook.remove()
    return {i: x.clone() for i, x in seen.items()}


@pytest.mark.parametrize("index", LAYERS)
@torch.no_grad()
def test_routed_through_all_experts_the_dense_layer_comes_out(smollm2_loaded, inputs, index):
    """Float experts: what the routing operators gather and add up is the dense layer, to float32's rounding."""
    mlp, x = smollm2_loaded[0].model.layers[index].mlp, inputs[index]
    gate_up, down = split_ffn.split(mlp)
    weights, experts = split_ffn.moe(mlp, anynpu.W8A8()).route(x)
    assert (weights == 1).all()
    assert torch.equal(experts.sort(1).values, torch.arange(8, dtype=torch.int32).expand(len(x), 8))
    rows, row_index, counts, _ = anynpu.moe_init_routing(x, experts, expert_num=8, expert_tokens_num_type=1)
    results = []
    for own, first, second in zip(rows.split(counts.tolist()), gate_up, down, strict=True):
        gate, up = (own @ first.T).chunk(2, 1)
        results.append(torch.nn.functional.silu(gate) * up @ second.T)
    y = anynpu.moe_finalize_routing(torch.cat(results), None, None, None, weights, row_index, drop_pad_mode=2)
    # Two products of K terms and what lies between, each rounding at most U of the magnitudes that are added.
    dense = mlp.gate_proj.weight.double(), mlp.up_proj.weight.double(), mlp.down_proj.weight.double()
    gate, up = x.double() @ dense[0].T, x.double() @ dense[1].T
    silu = torch.nn.functional.silu(gate)
    gate_error, up_error = (600 * U * (x.double().abs() @ matrix.abs().T) for matrix in dense[:2])
    error = 1.1 * gate_error * up.abs() + silu.abs() * up_error + (silu * up).abs() * 1600 * U
    assert ((y - (silu * up) @ dense[2].T).abs() <= error @ dense[2].abs().T).all()


@pytest.mark.parametrize("config", [anynpu.W8A8(), anynpu.W4A8(group_size=64)], ids=["W8A8", "W4A8"])
@pytest.mark.parametrize("index", LAYERS)
@torch.no_grad()
def test_quantised_experts_give_the_sum_that_their_codes_stand_for(smollm2_loaded, inputs, index, config):
    mlp, x = smollm2_loaded[0].model.layers[index].mlp, inputs[index]
    expected = bound = 0
    for gate_up, down in zip(*split_ffn.split(mlp), strict=True):
        y, error = quantised_expert_and_bound(x, config, gate_up, down)
        expected, bound = expected + y, bound + error
    off = (split_ffn.moe(mlp, config)(x).double() - expected).abs()
    assert (off <= bound).all()
    assert ((expected - y).abs() > bound).any()  # an expert that is missing would show


def test_the_language_model_hardly_changes(smollm2_loaded):
    model, tokenizer = smollm2_loaded
    tokens = torch.tensor(tokenizer(measure.sample_text(), add_special_tokens=False).input_ids)
    eight = measure.perplexity(split_ffn.with_experts(model, anynpu.W8A8()), tokens, 128)
    assert eight == pytest.approx(measure.perplexity(model, tokens, 128), rel=0.03)
