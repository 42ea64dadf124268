# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts with int8 activations, written for torch_npu: int8 weights (W8A8) and int4 weights (W4A8).

anynpu run examples/python/torch_npu_moe.py
"""

import torch
import torch_npu

tokens, hidden, intermediate, experts, top_k, group_size = 24, 256, 128, 8, 2, 64

torch.manual_seed(0)
x = torch.randn(tokens, hidden, dtype=torch.bfloat16).npu()
router = torch.randn(hidden, experts).npu() / hidden**0.5
w13 = torch.randn(experts, hidden, 2 * intermediate).npu() / hidden**0.5  # gate, then up
w2 = torch.randn(experts, intermediate, hidden).npu() / intermediate**0.5


def route(x):
    """int8 rows sorted by expert, their scales, how many each expert has, and weight and token of each row."""
    weights, ids, _ = torch_npu.npu_moe_gating_top_k_softmax(x.float() @ router, k=top_k)
    codes, pertoken_scale = torch_npu.npu_dynamic_quant(x)
    rows, order, counts, scale = torch_npu.npu_moe_init_routing_v2(
        codes, ids, scale=pertoken_scale, active_num=ids.numel(), expert_num=experts, drop_pad_mode=0,
        expert_tokens_num_type=1, expert_tokens_num_flag=True, quant_mode=-1,
        active_expert_range=[0, experts], row_idx_type=1,
    )  # fmt: skip
    order = order.long()
    return rows, scale, counts, weights.flatten()[order], order // top_k


def w8a8(x):
    """Raw int32 sums, then dequantisation, SwiGLU and quantisation in one operator."""
    rows, scale, counts, logit, row_index = route(x)
    grouped = {"group_list": counts, "split_item": 3, "group_type": 0, "group_list_type": 1}
    sums = torch_npu.npu_grouped_matmul([rows], [w13_int8], output_dtype=torch.int32, **grouped)[0]
    active, active_scale = torch_npu.npu_dequant_swiglu_quant(
        sums, weight_scale=w13_scale, activation_scale=scale, group_index=counts, activate_left=True, quant_mode=1
    )
    return torch_npu.npu_grouped_matmul_finalize_routing(
        active, w2_int8, counts, scale=w2_scale, pertoken_scale=active_scale, logit=logit, row_index=row_index,
        output_bs=tokens, group_list_type=1,
    )  # fmt: skip


def w4a8(x):
    """The first product in bfloat16, with the bias that int4 weights need."""
    rows, scale, counts, logit, row_index = route(x)
    grouped = {"group_list": counts, "split_item": 3, "group_type": 0, "group_list_type": 1}
    projected = torch_npu.npu_grouped_matmul(
        [rows], [w13_int4], bias=[w13_bias], scale=[w13_words], per_token_scale=[scale],
        output_dtype=torch.bfloat16, **grouped,
    )[0]  # fmt: skip
    active, active_scale = torch_npu.npu_dequant_swiglu_quant(
        projected, group_index=counts, activate_left=True, quant_mode=1
    )
    return torch_npu.npu_grouped_matmul_finalize_routing(
        active, w2_int4, counts, scale=w2_words, bias=w2_bias, pertoken_scale=active_scale, logit=logit,
        row_index=row_index, output_bs=tokens, group_list_type=1,
    )  # fmt: skip


def int8_weight(weight):
    scale = weight.abs().amax(1) / 127
    return torch.round(weight / scale[:, None]).to(torch.int8), scale


def int4_weight(weight):
    """Packed codes, scales of groups as float32 bits in int64, and the bias 8 * sum(codes * scales)."""
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().amax(2) / 7
    codes = torch.round(groups / scale[:, :, None]).to(torch.int32)
    bias = 8 * (codes.sum(2) * scale).sum(1)
    words = scale.contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    return torch_npu.npu_convert_weight_to_int4pack(codes.flatten(1, 2)), words, bias


def exact(x):
    """The layer in float32."""
    weights, ids, _ = torch_npu.npu_moe_gating_top_k_softmax(x.float() @ router, k=top_k)
    y = torch.zeros(tokens, hidden).npu()
    for token in range(tokens):
        for weight, expert in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (x[token].float() @ w13[expert]).chunk(2)
            y[token] += weight * (torch.nn.functional.silu(gate) * up @ w2[expert])
    return y


w13_int8, w13_scale = int8_weight(w13)
w2_int8, w2_scale = int8_weight(w2)
w13_int4, w13_words, w13_bias = int4_weight(w13)
w2_int4, w2_words, w2_bias = int4_weight(w2)
expected = exact(x)
for layer in (w8a8, w4a8):
    error = (layer(x) - expected).norm() / expected.norm()
    print(f"{layer.__name__}: relative error {error:.3f}")
