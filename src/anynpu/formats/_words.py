# SPDX-License-Identifier: Apache-2.0
"""What the converters share: checks of file tensors, unsigned fields of int32 words, and act-order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require, require_dtype

FLIP_SIGN_BITS = -0x77777778  # 0x88888888: turns eight unsigned codes q into q - 8 as two's complement, and back
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def require_matrix(
    op: str, name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype], shape: tuple[int | None, int | None]
) -> None:
    """``tensor`` is a non-empty matrix of one of ``dtypes`` and of ``shape``, where None stands for any size."""
    require_dtype(op, name, tensor, dtypes)
    expected = ", ".join("any" if size is None else str(size) for size in shape)
    fits = tensor.dim() == 2 and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
    require(op, fits, f"{name} must have shape ({expected}), got {tuple(tensor.shape)}")
    require(op, tensor.numel() > 0, f"{name} must not be empty, got shape {tuple(tensor.shape)}")


def require_finite(op: str, name: str, tensor: torch.Tensor) -> None:
    """A scale or offset without NaN and infinity."""
    require(op, bool(torch.isfinite(tensor).all()), f"{name} must be finite")


def unsigned_fields(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The fields of ``bits`` bits of int32 ``[R, C]``, lowest first: int32 ``[R, C * 32 / bits]``."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def group_size_of(op: str, k: int, groups: int) -> int:
    """The group size that splits K into equal groups."""
    require(op, k % groups == 0, f"K must be a multiple of the number of groups, got K = {k} and {groups} groups")
    return k // groups


def order_of_groups(op: str, g_idx: torch.Tensor, k: int, group_size: int) -> torch.Tensor | None:
    """The order of K that makes groups contiguous, or None when they are: ``g_idx[k]`` is the group of row k.

    Raises:
        TypeError, ValueError: not integers ``[K]``, or groups of other sizes (the last may be smaller).
    """
    require_dtype(op, "g_idx", g_idx, (torch.int32, torch.int64))
    require(op, tuple(g_idx.shape) == (k,), f"g_idx must have shape ({k},), got {tuple(g_idx.shape)}")
    contiguous = torch.arange(k, device=g_idx.device) // group_size
    if torch.equal(g_idx.long(), contiguous):
        return None
    order = torch.argsort(g_idx.long(), stable=True)
    require(
        op,
        torch.equal(g_idx.long()[order], contiguous),
        f"every group of g_idx must have {group_size} rows (the last may have fewer), got other sizes",
    )
    return order
