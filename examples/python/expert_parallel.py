# SPDX-License-Identifier: Apache-2.0
"""One mixture of experts across processes.

torchrun --nproc-per-node 2 examples/python/expert_parallel.py

Each process keeps a part of the experts and brings its own tokens, not all as many. Only torch.distributed stands
between them.
"""

import datetime

import torch
import torch.distributed as dist

from anynpu import W4A8
from anynpu.nn import ExpertParallelMoE, QuantMoE
from anynpu.quantization.moe_blocks import quant_experts

HIDDEN, INTERMEDIATE, EXPERTS, CHOICES = 256, 128, 8, 2


def build() -> QuantMoE:
    """The same layer in every process, out of float weights: 4-bit experts and a shared one."""
    torch.manual_seed(0)
    config, silu = W4A8(group_size=64), torch.nn.SiLU()

    def experts(count: int) -> torch.nn.Module:
        gate_up = torch.randn(count, 2 * INTERMEDIATE, HIDDEN) / HIDDEN**0.5
        return quant_experts(gate_up, torch.randn(count, HIDDEN, INTERMEDIATE) / INTERMEDIATE**0.5, silu, config)

    router = torch.randn(EXPERTS, HIDDEN) / HIDDEN**0.5
    return QuantMoE.from_experts(experts(EXPERTS), router, CHOICES, shared=experts(1), scoring="renormalised")


dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
rank, ranks = dist.get_rank(), dist.get_world_size()
moe = build()
batches = torch.randn(sum(4 + r for r in range(ranks)), HIDDEN).split([4 + r for r in range(ranks)])
expected = moe(batches[rank])
for dispatch in ("all_gather", "all_to_all"):
    layer = ExpertParallelMoE(moe, dispatch=dispatch)
    y = layer(batches[rank])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    print(f"rank {rank}, {len(y)} tokens, {layer.extra_repr()}: the results of one process")
dist.destroy_process_group()
