# SPDX-License-Identifier: Apache-2.0
"""W4A8 weights of msModelSlim checkpoints."""

from __future__ import annotations

import torch

from anynpu._check import require
from anynpu.formats._words import FLOAT_DTYPES, group_size_of, require_finite, require_matrix
from anynpu.formats.quantized_weight import QuantizedWeight


def from_msmodelslim_w4a8(
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_offset: torch.Tensor | None = None,
    weight_scale_second: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Converts one linear layer; the file's rule is ``real = (w - weight_offset) * scale``.

    Args:
        weight: int8 ``[N / 2, K]``; a byte holds two int4, row 2i in the low nibble and row 2i + 1 in the high one.
        weight_scale: float ``[N, G]``, or ``[N, 1]`` per channel.
        weight_offset: float like the product of the scales, or ``[N, 1]``.
        weight_scale_second: float ``[N, G]``: the scale of a group is ``weight_scale * weight_scale_second``.

    Raises:
        TypeError, ValueError: a dtype, shape or length that does not fit the others.
    """
    op = "from_msmodelslim_w4a8"
    require_matrix(op, "weight", weight, (torch.int8,), (None, None))
    n, k = 2 * weight.shape[0], weight.shape[1]
    require_matrix(op, "weight_scale", weight_scale, FLOAT_DTYPES, (n, None))
    scale = weight_scale.float()
    if weight_scale_second is not None:
        shape = tuple(scale.shape)
        require(op, shape[1] == 1, f"weight_scale must be (N, 1) with weight_scale_second, got {shape}")
        require_matrix(op, "weight_scale_second", weight_scale_second, FLOAT_DTYPES, (n, None))
        scale = scale * weight_scale_second.float()
    require_finite(op, "weight_scale", scale)
    groups = scale.shape[1]
    offset = None
    if weight_offset is not None:
        allowed = (*FLOAT_DTYPES, torch.int8, torch.int32)
        require_matrix(op, "weight_offset", weight_offset, allowed, (n, None))
        require(
            op,
            weight_offset.shape[1] in (1, groups),
            f"weight_offset must have 1 or {groups} columns, got {weight_offset.shape[1]}",
        )
        require_finite(op, "weight_offset", weight_offset)
        offset = -weight_offset.float().expand(n, groups)
    codes = torch.stack([(weight << 4) >> 4, weight >> 4], dim=1).reshape(n, k)
    return QuantizedWeight.from_codes(codes, scale, offset, group_size_of(op, k, groups))
