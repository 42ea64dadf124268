# SPDX-License-Identifier: Apache-2.0
"""moe_gating_topk out of torch operators: a few hundred logits a token, far from what bounds a layer."""

from __future__ import annotations

import torch

from anynpu import _device_errors
from anynpu.ops.moe_gating_topk.spec import LARGEST, OP, SIGMOID, SOFTMAX, check, check_hash_values

_TOKENS = _device_errors.new_rule(OP, "input_ids", "must be a row of tid2eid")
_EXPERTS = _device_errors.new_rule(OP, "tid2eid[input_ids]", "must be an expert")


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest, the largest first, ties to the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _without_other_groups(scores: torch.Tensor, k_group: int, group_count: int, mode: int) -> torch.Tensor:
    grouped = scores.unflatten(1, (group_count, scores.shape[1] // group_count))
    worth = grouped.amax(-1) if mode == LARGEST else grouped.topk(2, dim=-1).values.sum(-1)
    others = torch.ones_like(worth, dtype=torch.bool).scatter_(1, _best(worth, k_group), False)
    return grouped.masked_fill(others.unsqueeze(-1), -torch.inf).flatten(1)


def _looked_up(input_ids: torch.Tensor, tid2eid: torch.Tensor, experts: int) -> torch.Tensor:
    """The experts of the tokens. On a GPU, which nobody shall wait for, wrong values are noted there."""
    if input_ids.is_cpu:
        check_hash_values(input_ids, tid2eid, experts)
        return tid2eid[input_ids.long()].long()
    found = tid2eid[_device_errors.within(input_ids, 0, len(tid2eid), _TOKENS).long()].long()
    return _device_errors.within(found, 0, experts, _EXPERTS)


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
    """See ``anynpu.moe_gating_topk``."""
    check(x, k, bias, input_ids, tid2eid, k_group, group_count, group_select_mode, renorm, norm_type,
          routed_scaling_factor, eps)  # fmt: skip
    scores = x.float().softmax(-1) if norm_type == SOFTMAX else x.float().sigmoid()
    if input_ids is not None:
        index = _looked_up(input_ids, tid2eid, x.shape[1])
    else:
        choice = scores if bias is None else scores + bias.float()
        if k_group < group_count:
            choice = _without_other_groups(choice, k_group, group_count, group_select_mode)
        index = _best(choice, k)
    y = scores.gather(1, index)
    if norm_type == SIGMOID:
        y = y / (y.sum(-1, keepdim=True) + eps)
    return (y * routed_scaling_factor).to(x.dtype), index.int().contiguous(), scores
