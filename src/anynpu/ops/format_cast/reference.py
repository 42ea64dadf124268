# SPDX-License-Identifier: Apache-2.0
"""Oracle of nd_to_nz and nz_to_nd: pad, cut into blocks, reorder."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu.ops.format_cast.spec import check_storage, storage_shape


def nd_to_nz(x: torch.Tensor, c0: int | None = None) -> torch.Tensor:
    """See ``anynpu.nd_to_nz``."""
    *batch, blocks, bands, rows, c0 = storage_shape(x, c0)
    padded = x.new_zeros([*batch, bands * rows, blocks * c0])
    padded[..., : x.shape[-2], : x.shape[-1]] = x
    return padded.reshape(*batch, bands, rows, blocks, c0).movedim(-2, -4).contiguous()


def nz_to_nd(storage: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """See ``anynpu.nz_to_nd``."""
    check_storage(storage, shape)
    *batch, blocks, bands, rows, c0 = storage.shape
    padded = storage.movedim(-4, -2).reshape(*batch, bands * rows, blocks * c0)
    return padded[..., : shape[-2], : shape[-1]].contiguous()
