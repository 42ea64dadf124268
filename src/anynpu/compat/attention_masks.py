# SPDX-License-Identifier: Apache-2.0
"""Which keys the queries of attention see, by the published mask and its modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu.ops.fused_attention.spec import ALL

CAUSAL_FROM_TOP_LEFT, CAUSAL, BAND = 2, 3, 4  # of sparse_mode
_MASKS = (torch.bool, torch.int8, torch.uint8)
_COMPRESSED = 2048  # rows and columns of the mask that stands for a causal or banded one


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees: ``tensor`` hides some, ``sparse_mode`` with its tokens before and after others."""

    tensor: torch.Tensor | None
    sparse_mode: int = 0
    before: int = ALL
    after: int = ALL

    def of_one_token(self, op: str) -> Mask:
        """The same for queries of one token, on which sparse_mode and its tokens have no effect."""
        if self.tensor is None or self.sparse_mode in (0, 1):
            return Mask(self.tensor)
        if self.sparse_mode != CAUSAL:
            rule = "sparse_mode must be 0, 1 or 3 for queries of one token"
            raise NotImplementedError(f"{op}: {rule}, got {self.sparse_mode}")
        return self

    def arguments(
        self, op: str, sizes: Sequence[tuple[int, int]], heads: int, packed: bool, one_row: bool = False
    ) -> dict[str, Any]:
        """Those of ``fused_attention``, for sequences of these ``sizes``; ``one_row``: queries have one token."""
        self._check(op)
        if self.tensor is None:
            return {}
        if self.sparse_mode in (CAUSAL_FROM_TOP_LEFT, CAUSAL):
            return {"after": 0, "from_end": self.sparse_mode == CAUSAL}
        limits = {"before": self.before, "after": self.after}
        if self.sparse_mode == BAND:
            return {**limits, "from_end": True}
        if packed:
            raise NotImplementedError(
                f"{op}: atten_mask with sparse_mode {self.sparse_mode} is not supported by anynpu in layout TND, "
                "supported: sparse_mode 2, 3 and 4"
            )
        mask = _with_four_axes(op, self.tensor, heads, sizes, one_row)
        return {"mask": mask, **(limits if self.sparse_mode == 0 else {})}

    def _check(self, op: str) -> None:
        mode, mask = self.sparse_mode, self.tensor
        if mode not in range(5):
            raise NotImplementedError(f"{op}: sparse_mode must be 0, 1, 2, 3 or 4, got {mode}")
        require(op, mode == 0 or mask is not None, f"atten_mask must be given for sparse_mode {mode}")
        if mask is None:
            return
        require_dtype(op, "atten_mask", mask, _MASKS)
        if mode >= CAUSAL_FROM_TOP_LEFT:
            shape = tuple(mask.shape)
            fits = 2 <= len(shape) <= 4 and shape == (*[1] * (len(shape) - 2), _COMPRESSED, _COMPRESSED)
            sides = f"({_COMPRESSED}, {_COMPRESSED}), or with leading axes of 1,"
            require(op, fits, f"atten_mask must have shape {sides} for sparse_mode {mode}, got {shape}")


def _with_four_axes(
    op: str, mask: torch.Tensor, heads: int, sizes: Sequence[tuple[int, int]], one_row: bool
) -> torch.Tensor:
    """(S, Skv), (B or 1, S, Skv) or (B or 1, N or 1, S, Skv), at least as large as every sequence.

    ``one_row``: the queries have one token, and an axis S may be left out.
    """
    batch, shape = len(sizes), tuple(mask.shape)
    rows, columns = (max(axis) for axis in zip(*sizes, strict=True))
    require(op, 2 <= len(shape) <= 4, f"atten_mask must have 2 to 4 axes, got shape {shape}")
    if len(shape) == 2:
        mask = mask[:, None] if one_row else mask[None]
    if mask.dim() == 3:
        mask = mask[:, None]
    fits = (
        mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, heads)
        and mask.shape[2] >= rows
        and mask.shape[3] >= columns
    )
    expected = f"({batch}, {columns}) or ({batch}, 1, {columns})" if one_row else f"({rows}, {columns})"
    require(op, fits, f"atten_mask must have shape {expected}, a leading axis of 1 or {batch}, or more, got {shape}")
    return mask
