# SPDX-License-Identifier: Apache-2.0
"""Quantised mixtures of experts against the float blocks of transformers, and against what their codes stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from expert_bounds import expert_and_bound, quantised_expert_and_bound

import anynpu
from anynpu.nn import Int4Linear, QuantLinear, QuantMoE
from anynpu.quantization.moe_blocks import moe_layer, quant_experts, router_of

pytest.importorskip("transformers", reason="the blocks are those of transformers")

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GraniteMoeConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.granitemoe.modeling_granitemoe import GraniteMoeMoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 3}
BLOCKS = {
    "Mixtral": lambda: MixtralSparseMoeBlock(
        MixtralConfig(**SIZES, intermediate_size=32, num_local_experts=6, num_experts_per_tok=2)
    ),
    "Granite": lambda: GraniteMoeMoE(
        GraniteMoeConfig(**SIZES, intermediate_size=32, num_local_experts=6, num_experts_per_tok=2)
    ),
    "Qwen3": lambda: Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=8, norm_topk_prob=True)),
    "Qwen3, not normalised": lambda: Qwen3MoeSparseMoeBlock(
        Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=8, norm_topk_prob=False)
    ),
    "Qwen2": lambda: Qwen2MoeSparseMoeBlock(
        Qwen2MoeConfig(**SIZES, **EXPERTS, num_experts=8, shared_expert_intermediate_size=96)
    ),
    "DeepSeek-V2": lambda: DeepseekV2Moe(
        DeepseekV2Config(
            **SIZES, **EXPERTS, n_routed_experts=8, n_shared_experts=2, topk_method="group_limited_greedy",
            n_group=4, topk_group=2, routed_scaling_factor=1.5,
        )
    ),  # fmt: skip
    "DeepSeek-V3": lambda: DeepseekV3MoE(
        DeepseekV3Config(
            **SIZES, **EXPERTS, n_routed_experts=8, n_shared_experts=1, n_group=4, topk_group=2,
            routed_scaling_factor=2.5, norm_topk_prob=True,
        )
    ),
}  # fmt: skip
CONFIGS = {"W8A8": anynpu.W8A8(), "W4A8": anynpu.W4A8(group_size=32), "W4A8 by channel": anynpu.W4A8(group_size=0)}
BFLOAT16 = 2.0**-8
ROUTER = 2.0**-20  # relative error of a float32 router's weights


def block_of(name):
    torch.manual_seed(0)
    block = BLOCKS[name]().eval()
    for parameter in block.parameters():
        parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
    if name == "DeepSeek-V3":
        block.gate.e_score_correction_bias.uniform_(-0.2, 0.2)
    return block


def tokens(*shape):
    return torch.randn(*shape, 64, generator=torch.Generator().manual_seed(7))


def block_and_bound(block, x, config, expert):
    """What a block makes of tokens [T, 64] in float64, and how far its quantised layer may be from it.

    ``expert(x, config, gate_up, down)`` gives that of one expert. The routers compute in float32.
    """
    wide = copy.deepcopy(block).double()
    expected, bound = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
    _, weights, chosen = router_of(wide)(x.double())
    for row, experts in enumerate(chosen.tolist()):
        for weight, index in zip(weights[row], experts, strict=True):
            own = block.experts.gate_up_proj[index], block.experts.down_proj[index]
            y, error = expert(x[row : row + 1], config, *own)
            expected[row] += weight * y[0]
            bound[row] += weight.abs() * (error + ROUTER * y.abs())[0]
    shared = getattr(block, "shared_experts", None) or getattr(block, "shared_expert", None)
    if shared is not None:
        gate_up = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
        y, error = expert(x, config, gate_up, shared.down_proj.weight)
        gate = wide.shared_expert_gate(x.double()).sigmoid() if hasattr(wide, "shared_expert_gate") else 1
        expected += gate * y
        bound += error + (ROUTER + BFLOAT16) * (y.abs() + error)  # the gate is less than 1
    return expected, bound


def float_expert_and_bound(x, *arguments):
    return expert_and_bound(x.double(), *arguments)


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_the_bounds_are_those_of_the_block(name):
    block, x = block_of(name), tokens(10)
    expected, _ = block_and_bound(block, x, CONFIGS["W8A8"], float_expert_and_bound)
    whole = copy.deepcopy(block).double()(x.double().unsqueeze(0)).reshape(10, 64)
    torch.testing.assert_close(expected, whole, rtol=1e-6, atol=1e-6)  # some routers stay in float32


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_is_as_close_to_the_float_block_as_its_codes_allow(name, config, isa):
    block, x = block_of(name), tokens(2, 5)
    y = moe_layer(block, config)(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    expected, bound = block_and_bound(block, x.reshape(10, 64), config, float_expert_and_bound)
    assert ((y.reshape(10, 64) - expected).abs() <= bound).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_computes_what_its_codes_stand_for(name, config, isa):
    block, x = block_of(name), tokens(10)
    expected, bound = block_and_bound(block, x, config, quantised_expert_and_bound)
    assert ((moe_layer(block, config)(x) - expected).abs() <= bound).all()
    of_floats, _ = block_and_bound(block, x, config, float_expert_and_bound)
    assert ((of_floats - expected).abs() > bound).any()  # the bound tells codes from the floats that they replace


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_routes_as_the_block_does(name):
    block, x = block_of(name), tokens(20)
    weights, experts = moe_layer(block, CONFIGS["W8A8"]).route(x)
    _, expected, chosen = router_of(block)(x)
    order, other = experts.argsort(1), chosen.argsort(1)
    assert torch.equal(experts.gather(1, order).long(), chosen.gather(1, other))
    torch.testing.assert_close(weights.gather(1, order), expected.gather(1, other), rtol=1e-5, atol=1e-6)


def test_thread_counts_give_the_same_bits(each_thread_count):
    layer, x = moe_layer(block_of("DeepSeek-V3"), CONFIGS["W4A8"]), tokens(9)
    first, *others = each_thread_count(lambda: layer(x))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cast_modules_keep_their_scales(dtype):
    layer = moe_layer(block_of("Qwen2"), CONFIGS["W4A8"])
    before = {name: buffer.clone() for name, buffer in layer.state_dict().items()}
    y = layer.to(dtype)(tokens(3).to(dtype))
    assert y.dtype == dtype
    for name, buffer in layer.state_dict().items():
        assert torch.equal(buffer, before[name]) and buffer.dtype == before[name].dtype, name
    torch.testing.assert_close(y.float(), layer(tokens(3).to(dtype).float()), rtol=2 * BFLOAT16, atol=2 * BFLOAT16)


def model(name="DeepSeek-V3"):
    return torch.nn.ModuleDict({"attention": torch.nn.Linear(64, 64), "mlp": block_of(name)})


def test_quantize_replaces_blocks():
    both = anynpu.quantize_(model(), anynpu.W8A8())
    assert isinstance(both["mlp"], QuantMoE) and isinstance(both["attention"], QuantLinear)
    int4 = anynpu.quantize_(model(), anynpu.W4A8(group_size=32))
    assert isinstance(int4["mlp"], QuantMoE) and isinstance(int4["attention"], Int4Linear)
    assert int4["mlp"].routed.bits == 4
    skipped = anynpu.quantize_(model(), anynpu.W8A8(), skip=("mlp",))
    assert type(skipped["mlp"]).__name__ == "DeepseekV3MoE"
    assert isinstance(skipped["mlp"].shared_experts.up_proj, QuantLinear)
    compressed = anynpu.quantize_(model(), anynpu.W8A8Compressed())
    assert type(compressed["mlp"]).__name__ == "DeepseekV3MoE"
    whole = anynpu.quantize_(block_of("Mixtral"), anynpu.W8A8())
    assert isinstance(whole, QuantMoE)


@pytest.mark.parametrize("name", ["Qwen2", "DeepSeek-V3"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_save_and_load(name, config, tmp_path):
    saved = anynpu.quantize_(model(name), config)
    anynpu.save_quantized(saved, tmp_path)
    loaded = anynpu.load_quantized(model(name), tmp_path)
    assert loaded["mlp"].fields() == saved["mlp"].fields()
    assert torch.equal(loaded["mlp"](tokens(4)), saved["mlp"](tokens(4)))
    again = anynpu.load_quantized(saved, tmp_path)
    assert torch.equal(again["mlp"](tokens(4)), loaded["mlp"](tokens(4)))
    with pytest.raises(ValueError, match="layer 'mlp' must be a block of experts, got Linear"):
        anynpu.load_quantized(torch.nn.ModuleDict({"attention": torch.nn.Linear(64, 64), "mlp": torch.nn.Linear(1, 1)}),
                              tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match=r"must have \(experts, hidden\) = \(8, 64\), got \(6, 64\)"):
        anynpu.load_quantized(model("Mixtral"), tmp_path)


def test_state_dict_and_copies():
    layer = moe_layer(block_of("Qwen2"), CONFIGS["W8A8"])
    other = QuantMoE(**layer.fields())
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(tokens(3)), layer(tokens(3)))
    assert torch.equal(copy.deepcopy(layer)(tokens(3)), layer(tokens(3)))


def test_other_blocks_are_refused():
    with pytest.raises(ValueError, match="Linear is no block of experts that anynpu knows"):
        moe_layer(torch.nn.Linear(2, 2), CONFIGS["W8A8"])
    block = block_of("Mixtral")
    block.experts.act_fn = torch.nn.GELU()
    with pytest.raises(ValueError, match="layer 'mlp': QuantMoE: experts must activate with SiLU, got GELU"):
        anynpu.quantize_(torch.nn.ModuleDict({"mlp": block}), anynpu.W8A8())
    block = block_of("DeepSeek-V3")
    block.gate.norm_topk_prob = False
    with pytest.raises(ValueError, match="sigmoid scores want norm_topk_prob"):
        moe_layer(block, CONFIGS["W8A8"])
    with pytest.raises(ValueError, match="group_size must divide hidden and intermediate, 64 and 32, got 48"):
        anynpu.nn.QuantExperts(2, 64, 32, 4, 48)
    block = block_of("Mixtral")
    block.experts.down_proj.data[1, 2, 3] = torch.inf
    with pytest.raises(ValueError, match="layer 'mlp': W4A8: weight must be finite in float32"):
        anynpu.quantize_(torch.nn.ModuleDict({"mlp": block}), anynpu.W4A8(group_size=32))
    with pytest.raises(ValueError, match="W4A8: group_size must be 0 or positive, got -1"):
        anynpu.W4A8(group_size=-1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scoring": "relu"}, "scoring must be one of softmax, renormalised, sigmoid, got 'relu'"),
        ({"k": 5}, r"k must be in \[1, experts\] = \[1, 4\], got 5"),
        ({"shared_gated": True}, "shared_gated needs shared > 0, got 0"),
        ({"scoring": "renormalised", "group_count": 2}, "groups of experts are for softmax and sigmoid scoring"),
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"group_size": 16}, "group_size must be 0 with 8 bits, got 16"),
        ({"bits": 4, "hidden": 12}, "4 bits want hidden % 8 == 0"),
        ({"intermediate": 0}, "sizes must be positive"),
    ],
)
def test_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        QuantMoE(**{"hidden": 32, "intermediate": 16, "experts": 4, "k": 2, **arguments})


def four_experts():
    return quant_experts(torch.randn(4, 32, 32), torch.randn(4, 32, 16), torch.nn.SiLU(), anynpu.W8A8())


@pytest.mark.parametrize("shape", [(4, 16), (2, 64), (4, 8, 4)])
def test_tokens_of_another_size_are_refused(shape):
    layer = QuantMoE.from_experts(four_experts(), torch.randn(4, 32), 2)
    with pytest.raises(ValueError, match="QuantMoE: the last axis of x must be 32, got shape"):
        layer(torch.randn(shape))


def test_router_of_another_shape_is_refused():
    experts = four_experts()
    with pytest.raises(ValueError, match=r"router must have shape .*\[4, 32\].*, got \(4, 31\)"):
        QuantMoE.from_experts(experts, torch.randn(4, 31), 2)


def test_autocast_leaves_the_router_in_float32():
    layer = anynpu.nn.QuantMoE(hidden=32, intermediate=16, experts=4, k=2, shared=16, shared_gated=True)
    for buffer in (layer.router, layer.shared_gate):
        torch.nn.init.normal_(buffer)
    x = torch.randn(5, 32, dtype=torch.bfloat16)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
        assert all(map(torch.equal, layer.route(x.float()), layer.route(x)))


def test_float_experts_learn_and_take_no_tokens():
    layer = anynpu.nn.LinearExperts(4, 32, 16, torch.float32)
    x, chosen, weights = torch.randn(5, 32), torch.tensor([[0, 2], [3, 0], [2, 3], [0, 3], [3, 2]]), torch.rand(5, 2)
    expected = torch.stack(
        [
            sum(w * layer[e](row) for e, w in zip(*each, strict=True))
            for row, *each in zip(x, chosen, weights, strict=True)
        ]
    )
    y = layer(x, chosen, weights)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    got = [layer[e].down_proj.weight.grad for e in (0, 2, 3)]
    layer.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(got, [layer[e].down_proj.weight.grad for e in (0, 2, 3)])
    assert layer(x[:0], chosen[:0], weights[:0]).shape == (0, 32)


def dequantised(own, name):
    """Float weights ``[E, N, K]`` of quantised experts."""
    codes, scale = own.codes(name)
    return (codes.unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1).unflatten(0, (own.experts, -1))


def with_weights_of(block, layer):
    """The float block with the weights that the codes of its quantised layer stand for."""
    block = copy.deepcopy(block)
    block.experts.gate_up_proj.data = dequantised(layer.routed, "gate_up")
    block.experts.down_proj.data = dequantised(layer.routed, "down")
    shared = getattr(block, "shared_experts", None) or getattr(block, "shared_expert", None)
    if shared is not None:
        gate, up = dequantised(layer.shared, "gate_up")[0].chunk(2)
        shared.gate_proj.weight.data, shared.up_proj.weight.data = gate, up
        shared.down_proj.weight.data = dequantised(layer.shared, "down")[0]
    return block


def require_same_gradients(got, want):
    """Both in float32: sums of at most 1000 products, each rounded by half a unit in the last place."""
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1000 * 2.0**-24 * float(other.abs().max()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_the_float_block(name, config):
    block = block_of(name)
    layer, x, gradient = moe_layer(block, config), tokens(2, 9).requires_grad_(), torch.randn(2, 9, 64)
    y = layer(x)
    assert torch.equal(y, layer(x.detach()))
    expected = with_weights_of(block, layer)(x)
    require_same_gradients(*(torch.autograd.grad(each, x, gradient) for each in (y, expected)))
    half = x.detach().bfloat16().requires_grad_()
    layer(half).sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()


@pytest.mark.parametrize("linear", [False, True], ids=["RoutedExperts", "LinearExperts"])
def test_gradients_through_routed_experts(linear):
    block = block_of("Mixtral")
    own = moe_layer(block, anynpu.W8A8()).routed
    experts = anynpu.nn.RoutedExperts.from_experts(own)
    if linear:
        experts = anynpu.nn.LinearExperts(own.experts, own.hidden, own.intermediate, torch.float32)
        for each, gate_up, down in zip(experts, dequantised(own, "gate_up"), dequantised(own, "down"), strict=True):
            each.gate_proj.weight.data, each.up_proj.weight.data = gate_up.chunk(2)
            each.down_proj.weight.data = down
        anynpu.quantize_(experts.requires_grad_(False), anynpu.W8A16())
    x, gradient = tokens(9).requires_grad_(), torch.randn(9, 64)
    chosen, weights = torch.tensor([[0, 2], [3, 0], [2, 3]] * 3), torch.rand(9, 2, requires_grad=True)
    got = torch.autograd.grad(experts(x, chosen, weights), (x, weights), gradient)
    expected = with_weights_of(block, moe_layer(block, anynpu.W8A8())).experts(x, chosen, weights)
    require_same_gradients(got, torch.autograd.grad(expected, (x, weights), gradient))
    with torch.no_grad():
        assert not experts(x, chosen, weights).requires_grad


def test_adapters_train_below_quantised_experts():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**SIZES | {"num_hidden_layers": 2}, vocab_size=48, intermediate_size=32, num_local_experts=4)
    )
    anynpu.quantize_(model, anynpu.W4A8(group_size=32))
    assert any(isinstance(module, QuantMoE) for module in model.modules())
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    optimiser, batch = torch.optim.AdamW(model.parameters(), lr=2e-2), torch.randint(48, (2, 12))
    losses = []
    for _ in range(12):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_forward_mode_is_refused():
    block = anynpu.nn.QuantMoE(hidden=32, intermediate=16, experts=4, k=2)
    with pytest.raises((RuntimeError, NotImplementedError), match="autograd.Function"):
        torch.func.jvp(block, (torch.randn(5, 32),), (torch.randn(5, 32),))


def test_a_compiled_gradient_through_experts_is_refused():
    chosen, weights = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1)
    block = anynpu.nn.QuantMoE(hidden=32, intermediate=16, experts=4, k=2)
    routed = anynpu.nn.RoutedExperts(experts=4, hidden=32, intermediate=16)
    for function, differentiable in (
        (lambda x: x + block(x), torch.randn(5, 32)),
        (lambda x: x + routed(x, chosen, weights), torch.randn(5, 32)),
        (lambda weights: routed(torch.ones(5, 32), chosen, weights), weights.clone()),
    ):
        y = torch.compile(function, backend="aot_eager")(differentiable.requires_grad_())  # which is no error yet
        assert torch.equal(y, function(differentiable))
        with pytest.raises(NotImplementedError, match="under torch.compile: quantised experts have no gradient"):
            y.sum().backward()
