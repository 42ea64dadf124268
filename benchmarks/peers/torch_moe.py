# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts in plain PyTorch: a loop over them, with the weights dequantised or as torch's int4."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measure import Variant
from moe import MoeProblem
from moe_layer import peers as quant_moe
from moe_tokens import activation_peers as dequant_swiglu_quant
from moe_tokens import call_peers as moe_finalize_routing
from moe_tokens import call_peers as moe_gating_topk_softmax
from moe_tokens import call_peers as swiglu
from moe_tokens import routing_peers as moe_init_routing

__all__ = [
    "NAME", "dequant_swiglu_quant", "grouped_matmul_combine", "moe_finalize_routing", "moe_gating_topk_softmax",
    "moe_init_routing", "quant_moe", "swiglu", "unavailable",
]  # fmt: skip

NAME = "torch experts"


def unavailable() -> str | None:
    """Never: anynpu itself needs torch."""
    return None


def grouped_matmul_combine(problem: MoeProblem) -> Iterator[Variant]:
    """Eager dequantisation to float32, and torch's int4 matmul in bfloat16 where it has the group size."""
    yield _eager(problem)
    if problem.group_size in (32, 64, 128, 256):
        yield _int4pack(problem)


def _eager(problem: MoeProblem) -> Variant:
    size = problem.group_size or problem.k

    def product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        low, high = (weight & 15).float() - 8, (weight >> 4).float() - 8
        codes = torch.stack([low, high], -1).view(problem.k, problem.n)
        return x.float() @ (codes.view(-1, size, problem.n) * scale[:, None]).view(problem.k, problem.n)

    unsigned = (problem.weight + 8).to(torch.uint8)
    packed = unsigned[..., ::2] | (unsigned[..., 1::2] << 4)
    parts = list(zip(packed, problem.scale, strict=True))
    return problem.variant(
        "torch dequantise, matmul", "W4A32", parts, product, 1e-5, packed.nbytes + problem.scale.nbytes
    )


def _int4pack(problem: MoeProblem) -> Variant:
    parts = []
    for weight, scale in zip(problem.weight, problem.scale, strict=True):
        unsigned = (weight.t().int() + 8).contiguous()  # [N, K]; its zero is 8
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
        parts.append((packed, torch.stack([scale, torch.zeros_like(scale)], -1).bfloat16().contiguous()))

    def product(x: torch.Tensor, weight: torch.Tensor, scale_and_zero: torch.Tensor) -> torch.Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), weight, problem.group_size, scale_and_zero)
        return y.float()

    weight_bytes = sum(tensor.nbytes for part in parts for tensor in part)
    return problem.variant("torch int4pack bf16, a loop", "W4A16", parts, product, 2.0**-8, weight_bytes)
