# SPDX-License-Identifier: Apache-2.0
"""The published operators that only move the tokens of a mixture of experts, and count them: torch's own moves."""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.published import published, require_absent
from anynpu.compat.routing_operators import require_axes

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)


@published(
    "npu_moe_init_routing(Tensor x, Tensor row_idx, Tensor expert_idx, int active_num) -> (Tensor, Tensor, Tensor)",
    "aclnnMoeInitRouting",
)
def npu_moe_init_routing(
    x: torch.Tensor, row_idx: torch.Tensor, expert_idx: torch.Tensor, active_num: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens of the first ``active_num * K`` slots in the order of their experts, the row of each slot, the experts.

    ``row_idx[n, j]`` numbers the slots, normally ``j * N + n``; the token of slot i is ``i % N``.
    """
    op = "npu_moe_init_routing"
    for name, tensor in (("x", x), ("expert_idx", expert_idx), ("row_idx", row_idx)):
        require(op, tensor.dim() == 2, f"The {name} should be 2D, got {tensor.dim()}D")
    require_dtype(op, "x", x, _FLOATS)
    require_dtype(op, "row_idx", row_idx, (torch.int32,))
    require_dtype(op, "expert_idx", expert_idx, (torch.int32,))
    shapes = tuple(expert_idx.shape), tuple(row_idx.shape)
    same = shapes[0] == shapes[1]
    require(op, same, f"The shape of expert_idx and row_idx should be same, got {shapes[0]} and {shapes[1]}")
    tokens, chosen = shapes[0]
    require(op, x.shape[0] == tokens, f"x and expert_idx should have the same rows, got {x.shape[0]} and {tokens}")
    require(op, active_num >= 0, f"The active_num must be a non-negative number, got {active_num}")
    experts, order = expert_idx.flatten().sort(stable=True)
    slots = row_idx.flatten()[order].long()
    known = ((slots >= 0) & (slots < slots.numel())).all()
    torch._assert_async(known, f"{op}: row_idx must be in [0, N * K - 1] = [0, {slots.numel() - 1}]")
    rows = torch.zeros_like(experts).index_put((slots,), torch.arange(slots.numel(), device=x.device).int())
    return x[slots[: min(tokens, active_num) * chosen] % max(tokens, 1)], rows, experts


@published(
    "npu_moe_token_permute(Tensor tokens, Tensor indices, int? num_out_tokens=None, bool padded_mode=False) "
    "-> (Tensor, Tensor)",
    "aclnnMoeTokenPermute",
)
def npu_moe_token_permute(
    tokens: torch.Tensor, indices: torch.Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the tokens in the order of ``indices`` (experts, or others), and the row where each slot went.

    ``num_out_tokens`` rows of them; None, 0: all; negative: all but so many.
    """
    op = "npu_moe_token_permute"
    require_absent(padded_mode=padded_mode or None)
    require_axes("tokens", tokens, 2)
    require_dtype(op, "indices", indices, _INTEGERS)
    axes = indices.dim()
    sentence = f"The dims of input indices should be 2 or 1 dimensional, but got {axes}-dimensional."
    require(op, axes in (1, 2), sentence)
    same = indices.shape[0] == tokens.shape[0]
    require(op, same, f"tokens and indices should have the same rows, got {tokens.shape[0]} and {indices.shape[0]}")
    slots = indices.numel()
    rows = num_out_tokens or slots
    rows = min(rows, slots) if rows > 0 else max(slots + rows, 0)
    order = indices.flatten().argsort(stable=True)
    chosen = indices.shape[1] if axes == 2 else 1
    return tokens[order[:rows] // max(chosen, 1)], order.argsort().int()


@published(
    "npu_moe_compute_expert_tokens(Tensor sorted_expert_for_source_row, int num_expert) -> Tensor",
    "aclnnMoeComputeExpertTokens",
)
def npu_moe_compute_expert_tokens(sorted_expert_for_source_row: torch.Tensor, num_expert: int) -> torch.Tensor:
    """For each expert how many of the sorted experts are not above it: the running sums of the counts."""
    op, experts = "npu_moe_compute_expert_tokens", sorted_expert_for_source_row
    require_dtype(op, "sorted_expert_for_source_row", experts, (torch.int32,))
    require(op, experts.dim() == 1, f"sorted_expert_for_source_row must have 1 axis, got {experts.dim()}")
    require(op, num_expert >= 1, f"num_expert must be at least 1, got {num_expert}")
    numbers = torch.arange(num_expert, dtype=torch.int32, device=experts.device)
    return torch.searchsorted(experts, numbers, right=True, out_int32=True)


@published(
    "npu_moe_re_routing(Tensor tokens, Tensor expert_token_num_per_rank, *, Tensor? per_token_scales=None, "
    "int expert_token_num_type=1, int idx_type=0) -> (Tensor, Tensor, Tensor, Tensor)",
    "aclnnMoeReRouting",
)
def npu_moe_re_routing(
    tokens: torch.Tensor,
    expert_token_num_per_rank: torch.Tensor,
    *,
    per_token_scales: torch.Tensor | None = None,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens that came rank by rank, within a rank expert by expert, in the order of their experts.

    With their scales (zeros where there are none), the row that each came from, and the tokens of each expert.
    """
    op, counts = "npu_moe_re_routing", expert_token_num_per_rank
    modes = expert_token_num_type, idx_type
    require(op, modes == (1, 0), f"expert_token_num_type must be 1 and idx_type 0, got {modes[0]} and {modes[1]}")
    require_dtype(op, "tokens", tokens, (torch.float16, torch.bfloat16, torch.int8))
    require_dtype(op, "expert_token_num_per_rank", counts, _INTEGERS)
    for name, tensor in (("tokens", tokens), ("expert_token_num_per_rank", counts)):
        require(op, tensor.dim() == 2, f"{name} must have 2 axes, got {tensor.dim()}")
    total = tokens.shape[0]
    if per_token_scales is None:
        per_token_scales = torch.zeros(total, device=tokens.device)
    require_dtype(op, "per_token_scales", per_token_scales, (torch.float32,))
    shape = tuple(per_token_scales.shape)
    require(op, shape == (total,), f"per_token_scales must have shape (A,) = ({total},), got {shape}")
    fits = (counts >= 0).all() & (counts.sum() == total)
    torch._assert_async(fits, f"{op}: expert_token_num_per_rank must be counts that add up to the {total} tokens")
    sizes = counts.t().flatten()
    came = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts).t().flatten()
    shift = came - (sizes.cumsum(0) - sizes)  # of each expert's tokens from one rank
    rows = torch.arange(total, device=tokens.device) + shift.repeat_interleave(sizes, output_size=total)
    return tokens[rows], per_token_scales[rows], rows.int(), counts.sum(0, dtype=counts.dtype)
