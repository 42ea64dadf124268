# SPDX-License-Identifier: Apache-2.0
"""anti_quant out of other operators: it is bound by memory, and no model calls it in a loop."""

from __future__ import annotations

import torch

from anynpu.ops.anti_quant.spec import result_shape
from anynpu.ops.int4_pack import int4_unpack


def anti_quant(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """See ``anynpu.anti_quant``."""
    shape = result_shape(x, scale, offset, dtype)
    if x.dtype == torch.int32:
        x = int4_unpack(x.reshape(-1, x.shape[-1]).contiguous(), torch.int8).reshape(shape)
    values = torch.empty(shape, dtype=torch.float32, device=x.device).copy_(x)
    if offset is not None:
        values += offset
    values *= scale
    return values.to(dtype)
