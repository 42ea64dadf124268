# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_gating_topk: float64, one rounding, and choices made one after the other."""

from __future__ import annotations

import torch

from anynpu.ops.moe_gating_topk.spec import LARGEST, SIGMOID, check, check_hash_values
from anynpu.ops.moe_gating_topk_softmax.reference import chosen

_U = 2.0**-24  # half a unit in the last place of float32


def _scores(x: torch.Tensor, norm_type: int) -> torch.Tensor:
    return x.double().sigmoid() if norm_type == SIGMOID else x.double().softmax(-1)


def _within_best_groups(choice: torch.Tensor, k_group: int, group_count: int, mode: int) -> torch.Tensor:
    grouped = choice.unflatten(1, (group_count, choice.shape[1] // group_count))
    ranked = grouped.sort(-1, descending=True).values
    worth = ranked[..., 0] if mode == LARGEST else ranked[..., 0] + ranked[..., 1]
    kept = torch.full_like(grouped, -torch.inf)
    for row, groups in enumerate(chosen(worth, k_group).tolist()):
        kept[row, groups] = grouped[row, groups]
    return kept.reshape(choice.shape)


def moe_gating_topk(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k best experts of the k_group best groups, and their scores without the bias."""
    check(x, k, bias, input_ids, tid2eid, k_group, group_count, group_select_mode, renorm, norm_type,
          routed_scaling_factor, eps)  # fmt: skip
    scores = _scores(x, norm_type)
    if input_ids is not None:
        check_hash_values(input_ids, tid2eid, x.shape[1])
        index = tid2eid.long()[input_ids.long()]
    else:
        choice = scores if bias is None else scores + bias.double()
        index = chosen(_within_best_groups(choice, k_group, group_count, group_select_mode), k)
    y = scores.gather(1, index)
    if norm_type == SIGMOID:
        y = y / (y.sum(-1, keepdim=True) + eps)
    return (y * routed_scaling_factor).to(x.dtype), index.int(), scores.float()


def error_bound(x: torch.Tensor, k: int, *rest, **options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How far a weight may be: of E + k + 12 roundings each at most U, the exponential's argument has one more of its
    size, and one spacing of the result's dtype at the end. The indices are exact."""
    y, index, scores = moe_gating_topk(x, k, *rest, **options)
    size = x.double().abs().amax(-1, keepdim=True) if x.numel() else y.double()[:, :1]
    relative = (x.shape[1] + k + 12 + 2 * size) * _U
    limits = torch.finfo(x.dtype)
    bound = y.double().abs() * (2 * relative + limits.eps) + limits.smallest_normal * limits.eps
    return bound, torch.zeros(index.shape), scores.double() * (relative + _U)
