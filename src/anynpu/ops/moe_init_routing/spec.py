# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of moe_init_routing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "moe_init_routing"
SCHEMA = (
    "(Tensor x, Tensor expert_idx, Tensor? scale=None, Tensor? offset=None, int active_num=-1, int expert_capacity=-1, "
    "int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, int quant_mode=-1, "
    "int[]? active_expert_range=None, int row_idx_type=0) -> (Tensor, Tensor, Tensor, Tensor)"
)
RUNNING_SUMS, COUNTS, PAIRS = 0, 1, 2
NONE, STATIC, DYNAMIC = -1, 0, 1
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Plan:
    """What the arguments come to: shapes and dtype of the results, and the range of experts."""

    first: int
    last: int
    expanded_x: list[int]
    dtype: torch.dtype
    row_idx: int
    tokens: list[int]
    rows: int


def _require_inputs(x, expert_idx, quant_mode) -> None:
    require_dtype(OP, "x", x, (*_FLOATS, torch.int8) if quant_mode == NONE else _FLOATS)
    require_dtype(OP, "expert_idx", expert_idx, (torch.int32,))
    for name, tensor in (("x", x), ("expert_idx", expert_idx)):
        axes = tensor.dim()
        require(OP, axes == 2, f"The {name} should be 2-Dimension, current is {axes}-Dimension.")
    rows = (expert_idx.shape[0], x.shape[0])
    sentence = f"the first dim of expert_idx and x should be the same, got {rows[0]} and {rows[1]}"
    require(OP, rows[0] == rows[1], sentence)


def _require_attributes(drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type) -> None:
    require(OP, drop_pad_mode in (0, 1), f"drop_pad_mode must be in [0, 1], got {drop_pad_mode}")
    known = expert_tokens_num_type in (0, 1, 2)
    require(OP, known, f"expert_tokens_num_type must be in [0, 1, 2], got {expert_tokens_num_type}")
    require(OP, row_idx_type in (0, 1), f"row_idx_type must be in [0, 1], got {row_idx_type}")
    if quant_mode in range(2, 18):
        raise NotImplementedError(
            f"{OP}: quant_mode {quant_mode} (float8, hifloat8, float4 or int4 rows) is not implemented by anynpu; "
            "-1 (none), 0 (static int8) and 1 (dynamic int8) are"
        )
    require(OP, quant_mode in (NONE, STATIC, DYNAMIC), f"quant_mode must be in [-1, 17], got {quant_mode}")


def _expert_range(active_expert_range, expert_num) -> tuple[int, int]:
    require(OP, 1 <= expert_num < 2**31, f"expert_num must be at least 1 and less than 2^31, got {expert_num}")
    if not active_expert_range:
        return 0, expert_num
    length = len(active_expert_range)
    require(OP, length == 2, f"The length of list active_expert_range should be 2, current is {length}.")
    first, last = active_expert_range
    sentence = f"active_expert_range must increase within [0, expert_num] = [0, {expert_num}], got [{first}, {last}]"
    require(OP, 0 <= first < last <= expert_num, sentence)
    return first, last


def _require_scale(x, scale, offset, quant_mode, experts) -> None:
    for name, tensor in (("scale", scale), ("offset", offset)):
        if tensor is not None:
            require_dtype(OP, name, tensor, (torch.float32,))
    if quant_mode == STATIC:
        require(OP, scale is not None and offset is not None, "quant_mode 0 needs scale and offset")
        shapes = tuple(scale.shape), tuple(offset.shape)
        sentence = f"the shape of scale should be 1, and that of offset, got {shapes[0]} and {shapes[1]}"
        require(OP, shapes == ((1,), (1,)), sentence)
        return
    require(OP, offset is None, "offset must be absent unless quant_mode is 0")
    if scale is None:
        return
    shape, rows, width = tuple(scale.shape), x.shape[0], x.shape[1]
    if quant_mode == NONE:
        fits = scale.dim() == 1 and shape[0] == rows
        require(OP, fits, f"the scale shape support only 1D (bs,) = ({rows},) in no quant mode, got {shape}")
        return
    fits = scale.dim() == 2 and (shape[0] == experts or shape[0] == 1) and shape[1] == width
    sentence = f"the first dim of scale must be in [expert_range_length, 1] = [{experts}, 1] and the second {width}"
    require(OP, fits, f"{sentence}, got {shape}")


def _require_padded(plan_experts, expert_num, expert_capacity, rows, row_idx_type, expert_tokens_num_type) -> None:
    plain = plan_experts == expert_num and row_idx_type == 0 and expert_tokens_num_type != PAIRS
    require(OP, plain, "drop_pad_mode 1 wants all experts, row_idx_type 0 and expert_tokens_num_type 0 or 1")
    fits = 0 < expert_capacity and expert_capacity <= rows
    require(OP, fits, f"expert_capacity must be in [1, N] = [1, {rows}] with drop_pad_mode 1, got {expert_capacity}")


def plan(
    x, expert_idx, scale=None, offset=None, active_num=-1, expert_capacity=-1, expert_num=-1, drop_pad_mode=0,
    expert_tokens_num_type=0, quant_mode=-1, active_expert_range=None, row_idx_type=0,
) -> Plan:  # fmt: skip
    """Checks everything that does not need data."""
    _require_attributes(drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type)
    _require_inputs(x, expert_idx, quant_mode)
    first, last = _expert_range(active_expert_range, expert_num)
    _require_scale(x, scale, offset, quant_mode, last - first)
    slots, width = expert_idx.shape[0] * expert_idx.shape[1], x.shape[1]
    if drop_pad_mode == 1:
        _require_padded(last - first, expert_num, expert_capacity, x.shape[0], row_idx_type, expert_tokens_num_type)
        expanded_x, rows = [expert_num, expert_capacity, width], expert_num * expert_capacity
    else:
        rows = slots if active_num <= 0 else min(active_num, slots)
        expanded_x = [rows, width]
    tokens = [expert_num, 2] if expert_tokens_num_type == PAIRS else [last - first]
    dtype = x.dtype if quant_mode == NONE else torch.int8
    return Plan(first, last, expanded_x, dtype, slots, tokens, rows)


def fake(x, expert_idx, *rest):
    """Fake kernel."""
    made = plan(x, expert_idx, *rest)
    return (
        x.new_empty(made.expanded_x, dtype=made.dtype),
        x.new_empty(made.row_idx, dtype=torch.int32),
        x.new_empty(made.tokens, dtype=torch.int64),
        x.new_empty(made.rows, dtype=torch.float32),
    )


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 40, generator=generator)
    ids = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(9)]).int()
    codes = torch.randint(-128, 128, (9, 40), generator=generator, dtype=torch.int8)
    per_token = torch.rand(9, generator=generator)
    smooth = torch.rand(4, 40, generator=generator) + 0.5
    one = torch.tensor([20.0])
    yield Sample("int8 rows with scales", (codes, ids, per_token, None, 27, -1, 6, 0, COUNTS, NONE, [2, 5], 1))
    yield Sample("bfloat16", (x.bfloat16(), ids, None, None, -1, -1, 6))
    yield Sample("dynamic", (x.half(), ids, smooth, None, 20, -1, 6, 0, PAIRS, DYNAMIC, [1, 5]))
    yield Sample("static, padded", (x, ids, one, one / 7, -1, 4, 6, 1, COUNTS, STATIC))
