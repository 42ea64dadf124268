# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of cast."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu.ops.cast.spec import check

_cast = _native.Call("cast", tensors=2)


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """See ``anynpu.cast``."""
    check(x, dtype)
    y = torch.empty(x.shape, dtype=dtype)
    _cast(x, y)
    return y
