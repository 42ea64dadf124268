# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of moe_gating_topk."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "moe_gating_topk"
SCHEMA = (
    "(Tensor x, int k, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, int k_group=1, "
    "int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, float routed_scaling_factor=1.0, "
    "float eps=1e-20) -> (Tensor, Tensor, Tensor)"
)
SOFTMAX, SIGMOID = 0, 1
LARGEST, TWO_LARGEST = 0, 1
_FLOATS = (torch.float16, torch.float32, torch.bfloat16)


def _require_modes(renorm, norm_type, group_select_mode) -> None:
    if renorm != 0:
        raise NotImplementedError(f"{OP}: renorm {renorm} is not documented; 0 is implemented")
    if norm_type not in (SOFTMAX, SIGMOID):
        raise NotImplementedError(f"{OP}: norm_type must be 0 (softmax) or 1 (sigmoid), got {norm_type}")
    require(OP, group_select_mode in (0, 1), f"group_select_mode must be 0 or 1, got {group_select_mode}")


def _require_groups(experts, k, k_group, group_count, group_select_mode) -> None:
    divides = group_count >= 1 and experts % group_count == 0
    require(OP, divides, f"group_count must divide the number of experts, {experts}, got {group_count}")
    within = 1 <= k_group <= group_count
    require(OP, within, f"k_group must be in [1, group_count] = [1, {group_count}], got {k_group}")
    size = experts // group_count
    enough = group_select_mode == LARGEST or size >= 2
    require(OP, enough, f"group_select_mode 1 needs groups of two experts or more, got {size}")
    most = size * k_group
    require(OP, 1 <= k <= most, f"k must be in [1, E / group_count * k_group] = [1, {most}], got {k}")


def _require_hash(x, k, input_ids, tid2eid) -> None:
    both = (input_ids is None) == (tid2eid is None)
    require(OP, both, "input_ids and tid2eid must be both provided or both omitted")
    if input_ids is None:
        return
    for name, tensor in (("input_ids", input_ids), ("tid2eid", tid2eid)):
        require_dtype(OP, name, tensor, (torch.int32, torch.int64))
    shape, rows = tuple(input_ids.shape), x.shape[0]
    require(OP, len(shape) == 1 and shape[0] == rows, f"input_ids must have shape (N,) = ({rows},), got {shape}")
    shape = tuple(tid2eid.shape)
    fits = len(shape) == 2 and shape[1] == k
    require(OP, fits, f"The tid2eid second dim should be same as k = {k}, got {shape}")


def check(
    x, k, bias=None, input_ids=None, tid2eid=None, k_group=1, group_count=1, group_select_mode=0, renorm=0,
    norm_type=0, routed_scaling_factor=1.0, eps=1e-20,
) -> None:  # fmt: skip
    """Checks everything that does not need data."""
    require_dtype(OP, "x", x, _FLOATS)
    require(OP, x.dim() == 2, f"The x should be 2D, got {x.dim()}D")
    _require_modes(renorm, norm_type, group_select_mode)
    _require_groups(x.shape[1], k, k_group, group_count, group_select_mode)
    if bias is not None:
        if bias.dtype != x.dtype:
            raise TypeError(f"{OP}: The dtype of x and bias should be same, got {x.dtype} and {bias.dtype}")
        require(OP, bias.dim() == 1, f"The bias should be 1D, got {bias.dim()}D")
        sizes = bias.shape[0], x.shape[1]
        sentence = f"The bias first dim should be same as x second dim, got {sizes[0]} and {sizes[1]}"
        require(OP, sizes[0] == sizes[1], sentence)
    _require_hash(x, k, input_ids, tid2eid)


def check_hash_values(input_ids: torch.Tensor, tid2eid: torch.Tensor, experts: int) -> None:
    """Token ids are rows of the table, and what it holds are experts."""
    for name, tensor, limit in (("input_ids", input_ids, tid2eid.shape[0]), ("tid2eid", tid2eid, experts)):
        low, high = (int(value) for value in tensor.aminmax()) if tensor.numel() else (0, -1)
        within = low >= 0 and high < limit
        require(OP, within, f"{name} must be in [0, {limit - 1}], got {low if low < 0 else high}")


def fake(x, k, *rest):
    """Fake kernel."""
    check(x, k, *rest)
    shape = [x.shape[0], k]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(x.shape, dtype=torch.float32)


def samples() -> Iterator[Sample]:
    """Valid calls, on logits far enough apart that every rounding orders them alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randperm(24, generator=generator) for _ in range(10)]) / 8.0 - 1.5
    bias = torch.arange(24) / 3.0
    table = torch.randint(0, 24, (50, 3), generator=generator)
    ids = torch.randint(0, 50, (10,), generator=generator)
    yield Sample("softmax", (x, 5))
    yield Sample("groups and bias", (x, 4, bias, None, None, 3, 6, TWO_LARGEST, 0, SIGMOID, 2.5))
    yield Sample("bfloat16, largest of a group", (x.bfloat16(), 2, None, None, None, 2, 4, LARGEST))
    yield Sample("by token id", (x, 3, None, ids, table, 1, 1, 0, 0, SIGMOID))
