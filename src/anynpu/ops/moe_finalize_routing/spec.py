# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of moe_finalize_routing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "moe_finalize_routing"
SCHEMA = (
    "(Tensor expanded_rows, Tensor? skip1, Tensor? skip2, Tensor? bias, Tensor? scales, Tensor row_idx, "
    "Tensor? expert_idx=None, int drop_pad_mode=0, int k=1) -> Tensor"
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    expanded_rows: torch.Tensor
    skip1: torch.Tensor | None
    skip2: torch.Tensor | None
    bias: torch.Tensor | None
    scales: torch.Tensor | None
    row_idx: torch.Tensor
    expert_idx: torch.Tensor | None = None
    drop_pad_mode: int = 0
    k: int = 1


@dataclass(frozen=True)
class Sizes:
    """Rows to choose from, tokens, choices of a token, width."""

    rows: int
    tokens: int
    chosen: int
    width: int


def _require_matrix(name: str, tensor: torch.Tensor | None, shape: tuple, dtypes: tuple) -> None:
    if tensor is None:
        return
    require_dtype(OP, name, tensor, dtypes)
    got = tuple(tensor.shape)
    fits = len(got) == 2 and all(want is None or a == want for a, want in zip(got, shape, strict=True))
    expected = ", ".join("E" if want is None else str(want) for want in shape)
    require(OP, fits, f"{name} must have shape ({expected}), got {got}")


def sizes(a: Arguments) -> Sizes:
    """Checks everything that does not need data."""
    rows, scales = a.expanded_rows, a.scales
    require_dtype(OP, "expanded_rows", rows, FLOATS)
    require_dtype(OP, "row_idx", a.row_idx, (torch.int32,))
    axes = rows.dim()
    require(OP, axes in (2, 3), f"expanded_rows must have shape (rows, H) or (E, C, H), got {axes} axes")
    require(OP, a.row_idx.dim() == 1, f"row_idx must have shape (N K,), got {tuple(a.row_idx.shape)}")
    require(OP, a.drop_pad_mode in (0, 1, 2, 3), f"drop_pad_mode must be 0, 1, 2 or 3, got {a.drop_pad_mode}")
    if scales is None:
        require(OP, a.k >= 1, f"k must be at least 1, got {a.k}")
    elif scales.dim() != 2:
        raise ValueError(f"{OP}: scales must have shape (N, K), got {tuple(scales.shape)}")
    chosen = a.k if scales is None else scales.shape[1]
    slots, width, dtype = a.row_idx.shape[0], rows.shape[-1], rows.dtype
    tokens = slots // a.k if scales is None else scales.shape[0]
    sentence = f"row_idx must have N * K = {tokens} * {chosen} elements, got {slots}"
    require(OP, slots == tokens * chosen, sentence)
    _require_matrix("scales", scales, (tokens, chosen), FLOATS)
    for name, tensor in (("skip1", a.skip1), ("skip2", a.skip2)):
        _require_matrix(name, tensor, (tokens, width), (dtype,))
    _require_matrix("bias", a.bias, (None, width), (dtype,))
    require(OP, a.bias is None or a.expert_idx is not None, "bias needs the experts of each token")
    _require_matrix("expert_idx", a.expert_idx, (tokens, chosen), (torch.int32,))
    return Sizes(math.prod(rows.shape[:-1]), tokens, chosen, width)


def check_values(a: Arguments, rows: int) -> None:
    """Indices name rows that exist, or -1 for none; experts have a bias."""
    if a.row_idx.numel() == 0:
        return
    low, high = (int(value) for value in a.row_idx.aminmax())
    within = low >= -1 and high < rows
    require(OP, within, f"row_idx must be in [-1, {rows - 1}], got {low if low < -1 else high}")
    if a.bias is None:
        return
    low, high = (int(value) for value in a.expert_idx.aminmax())
    experts = a.bias.shape[0]
    within = low >= 0 and high < experts
    require(OP, within, f"experts must be in [0, {experts - 1}], got {low if low < 0 else high}")


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel."""
    made = sizes(a)
    return a.expanded_rows.new_empty([made.tokens, made.width])


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(18, 20, generator=generator)
    skip = torch.randn(2, 6, 20, generator=generator)
    bias = torch.randn(4, 20, generator=generator)
    scales = torch.rand(6, 3, generator=generator)
    index = torch.randperm(18, generator=generator).int()
    experts = torch.randint(0, 4, (6, 3), generator=generator, dtype=torch.int32)
    dropped = torch.where(index % 5 == 0, -1, index)
    yield Sample("column-major", (rows, *skip, bias, scales, index, experts))
    halves = (rows.half(), None, None, None, scales.half(), index)
    yield Sample("row-major, float16", Arguments(*halves, drop_pad_mode=2))
    padded = (rows.bfloat16().reshape(2, 9, 20), None, None, None, scales, dropped)
    yield Sample("padded, dropped", Arguments(*padded, drop_pad_mode=3))
    yield Sample("without scales", Arguments(rows, None, None, None, None, index, drop_pad_mode=2, k=2))
