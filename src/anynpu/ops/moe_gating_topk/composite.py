# SPDX-License-Identifier: Apache-2.0
"""moe_gating_topk out of torch operators: a few hundred logits a token, far from what bounds a layer."""

from __future__ import annotations

import torch

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu.ops.moe_gating_topk.spec import LARGEST, OP, SIGMOID, SOFTMAX, Arguments, check, check_hash_values

_TOKENS = _device_errors.new_rule(OP, "input_ids", "must be a row of tid2eid")
_EXPERTS = _device_errors.new_rule(OP, "tid2eid[input_ids]", "must be an expert")


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest, the largest first, ties to the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]


def _without_other_groups(a: Arguments, scores: torch.Tensor) -> torch.Tensor:
    grouped = scores.unflatten(1, (a.group_count, scores.shape[1] // a.group_count))
    worth = grouped.amax(-1) if a.group_select_mode == LARGEST else grouped.topk(2, dim=-1).values.sum(-1)
    others = torch.ones_like(worth, dtype=torch.bool).scatter_(1, _best(worth, a.k_group), False)
    return grouped.masked_fill(others.unsqueeze(-1), -torch.inf).flatten(1)


def _looked_up(a: Arguments) -> torch.Tensor:
    """The experts of the tokens. On a GPU, which nobody shall wait for, wrong values are noted there."""
    input_ids, tid2eid, experts = a.input_ids, a.tid2eid, a.x.shape[1]
    if input_ids.is_cpu:
        check_hash_values(input_ids, tid2eid, experts)
        return tid2eid[input_ids.long()].long()
    found = tid2eid[_device_errors.within(input_ids, 0, len(tid2eid), _TOKENS).long()].long()
    return _device_errors.within(found, 0, experts, _EXPERTS)


@takes(Arguments)
def moe_gating_topk(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``anynpu.moe_gating_topk``."""
    check(a)
    scores = a.x.float().softmax(-1) if a.norm_type == SOFTMAX else a.x.float().sigmoid()
    if a.input_ids is not None:
        index = _looked_up(a)
    else:
        choice = scores if a.bias is None else scores + a.bias.float()
        if a.k_group < a.group_count:
            choice = _without_other_groups(a, choice)
        index = _best(choice, a.k)
    y = scores.gather(1, index)
    if a.norm_type == SIGMOID:
        y = y / (y.sum(-1, keepdim=True) + a.eps)
    return (y * a.routed_scaling_factor).to(a.x.dtype), index.int().contiguous(), scores
