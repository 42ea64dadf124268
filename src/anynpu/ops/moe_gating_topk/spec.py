# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of moe_gating_topk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
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


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    k: int
    bias: torch.Tensor | None = None
    input_ids: torch.Tensor | None = None
    tid2eid: torch.Tensor | None = None
    k_group: int = 1
    group_count: int = 1
    group_select_mode: int = LARGEST
    renorm: int = 0
    norm_type: int = SOFTMAX
    routed_scaling_factor: float = 1.0
    eps: float = 1e-20


def _require_modes(a: Arguments) -> None:
    if a.renorm != 0:
        raise NotImplementedError(f"{OP}: renorm {a.renorm} is not documented; 0 is implemented")
    if a.norm_type not in (SOFTMAX, SIGMOID):
        raise NotImplementedError(f"{OP}: norm_type must be 0 (softmax) or 1 (sigmoid), got {a.norm_type}")
    require(OP, a.group_select_mode in (0, 1), f"group_select_mode must be 0 or 1, got {a.group_select_mode}")


def _require_groups(a: Arguments) -> None:
    experts, groups = a.x.shape[1], a.group_count
    divides = groups >= 1 and experts % groups == 0
    require(OP, divides, f"group_count must divide the number of experts, {experts}, got {groups}")
    within = 1 <= a.k_group <= groups
    require(OP, within, f"k_group must be in [1, group_count] = [1, {groups}], got {a.k_group}")
    size = experts // groups
    enough = a.group_select_mode == LARGEST or size >= 2
    require(OP, enough, f"group_select_mode 1 needs groups of two experts or more, got {size}")
    most = size * a.k_group
    require(OP, 1 <= a.k <= most, f"k must be in [1, E / group_count * k_group] = [1, {most}], got {a.k}")


def _require_hash(a: Arguments) -> None:
    both = (a.input_ids is None) == (a.tid2eid is None)
    require(OP, both, "input_ids and tid2eid must be both provided or both omitted")
    if a.input_ids is None:
        return
    for name, tensor in (("input_ids", a.input_ids), ("tid2eid", a.tid2eid)):
        require_dtype(OP, name, tensor, (torch.int32, torch.int64))
    shape, rows = tuple(a.input_ids.shape), a.x.shape[0]
    require(OP, len(shape) == 1 and shape[0] == rows, f"input_ids must have shape (N,) = ({rows},), got {shape}")
    shape = tuple(a.tid2eid.shape)
    fits = len(shape) == 2 and shape[1] == a.k
    require(OP, fits, f"The tid2eid second dim should be same as k = {a.k}, got {shape}")


def check(a: Arguments) -> None:
    """Checks everything that does not need data."""
    require_dtype(OP, "x", a.x, _FLOATS)
    require(OP, a.x.dim() == 2, f"The x should be 2D, got {a.x.dim()}D")
    _require_modes(a)
    _require_groups(a)
    if a.bias is not None:
        if a.bias.dtype != a.x.dtype:
            raise TypeError(f"{OP}: The dtype of x and bias should be same, got {a.x.dtype} and {a.bias.dtype}")
        require(OP, a.bias.dim() == 1, f"The bias should be 1D, got {a.bias.dim()}D")
        sizes = a.bias.shape[0], a.x.shape[1]
        sentence = f"The bias first dim should be same as x second dim, got {sizes[0]} and {sizes[1]}"
        require(OP, sizes[0] == sizes[1], sentence)
    _require_hash(a)


def check_hash_values(input_ids: torch.Tensor, tid2eid: torch.Tensor, experts: int) -> None:
    """Token ids are rows of the table, and what it holds are experts."""
    for name, tensor, limit in (("input_ids", input_ids, tid2eid.shape[0]), ("tid2eid", tid2eid, experts)):
        low, high = (int(value) for value in tensor.aminmax()) if tensor.numel() else (0, -1)
        within = low >= 0 and high < limit
        require(OP, within, f"{name} must be in [0, {limit - 1}], got {low if low < 0 else high}")


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake kernel."""
    check(a)
    shape = [a.x.shape[0], a.k]
    return a.x.new_empty(shape), a.x.new_empty(shape, dtype=torch.int32), a.x.new_empty(a.x.shape, dtype=torch.float32)


def samples() -> Iterator[Sample]:
    """Valid calls, on logits far enough apart that every rounding orders them alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randperm(24, generator=generator) for _ in range(10)]) / 8.0 - 1.5
    bias = torch.arange(24) / 3.0
    table = torch.randint(0, 24, (50, 3), generator=generator)
    ids = torch.randint(0, 50, (10,), generator=generator)
    yield Sample("softmax", (x, 5))
    groups = {"k_group": 3, "group_count": 6, "group_select_mode": TWO_LARGEST}
    sigmoid = {"norm_type": SIGMOID, "routed_scaling_factor": 2.5}
    yield Sample("groups and bias", Arguments(x, 4, bias, **groups, **sigmoid))
    yield Sample("bfloat16, largest of a group", Arguments(x.bfloat16(), 2, k_group=2, group_count=4))
    yield Sample("by token id", Arguments(x, 3, input_ids=ids, tid2eid=table, norm_type=SIGMOID))
