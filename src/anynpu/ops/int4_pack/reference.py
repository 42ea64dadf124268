# SPDX-License-Identifier: Apache-2.0
"""Oracle of int4_pack and int4_unpack: exact integers, written for reading."""

from __future__ import annotations

import torch

from anynpu.ops.int4_pack.spec import VALUES_PER_ELEMENT, pack_shape, unpack_shape


def int4_pack(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Element j of the output holds values w*j .. w*j + w-1, value i of them in bits 4i .. 4i+3; w = 8 or 2."""
    shape = pack_shape(weight, dtype)
    outside = (weight < -8) | (weight > 7)
    if outside.any():
        index = outside.nonzero()[0].tolist()
        raise ValueError(
            f"int4_pack: every value of weight must be in [-8, 7], got {int(weight[tuple(index)])} at {index}"
        )
    nibbles = (weight.long() & 15).reshape(*shape, VALUES_PER_ELEMENT[dtype])
    shifts = 4 * torch.arange(VALUES_PER_ELEMENT[dtype])
    unsigned = (nibbles << shifts).sum(-1)  # at most 2**32 - 1, exact in int64
    return unsigned.to(dtype)


def int4_unpack(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """The inverse: nibble i of element j is value w*j + i, as two's complement."""
    shape = unpack_shape(packed, dtype)
    shifts = 4 * torch.arange(VALUES_PER_ELEMENT[packed.dtype])
    nibbles = (packed.long().unsqueeze(-1) >> shifts) & 15
    return torch.where(nibbles < 8, nibbles, nibbles - 16).reshape(shape).to(dtype)
