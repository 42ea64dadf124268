# SPDX-License-Identifier: Apache-2.0
"""Oracle of dynamic_quant: the float32 arithmetic of the document, operation by operation."""

from __future__ import annotations

import torch

from anynpu.ops.dynamic_quant.spec import OP, output_shapes
from anynpu.ops.int4_pack.reference import int4_pack


def _smoothed(x, smooth_scales, group_index, quant_mode) -> torch.Tensor:
    value = x.float()
    if smooth_scales is None:
        return value
    if quant_mode == "perchannel":
        return value * smooth_scales.float().unsqueeze(-1)
    if group_index is None:
        return value * smooth_scales.float()
    rows = value.numel() // value.shape[-1] if value.numel() else 0
    ends = group_index.tolist()
    if ends[-1] != rows or any(a > b for a, b in zip([0, *ends], [*ends, rows], strict=True)):
        raise ValueError(f"{OP}: group_index must not decrease and end with the number of rows, {rows}, got {ends}")
    group = torch.searchsorted(group_index.long(), torch.arange(rows), right=True)
    return (value.reshape(rows, -1) * smooth_scales.float()[group]).reshape(value.shape)


def dynamic_quant(
    x: torch.Tensor,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    quant_mode: str = "pertoken",
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max |v| / 127 (7 for int4), y = rint(v / scale) with v = x * smooth_scales; NaN and all-zero give 0."""
    shape, scale_shape = output_shapes(x, smooth_scales, group_index, dtype, quant_mode)
    value = _smoothed(x, smooth_scales, group_index, quant_mode)
    magnitude = value.abs().nan_to_num(nan=0.0, posinf=float("inf"))
    if value.numel() == 0:
        return torch.zeros(shape, dtype=dtype), torch.zeros(scale_shape)
    if quant_mode == "pertensor":
        largest = magnitude.max().reshape(1)
    else:
        largest = magnitude.amax(-1 if quant_mode == "pertoken" else -2)
    scale = largest / (127.0 if dtype == torch.int8 else 7.0)
    divisor = {"pertoken": scale.unsqueeze(-1), "perchannel": scale.unsqueeze(-2), "pertensor": scale}[quant_mode]
    codes = torch.where(divisor == 0, 0.0, value / divisor).nan_to_num(nan=0.0).round()
    if dtype == torch.int8:
        return codes.to(torch.int8), scale
    return int4_pack(codes.int().reshape(-1, codes.shape[-1]).contiguous()).reshape(shape), scale
