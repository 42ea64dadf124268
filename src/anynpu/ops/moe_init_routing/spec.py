# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of moe_init_routing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from anynpu._arguments import takes
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


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    expert_idx: torch.Tensor
    scale: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    active_num: int = -1
    expert_capacity: int = -1
    expert_num: int = -1
    drop_pad_mode: int = 0
    expert_tokens_num_type: int = RUNNING_SUMS
    quant_mode: int = NONE
    active_expert_range: Sequence[int] | None = None
    row_idx_type: int = 0


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


def _require_inputs(a: Arguments) -> None:
    require_dtype(OP, "x", a.x, (*_FLOATS, torch.int8) if a.quant_mode == NONE else _FLOATS)
    require_dtype(OP, "expert_idx", a.expert_idx, (torch.int32,))
    for name, tensor in (("x", a.x), ("expert_idx", a.expert_idx)):
        axes = tensor.dim()
        require(OP, axes == 2, f"The {name} should be 2-Dimension, current is {axes}-Dimension.")
    rows = (a.expert_idx.shape[0], a.x.shape[0])
    sentence = f"the first dim of expert_idx and x should be the same, got {rows[0]} and {rows[1]}"
    require(OP, rows[0] == rows[1], sentence)


def _require_attributes(a: Arguments) -> None:
    require(OP, a.drop_pad_mode in (0, 1), f"drop_pad_mode must be in [0, 1], got {a.drop_pad_mode}")
    known = a.expert_tokens_num_type in (0, 1, 2)
    require(OP, known, f"expert_tokens_num_type must be in [0, 1, 2], got {a.expert_tokens_num_type}")
    require(OP, a.row_idx_type in (0, 1), f"row_idx_type must be in [0, 1], got {a.row_idx_type}")
    if a.quant_mode in range(2, 18):
        raise NotImplementedError(
            f"{OP}: quant_mode {a.quant_mode} (float8, hifloat8, float4 or int4 rows) is not implemented by anynpu; "
            "-1 (none), 0 (static int8) and 1 (dynamic int8) are"
        )
    require(OP, a.quant_mode in (NONE, STATIC, DYNAMIC), f"quant_mode must be in [-1, 17], got {a.quant_mode}")


def _expert_range(a: Arguments) -> tuple[int, int]:
    experts = a.expert_num
    require(OP, 1 <= experts < 2**31, f"expert_num must be at least 1 and less than 2^31, got {experts}")
    if not a.active_expert_range:
        return 0, experts
    length = len(a.active_expert_range)
    require(OP, length == 2, f"The length of list active_expert_range should be 2, current is {length}.")
    first, last = a.active_expert_range
    sentence = f"active_expert_range must increase within [0, expert_num] = [0, {experts}], got [{first}, {last}]"
    require(OP, 0 <= first < last <= experts, sentence)
    return first, last


def _require_scale(a: Arguments, experts: int) -> None:
    for name, tensor in (("scale", a.scale), ("offset", a.offset)):
        if tensor is not None:
            require_dtype(OP, name, tensor, (torch.float32,))
    if a.quant_mode == STATIC:
        require(OP, a.scale is not None and a.offset is not None, "quant_mode 0 needs scale and offset")
        shapes = tuple(a.scale.shape), tuple(a.offset.shape)
        sentence = f"the shape of scale should be 1, and that of offset, got {shapes[0]} and {shapes[1]}"
        require(OP, shapes == ((1,), (1,)), sentence)
        return
    require(OP, a.offset is None, "offset must be absent unless quant_mode is 0")
    if a.scale is None:
        return
    shape, (rows, width) = tuple(a.scale.shape), a.x.shape
    if a.quant_mode == NONE:
        fits = len(shape) == 1 and shape[0] == rows
        require(OP, fits, f"the scale shape support only 1D (bs,) = ({rows},) in no quant mode, got {shape}")
        return
    fits = len(shape) == 2 and (shape[0] == experts or shape[0] == 1) and shape[1] == width
    sentence = f"the first dim of scale must be in [expert_range_length, 1] = [{experts}, 1] and the second {width}"
    require(OP, fits, f"{sentence}, got {shape}")


def _require_padded(a: Arguments, experts: int) -> None:
    plain = experts == a.expert_num and a.row_idx_type == 0 and a.expert_tokens_num_type != PAIRS
    require(OP, plain, "drop_pad_mode 1 wants all experts, row_idx_type 0 and expert_tokens_num_type 0 or 1")
    rows, capacity = a.x.shape[0], a.expert_capacity
    fits = 0 < capacity and capacity <= rows
    require(OP, fits, f"expert_capacity must be in [1, N] = [1, {rows}] with drop_pad_mode 1, got {capacity}")


def plan(a: Arguments) -> Plan:
    """Checks everything that does not need data."""
    _require_attributes(a)
    _require_inputs(a)
    first, last = _expert_range(a)
    _require_scale(a, last - first)
    slots, width = a.expert_idx.shape[0] * a.expert_idx.shape[1], a.x.shape[1]
    if a.drop_pad_mode == 1:
        _require_padded(a, last - first)
        expanded_x, rows = [a.expert_num, a.expert_capacity, width], a.expert_num * a.expert_capacity
    else:
        rows = slots if a.active_num <= 0 else min(a.active_num, slots)
        expanded_x = [rows, width]
    tokens = [a.expert_num, 2] if a.expert_tokens_num_type == PAIRS else [last - first]
    dtype = a.x.dtype if a.quant_mode == NONE else torch.int8
    return Plan(first, last, expanded_x, dtype, slots, tokens, rows)


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake kernel."""
    made = plan(a)
    return (
        a.x.new_empty(made.expanded_x, dtype=made.dtype),
        a.x.new_empty(made.row_idx, dtype=torch.int32),
        a.x.new_empty(made.tokens, dtype=torch.int64),
        a.x.new_empty(made.rows, dtype=torch.float32),
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
    pairs = {"expert_tokens_num_type": PAIRS, "active_expert_range": [1, 5]}
    padded = {"expert_capacity": 4, "drop_pad_mode": 1, "expert_tokens_num_type": COUNTS}
    all_rows = Arguments(codes, ids, per_token, active_num=27, expert_num=6, expert_tokens_num_type=COUNTS)
    yield Sample("int8 rows with scales", all_rows._replace(active_expert_range=[2, 5], row_idx_type=1))
    yield Sample("bfloat16", Arguments(x.bfloat16(), ids, expert_num=6))
    yield Sample("dynamic", Arguments(x.half(), ids, smooth, active_num=20, expert_num=6, quant_mode=DYNAMIC, **pairs))
    yield Sample("static, padded", Arguments(x, ids, one, one / 7, expert_num=6, quant_mode=STATIC, **padded))
