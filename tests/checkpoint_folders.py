# SPDX-License-Identifier: Apache-2.0
"""Writes small random models as their producers do, from the published layouts and without anynpu's code.

Each writer returns the model with dequantised float weights, by the producer's own formula.
"""

from __future__ import annotations

import json
import re

import torch
import transformers
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, VOCABULARY = 64, 96, 99
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = torch.tensor([[3, 14, 15, 92, 65, 35]])


def model_of(kind="llama", tied=False, **options):
    """A random float32 model."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, "tie_word_embeddings": tied, **options})
    torch.manual_seed(5)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "num_key_value_heads": 4, "n_routed_experts": 8, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
LINEAR_ATTENTION = {
    **EXPERTS, "num_experts": 8, "head_dim": 16, "shared_expert_intermediate_size": 64, "num_hidden_layers": 4,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {**EXPERTS, "num_experts": 8, "head_dim": 16, "norm_topk_prob": True, "mlp_only_layers": [0]},
    "deepseek_v2": {**EXPERTS, **LATENT, "n_shared_experts": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**EXPERTS, **LATENT, "n_shared_experts": 1, "n_group": 4, "topk_group": 2},
    "glm4_moe": {**EXPERTS, "n_routed_experts": 8, "head_dim": 16, "n_group": 1, "topk_group": 1},
    "dots1": {**EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1, "head_dim": 16, "n_group": 1, "topk_group": 1},
    "qwen3_next": LINEAR_ATTENTION,
    "qwen3_5_moe_text": LINEAR_ATTENTION,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 1, "pad_token_id": 0},
    "ernie4_5_moe": {
        **EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1,
    },
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "jamba": {
        "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8,
    },
}  # fmt: skip
MIXTRAL_NAMES = (("mlp", "block_sparse_moe"), ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
FILE_NAMES = {
    "mixtral": MIXTRAL_NAMES,
    "minimax": MIXTRAL_NAMES,
    "minimax_m2": MIXTRAL_NAMES,
    "phimoe": (("router", "gate"), *MIXTRAL_NAMES),
    "ernie4_5_moe": (("gate.moe_statics", "moe_statics"),),
    "granitemoe": (
        ("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight"),
        ("router", "router.layer"),
    ),
}  # fmt: skip


class PlainExperts(torch.nn.ModuleList):
    """Experts of three linear layers each, as files have them."""

    def __init__(self, fused):
        super().__init__(
            torch.nn.ModuleDict(self.matrices(*pair)) for pair in zip(fused.gate_up_proj, fused.down_proj, strict=True)
        )

    @staticmethod
    def matrices(gate_up, down):
        linears = {}
        for name, weight in zip(("gate_proj", "up_proj", "down_proj"), (*gate_up.chunk(2), down), strict=True):
            linears[name] = torch.nn.Linear(*reversed(weight.shape), bias=False)
            linears[name].weight.data = weight.detach().clone()
        return linears

    def forward(self, x, experts, weights):
        y = torch.zeros_like(x)
        for token, (chosen, own) in enumerate(zip(experts.tolist(), weights, strict=True)):
            for index, weight in zip(chosen, own, strict=True):
                expert, row = self[index], x[token : token + 1]
                inner = torch.nn.functional.silu(expert["gate_proj"](row)) * expert["up_proj"](row)
                y[token] += weight * expert["down_proj"](inner)[0]
        return y


def mixture_of(kind, **options):
    """A random model whose routed experts are PlainExperts."""
    model = model_of(kind, **{**MIXTURES[kind], **options})
    generator = torch.Generator().manual_seed(6)
    for name, module in list(model.named_modules()):
        if name.endswith(".experts"):
            for weight in (module.gate_up_proj, module.down_proj):
                weight.data = torch.randn(weight.shape, generator=generator) * 0.1
            block = model.get_submodule(name.removesuffix(".experts"))
            router = block.router if hasattr(block, "router") else block.gate
            for own, tensor in router.state_dict().items():
                corrected = own.endswith("e_score_correction_bias")
                tensor.uniform_(-0.1, 0.1, generator=generator) if corrected else tensor.normal_(generator=generator)
            block.experts = PlainExperts(module)
    return model


def linears_of(model, skip=("lm_head",)):
    linears = ((name, module) for name, module in model.named_modules() if type(module) is torch.nn.Linear)
    floats = (*skip, "wg", "dt_proj")  # of routers and of Mamba, whose weights are read by other code
    return {
        name: module
        for name, module in linears
        if not {name, name.rpartition(".")[2]} & {*floats} and module.out_features > 1
    }


def name_in_files(model, name):
    for own, part in FILE_NAMES.get(model.config.model_type, ()):
        name = re.sub(rf"\.{own}(?=\.|$)", f".{part}", name)
    return name


def write(model, folder, quantized, config, shards=1):
    """The folder: `quantized` tensors of layers by their names, the other tensors from the model."""
    layers = {name.rpartition(".")[0] for name in quantized}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[0] not in layers}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    tensors |= quantized
    tensors = {name_in_files(model, name): tensor.contiguous().clone() for name, tensor in tensors.items()}
    folder.mkdir(exist_ok=True)
    described = {**model.config.to_dict(), "dtype": "float32", **({"quantization_config": config} if config else {})}
    (folder / "config.json").write_text(json.dumps(described))
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::shards]}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names[i::shards], file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits


def to_int32(words):
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def pack(values, bits, axis, order=None):
    """Unsigned values packed along `axis` into int32, lowest bits first, or in `order`; padded with zeros."""
    per_word = 32 // bits
    values = values.long().movedim(axis, -1)
    values = torch.nn.functional.pad(values, (0, -values.shape[-1] % per_word)).unflatten(-1, (-1, per_word))
    positions = range(per_word) if order is None else order
    words = sum(values[..., i] << bits * position for i, position in enumerate(positions))
    return to_int32(words).movedim(-1, axis)


def random_codes(n, k, bits, group, generator, symmetric=False):
    """q [N, K] and z [N, G] unsigned, scale [N, G] of float16 values."""
    groups = -(-k // group) if group > 0 else 1
    q = torch.randint(0, 2**bits, (n, k), generator=generator)
    z = torch.randint(1, 2**bits - 1, (n, groups), generator=generator)
    z = torch.full_like(z, 2 ** (bits - 1)) if symmetric else z
    scale = (torch.rand(n, groups, generator=generator) * 0.3 / 2**bits + 0.002).half()
    return q, z, scale


def real(q, z, scale, group_of):
    """(q - z) * scale, column by column, in float32."""
    columns = [(q[:, k] - z[:, g]).float() * scale[:, g].float() for k, g in enumerate(group_of)]
    return torch.stack(columns, dim=1)


def groups_of(k, group):
    return [i // group if group > 0 else 0 for i in range(k)]


def gptq(model, folder, bits=4, group=32, act_order=False, v2=False, symmetric=True, skip=("lm_head",), **options):
    generator, quantized = torch.Generator().manual_seed(11), {}
    for name, linear in linears_of(model, skip).items():
        n, k = linear.weight.shape
        q, z, scale = random_codes(n, k, bits, group, generator, symmetric)
        group_of = groups_of(k, group)
        if act_order:
            group_of = [group_of[i] for i in torch.randperm(k, generator=generator)]
        stored = z if v2 else z - 1
        quantized |= {
            f"{name}.qweight": pack(q.t(), bits, 0),
            f"{name}.qzeros": pack(stored.t(), bits, 1),
            f"{name}.scales": scale.t(),
            f"{name}.g_idx": torch.tensor(group_of, dtype=torch.int32),
        }
        if linear.bias is not None:
            quantized[f"{name}.bias"] = linear.bias.detach()
        linear.weight.data = real(q, z, scale, group_of)
    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric,
        "checkpoint_format": "gptq_v2" if v2 else "gptq", "lm_head": "lm_head" not in skip,
    }  # fmt: skip
    write(model, folder, quantized, config, **options)
    return model


def awq(model, folder, group=32, **options):
    generator, quantized = torch.Generator().manual_seed(12), {}
    for name, linear in linears_of(model).items():
        n, k = linear.weight.shape
        q, z, scale = random_codes(n, k, 4, group, generator)
        order = (0, 4, 1, 5, 2, 6, 3, 7)  # where columns 0 to 7 lie
        quantized |= {
            f"{name}.qweight": pack(q.t(), 4, 1, order),
            f"{name}.qzeros": pack(z.t(), 4, 1, order),
            f"{name}.scales": scale.t(),
        }
        if linear.bias is not None:
            quantized[f"{name}.bias"] = linear.bias.detach()
        linear.weight.data = real(q, z, scale, groups_of(k, group))
    config = {
        "quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    write(model, folder, quantized, config, **options)
    return model


def compressed_weights(model, folder, bits=4, group=32, symmetric=True, act_order=False, packed=True, **options):
    """Weight-only compressed-tensors."""
    generator, quantized, middle = torch.Generator().manual_seed(13), {}, 2 ** (bits - 1)
    for name, linear in linears_of(model).items():
        n, k = linear.weight.shape
        q, z, scale = random_codes(n, k, bits, group, generator, symmetric)
        group_of = groups_of(k, group)
        if act_order:
            group_of = [group_of[i] for i in torch.randperm(k, generator=generator)]
            quantized[f"{name}.weight_g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        if packed:
            quantized |= {f"{name}.weight_packed": pack(q, bits, 1), f"{name}.weight_shape": torch.tensor([n, k])}
        else:
            quantized[f"{name}.weight"] = (q - middle).to(torch.int8)
        if not symmetric:
            quantized[f"{name}.weight_zero_point"] = pack(z, bits, 0) if packed else (z - middle).to(torch.int8)
        quantized[f"{name}.weight_scale"] = scale
        if linear.bias is not None:
            quantized[f"{name}.bias"] = linear.bias.detach()
        linear.weight.data = real(q, z, scale, group_of)
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": group if group > 0 else None,
        "strategy": "group" if group > 0 else "channel", "dynamic": False, "actorder": "group" if act_order else None,
    }  # fmt: skip
    write(model, folder, quantized, compressed_config(weights, None, "pack" if packed else "int"), **options)
    return model


def compressed_config(weights, activations, form, targets=("Linear",)):
    group = {"targets": list(targets), "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": f"{form}-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


class FakeInt8Linear(torch.nn.Module):
    """What an int8 layer computes, in float64: activations to int8 by the rule, an exact product, scales."""

    def __init__(self, codes, scale, bias=None, input_scale=None, zero=0):
        super().__init__()
        self.codes, self.scale, self.bias = codes.double(), scale.double(), bias
        self.input_scale, self.zero = input_scale, zero

    def forward(self, x):
        if self.input_scale is None:
            step = x.abs().amax(-1, keepdim=True) / 127
        else:
            step = torch.tensor(self.input_scale)
        x8 = ((x / step).round() + self.zero).clamp(-128, 127).double() - self.zero
        y = x8 @ self.codes.t() * self.scale * step.double()
        return (y if self.bias is None else y + self.bias.double()).to(x.dtype)


def int8_layers(model, static=False, zero=0):
    """Random int8 layers; replaces them in the model by FakeInt8Linear and returns them by name."""
    generator, layers = torch.Generator().manual_seed(14), {}
    for name, linear in linears_of(model).items():
        codes = torch.randint(-128, 128, linear.weight.shape, generator=generator, dtype=torch.int8)
        scale = torch.rand(codes.shape[0], generator=generator) * 1e-3 + 1e-4
        bias = None if linear.bias is None else linear.bias.detach()
        layers[name] = FakeInt8Linear(codes, scale, bias, 0.03125 if static else None, zero)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layers[name])
    return layers


def compressed_int8(model, folder, static=False, zero=0, form="int", **options):
    """W8A8 compressed-tensors."""
    plain, quantized = {name: tensor.clone() for name, tensor in model.state_dict().items()}, {}
    layers = int8_layers(model, static, zero)
    for name, layer in layers.items():
        quantized |= {
            f"{name}.weight": layer.codes.to(torch.int8),
            f"{name}.weight_scale": layer.scale.float()[:, None],
        }
        if layer.bias is not None:
            quantized[f"{name}.bias"] = layer.bias
        if static:
            quantized[f"{name}.input_scale"] = torch.tensor([layer.input_scale])
        if zero:
            quantized[f"{name}.input_zero_point"] = torch.tensor([zero], dtype=torch.int8)
    activations = {
        "num_bits": 8, "type": "int", "symmetric": zero == 0, "dynamic": not static, "group_size": None,
        "strategy": "tensor" if static else "token",
    }  # fmt: skip
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    others = {name: tensor for name, tensor in plain.items() if name.rpartition(".")[0] not in layers}
    write(model, folder, others | quantized, compressed_config(weights, activations, form), **options)
    return model
