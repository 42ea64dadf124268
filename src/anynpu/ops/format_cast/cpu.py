# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of nd_to_nz and nz_to_nd."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu import _native
from anynpu.ops.format_cast.spec import check_storage, storage_shape

_format_cast = _native.Call("format_cast", tensors=2)


def nd_to_nz(x: torch.Tensor, c0: int | None = None) -> torch.Tensor:
    """See ``anynpu.nd_to_nz``."""
    storage = torch.empty(storage_shape(x, c0), dtype=x.dtype)
    _format_cast.run(_native.describe(x) + _native.describe_nz(storage, x.shape))
    return storage


def nz_to_nd(storage: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """See ``anynpu.nz_to_nd``."""
    check_storage(storage, shape)
    x = torch.empty(shape, dtype=storage.dtype)
    _format_cast.run(_native.describe_nz(storage, x.shape) + _native.describe(x))
    return x
