# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of attention at the right ends of their rows: what they see, as a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require, require_dtype
from anynpu.ops.fused_attention.spec import ALL


def padding_size(op: str, name: str, size: torch.Tensor | None, lengths: Sequence[int] | None) -> torch.Tensor | None:
    """How many rows lie behind the sequences: one integer, below 0 counts as 0."""
    if size is None:
        return None
    require_dtype(op, name, size, (torch.int64, torch.int32))
    require(op, size.numel() == 1, f"{name} must have 1 element, got shape {tuple(size.shape)}")
    require(op, lengths is not None, f"{name} needs the lengths of its sequences")
    return size.reshape(1).clamp(min=0)


def _places(
    rows: int, lengths: torch.Tensor | None, padding: torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B or 1, rows], the position of each row in its sequence, and [B or 1, 1], how many there are."""
    row = torch.arange(rows, device=device)[None]
    if lengths is None:
        return row, torch.full((1, 1), rows, device=device)
    lengths = lengths[:, None]
    return (row if padding is None else row - (rows - padding - lengths)), lengths


def padded_mask(
    sides: tuple[int, int],
    lengths: tuple[torch.Tensor | None, torch.Tensor | None],
    paddings: tuple[torch.Tensor | None, torch.Tensor | None],
    device: torch.device,
    mask: torch.Tensor | None = None,
    before: int = ALL,
    after: int = ALL,
    from_end: bool = False,
) -> torch.Tensor:
    """bool [B or 1, N or 1, S, Skv], what queries (the first of each pair) do not see of the keys (the second).

    Positions count from the first token of a sequence, but for ``mask``, whose places are those of the rows.
    """
    (row, rows), (column, columns) = (_places(*each, device) for each in zip(sides, lengths, paddings, strict=True))
    own_row, own_column = ((place >= 0) & (place < count) for place, count in ((row, rows), (column, columns)))
    at = (row + (columns - rows if from_end else 0))[:, :, None]
    seen = own_row[:, :, None] & own_column[:, None]
    if before < ALL:
        seen = seen & (column[:, None] >= at - before)
    if after < ALL:
        seen = seen & (column[:, None] <= at + after)
    hidden = ~seen[:, None]
    return hidden if mask is None else hidden | mask[:, :, : sides[0], : sides[1]].bool()
