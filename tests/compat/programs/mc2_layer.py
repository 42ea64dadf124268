# SPDX-License-Identifier: Apache-2.0
"""Int8 experts spread over ranks by dispatch and combine, as a serving engine for Ascend calls them: batches of
different sizes, and decoding in a captured graph. Each rank compares its tokens with a layer that has all experts."""

import torch
import torch.distributed as dist
import torch_npu

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, CAPACITY = 128, 64, 8, 2, 24  # capacity: most tokens of a rank


def int8_weight(weight):
    scale = weight.abs().amax(1) / 127
    return torch_npu.npu_format_cast(torch.round(weight / scale[:, None]).to(torch.int8), 29), scale


def experts_mlp(rows, scale, counts, w13, w13_scale, w2, w2_scale):
    """W8A8: int32 sums, SwiGLU with requantisation, then the second product in bfloat16."""
    grouped = {"group_list": counts, "split_item": 2, "group_type": 0, "group_list_type": 1}
    sums = torch_npu.npu_grouped_matmul(x=[rows], weight=[w13], output_dtype=torch.int32, **grouped)[0]
    active, active_scale = torch_npu.npu_dequant_swiglu_quant(
        sums, weight_scale=w13_scale, activation_scale=scale, group_index=counts, activate_left=True, quant_mode=1
    )
    return torch_npu.npu_grouped_matmul(
        x=[active], weight=[w2], scale=[w2_scale], per_token_scale=[active_scale], output_dtype=torch.bfloat16,
        **grouped,
    )[0]  # fmt: skip


class TokenDispatcher:
    """What dispatch tells combine travels in ``metadata``."""

    def __init__(self, group):
        rank = dist.get_rank(group=group)
        self.name = group._get_backend(torch.device("npu")).get_hccl_comm_name(rank)
        self.common = {
            "group_ep": self.name, "ep_world_size": dist.get_world_size(group), "ep_rank_id": rank,
            "moe_expert_num": EXPERTS, "expert_shard_type": 0, "shared_expert_rank_num": 0,
            "global_bs": CAPACITY * dist.get_world_size(group),
            "group_tp": self.name, "tp_world_size": 1, "tp_rank_id": 0,
        }  # fmt: skip

    def dispatch(self, hidden_states, ids, weights):
        expand_x, scale, assist_info, counts, ep_recv_counts, tp_recv_counts, expand_scales = (
            torch_npu.npu_moe_distribute_dispatch_v2(
                x=hidden_states, expert_ids=ids, scales=None, quant_mode=2, expert_token_nums_type=1, **self.common
            )[0:7]
        )
        metadata = {
            "expert_ids": ids, "expert_scales": weights.to(torch.float32), "assist_info_for_combine": assist_info,
            "ep_send_counts": ep_recv_counts, "tp_send_counts": tp_recv_counts, "expand_scales": expand_scales,
        }  # fmt: skip
        return expand_x, scale, counts, metadata

    def combine(self, rows, metadata):
        return torch_npu.npu_moe_distribute_combine_v2(expand_x=rows, comm_quant_mode=0, **metadata, **self.common)


def whole_layer(x, ids, weights, experts):
    rows, index, counts, scale = torch_npu.npu_moe_init_routing_v2(
        x, ids, active_num=ids.numel(), expert_num=EXPERTS, expert_tokens_num_type=1, expert_tokens_num_flag=True,
        active_expert_range=[0, EXPERTS], quant_mode=1,
    )  # fmt: skip
    return torch_npu.npu_moe_token_unpermute(experts_mlp(rows, scale, counts, *experts), index, probs=weights)


dist.init_process_group("hccl")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # every rank makes all weights
w13, w13_scale = int8_weight(torch.randn(EXPERTS, HIDDEN, 2 * INTERMEDIATE).npu())
w2, w2_scale = int8_weight(torch.randn(EXPERTS, INTERMEDIATE, HIDDEN).npu())
everything = w13, w13_scale, w2, w2_scale.bfloat16()
router = torch.randn(HIDDEN, EXPERTS).npu()
own = [part[rank * EXPERTS // ranks : (rank + 1) * EXPERTS // ranks] for part in everything]
dispatcher = TokenDispatcher(dist.new_group(list(range(ranks)), backend="hccl"))


def layer(x):
    weights, ids, _ = torch_npu.npu_moe_gating_top_k_softmax(x.float() @ router, k=TOP_K)
    rows, scale, counts, metadata = dispatcher.dispatch(x, ids, weights)
    return dispatcher.combine(experts_mlp(rows, scale, counts, *own), metadata), ids, weights


torch.manual_seed(1 + rank)
for tokens in (CAPACITY - 5 * rank, rank, CAPACITY):
    x = torch.randn(tokens, HIDDEN, dtype=torch.bfloat16).npu()
    y, ids, weights = layer(x)
    assert y.equal(whole_layer(x, ids, weights, everything)), tokens

static = torch.zeros(2 + rank, HIDDEN, dtype=torch.bfloat16).npu()
graph = torch.npu.NPUGraph()
with torch.npu.graph(graph):
    y, ids, weights = layer(static)
for _ in range(3):
    static.copy_(torch.randn(2 + rank, HIDDEN, dtype=torch.bfloat16))
    graph.replay()
    assert y.any() and y.equal(whole_layer(static, ids, weights, everything))
dist.destroy_process_group()
