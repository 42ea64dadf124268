# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of int4_pack and int4_unpack."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu.ops.int4_pack.spec import pack_shape, unpack_shape

_pack = _native.Call("int4_pack", tensors=2, scalars="2i")
_unpack = _native.Call("int4_unpack", tensors=2)
_OUTPUT_IS_SCRATCH = (1, 0)  # on an error the output is dropped, so the library need not restore it


def int4_pack(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """See ``anynpu.int4_pack``."""
    packed = torch.empty(pack_shape(weight, dtype), dtype=dtype)
    _pack(weight, packed, scalars=_OUTPUT_IS_SCRATCH)
    return packed


def int4_unpack(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """See ``anynpu.int4_unpack``."""
    weight = torch.empty(unpack_shape(packed, dtype), dtype=dtype)
    _unpack(packed, weight)
    return weight
