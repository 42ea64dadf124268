# SPDX-License-Identifier: Apache-2.0
"""Oracle of dynamic_quant: the float32 arithmetic of the document, operation by operation."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.dynamic_quant.spec import OP, Arguments, outputs
from anynpu.ops.int4_pack.reference import int4_pack


def _smoothed(a: Arguments) -> torch.Tensor:
    value = a.x.float()
    if a.smooth_scales is None:
        return value
    smooth = a.smooth_scales.float()
    if a.quant_mode == "perchannel":
        return value * smooth.unsqueeze(-1)
    if a.group_index is None:
        return value * smooth
    rows = value.numel() // value.shape[-1] if value.numel() else 0
    ends = a.group_index.tolist()
    if ends[-1] != rows or any(first > last for first, last in zip([0, *ends], [*ends, rows], strict=True)):
        raise ValueError(f"{OP}: group_index must not decrease and end with the number of rows, {rows}, got {ends}")
    group = torch.searchsorted(a.group_index.long(), torch.arange(rows), right=True)
    return (value.reshape(rows, -1) * smooth[group]).reshape(value.shape)


@takes(Arguments)
def dynamic_quant(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """scale = max |v| / 127 (7 for int4), y = rint(v / scale) with v = x * smooth_scales; NaN and all-zero give 0."""
    (shape, dtype), (scale_shape, _) = outputs(a)
    value = _smoothed(a)
    magnitude = value.abs().nan_to_num(nan=0.0, posinf=float("inf"))
    if value.numel() == 0:
        return torch.zeros(shape, dtype=dtype), torch.zeros(scale_shape)
    if a.quant_mode == "pertensor":
        largest = magnitude.max().reshape(1)
    else:
        largest = magnitude.amax(-1 if a.quant_mode == "pertoken" else -2)
    scale = largest / (127.0 if dtype == torch.int8 else 7.0)
    divisor = {"pertoken": scale.unsqueeze(-1), "perchannel": scale.unsqueeze(-2), "pertensor": scale}[a.quant_mode]
    codes = torch.where(divisor == 0, 0.0, value / divisor).nan_to_num(nan=0.0).round()
    if dtype == torch.int8:
        return codes.to(torch.int8), scale
    return int4_pack(codes.int().reshape(-1, codes.shape[-1]).contiguous()).reshape(shape), scale
