# SPDX-License-Identifier: Apache-2.0
"""A decoder layer with int8 weights and activations (W8A8) and a paged KV cache, written for torch_npu.

Two prompts are prefilled together, then three tokens of each decoded.

anynpu run examples/python/torch_npu_decoder_layer.py
"""

import torch
import torch_npu

hidden, heads, kv_heads, head_dim, intermediate = 256, 8, 2, 32, 512
blocks, block_size, prompts, new_tokens = 8, 16, (21, 9), 3
q_size, kv_size = heads * head_dim, kv_heads * head_dim

torch.manual_seed(0)
weights = {
    "qkv": torch.randn(hidden, q_size + 2 * kv_size) / hidden**0.5,
    "o": torch.randn(q_size, hidden) / q_size**0.5,
    "gate_up": torch.randn(hidden, 2 * intermediate) / hidden**0.5,
    "down": torch.randn(intermediate, hidden) / intermediate**0.5,
}
weights = {name: weight.npu() for name, weight in weights.items()}
gammas = [(1 + 0.1 * torch.randn(hidden)).bfloat16().npu() for _ in range(2)]
sequences = [torch.randn(prompt + new_tokens, hidden, dtype=torch.bfloat16).npu() for prompt in prompts]
angles = torch.outer(torch.arange(64), 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)).repeat(1, 2)
cos, sin = angles.cos().bfloat16()[:, None].npu(), angles.sin().bfloat16()[:, None].npu()


def int8_weight(weight):
    scale = weight.abs().amax(0) / 127
    return torch.round(weight / scale).to(torch.int8), scale


class DecoderLayer:
    """What is fed to qkv is quantised with a static scale, the rest row by row."""

    def __init__(self, qkv_input_scale):
        self.weights = {name: int8_weight(weight) for name, weight in weights.items()}
        self.qkv_input_scale = qkv_input_scale
        shape = (blocks, block_size, kv_heads, head_dim)
        self.k_cache, self.v_cache = (torch.empty(shape, dtype=torch.bfloat16, device="npu") for _ in "kv")
        self.mask = torch.triu(torch.ones(2048, 2048, dtype=torch.int8), 1).npu()

    def static_linear(self, name, x, input_scale):
        weight, scale = self.weights[name]
        codes = torch_npu.npu_quantize(x, 1 / input_scale, None, torch.qint8, -1, False)
        return torch_npu.npu_quant_matmul(codes, weight, scale * input_scale, output_dtype=torch.bfloat16)

    def linear(self, name, codes, row_scale):
        weight, scale = self.weights[name]
        return torch_npu.npu_quant_matmul(codes, weight, scale, pertoken_scale=row_scale, output_dtype=torch.bfloat16)

    def attention(self, x, positions, slots, query_ends, lengths, block_table):
        qkv = self.static_linear("qkv", x, self.qkv_input_scale)
        q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in qkv.split([q_size, kv_size, kv_size], dim=-1))
        q, k = (torch_npu.npu_rotary_mul(part, cos[positions], sin[positions]) for part in (q, k))
        for cache, part in ((self.k_cache, k), (self.v_cache, v)):
            torch_npu.npu_scatter_nd_update_(cache.view(-1, kv_heads, head_dim), slots[:, None], part)
        y, _ = torch_npu.npu_fused_infer_attention_score(
            q, self.k_cache.view(blocks, block_size, -1), self.v_cache.view(blocks, block_size, -1),
            num_heads=heads, num_key_value_heads=kv_heads, scale=head_dim**-0.5, input_layout="TND",
            block_table=block_table, block_size=block_size, actual_seq_lengths=query_ends,
            actual_seq_lengths_kv=lengths, sparse_mode=3, atten_mask=self.mask,
        )  # fmt: skip
        return self.linear("o", *torch_npu.npu_dynamic_quant(y.flatten(-2)))

    def mlp(self, x):
        codes, row_scale = torch_npu.npu_dynamic_quant(x)
        weight, scale = self.weights["gate_up"]
        sums = torch_npu.npu_quant_matmul(codes, weight, scale, output_dtype=torch.int32)
        active, active_scale = torch_npu.npu_dequant_swiglu_quant(
            sums, weight_scale=scale, activation_scale=row_scale, activate_left=True, quant_mode=1
        )
        return self.linear("down", active, active_scale)

    def __call__(self, residual, *where):
        x, _ = torch_npu.npu_rms_norm(residual, gammas[0])
        x, _, residual = torch_npu.npu_add_rms_norm(self.attention(x, *where), residual, gammas[1])
        return residual + self.mlp(x)


def where(starts, ends, block_table):
    """Positions and slots of the tokens [start, end) of each sequence, and what attention asks of lengths."""
    spans = [torch.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    slots = [block_table[i, span // block_size] * block_size + span % block_size for i, span in enumerate(spans)]
    query_ends = torch.tensor([len(span) for span in spans]).cumsum(0).tolist()
    return torch.cat(spans).npu(), torch.cat(slots).npu(), query_ends, list(ends), block_table.npu()


def exact(x):
    """The layer in float32, for a whole sequence."""

    def norm(x, gamma):
        return torch.nn.functional.rms_norm(x, (hidden,), gamma.float(), 1e-6)

    def turn(x):
        first, second = x.chunk(2, -1)
        return x * cos[: len(x)].float() + torch.cat((-second, first), -1) * sin[: len(x)].float()

    x = x.float()
    parts = (norm(x, gammas[0]) @ weights["qkv"]).split([q_size, kv_size, kv_size], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in parts)
    q, k, v = (part.transpose(0, 1)[None] for part in (turn(q), turn(k), v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    x = x + y[0].transpose(0, 1).flatten(1) @ weights["o"]
    gate, up = (norm(x, gammas[1]) @ weights["gate_up"]).chunk(2, -1)
    return x + (torch.nn.functional.silu(gate) * up) @ weights["down"]


calibration = torch.cat([torch_npu.npu_rms_norm(x, gammas[0])[0] for x in sequences])
layer = DecoderLayer(calibration.float().abs().amax().reshape(1) / 127)
block_table = torch.tensor([[5, 0], [3, 7]], dtype=torch.int32)
expected = [exact(x) for x in sequences]


def run(name, starts, ends):
    spans = [slice(*span) for span in zip(starts, ends, strict=True)]
    x = torch.cat([x[span] for x, span in zip(sequences, spans, strict=True)])
    right = torch.cat([x[span] for x, span in zip(expected, spans, strict=True)])
    y = layer(x, *where(starts, ends, block_table)).float()
    print(f"{name}: relative error {(y - right).norm() / right.norm():.4f}")


run("prefill", (0, 0), prompts)
for step in range(new_tokens):
    starts = [prompt + step for prompt in prompts]
    run(f"token {step}", starts, [start + 1 for start in starts])
