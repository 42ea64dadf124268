# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_gating_topk: float64, one rounding, and choices made one after the other."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.moe_gating_topk.spec import LARGEST, SIGMOID, Arguments, check, check_hash_values
from anynpu.ops.moe_gating_topk_softmax.reference import chosen

_U = 2.0**-24  # half a unit in the last place of float32


def _within_best_groups(a: Arguments, choice: torch.Tensor) -> torch.Tensor:
    grouped = choice.unflatten(1, (a.group_count, choice.shape[1] // a.group_count))
    ranked = grouped.sort(-1, descending=True).values
    worth = ranked[..., 0] if a.group_select_mode == LARGEST else ranked[..., 0] + ranked[..., 1]
    kept = torch.full_like(grouped, -torch.inf)
    for row, groups in enumerate(chosen(worth, a.k_group).tolist()):
        kept[row, groups] = grouped[row, groups]
    return kept.reshape(choice.shape)


@takes(Arguments)
def moe_gating_topk(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k best experts of the k_group best groups, and their scores without the bias."""
    check(a)
    scores = a.x.double().sigmoid() if a.norm_type == SIGMOID else a.x.double().softmax(-1)
    if a.input_ids is not None:
        check_hash_values(a.input_ids, a.tid2eid, a.x.shape[1])
        index = a.tid2eid.long()[a.input_ids.long()]
    else:
        choice = scores if a.bias is None else scores + a.bias.double()
        index = chosen(_within_best_groups(a, choice), a.k)
    y = scores.gather(1, index)
    if a.norm_type == SIGMOID:
        y = y / (y.sum(-1, keepdim=True) + a.eps)
    return (y * a.routed_scaling_factor).to(a.x.dtype), index.int(), scores.float()


@takes(Arguments)
def error_bound(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How far a weight may be: of E + k + 12 roundings each at most U, the exponential's argument has one more of its
    size, and one spacing of the result's dtype at the end. The indices are exact."""
    y, index, scores = moe_gating_topk(*a)
    size = a.x.double().abs().amax(-1, keepdim=True) if a.x.numel() else y.double()[:, :1]
    relative = (a.x.shape[1] + a.k + 12 + 2 * size) * _U
    limits = torch.finfo(a.x.dtype)
    bound = y.double().abs() * (2 * relative + limits.eps) + limits.smallest_normal * limits.eps
    return bound, torch.zeros(index.shape), scores.double() * (relative + _U)
