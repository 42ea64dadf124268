# SPDX-License-Identifier: Apache-2.0
"""Oracle of trans_quant_param, and the decoder of its words: exact integers, written for reading."""

from __future__ import annotations

import torch

from anynpu.ops.trans_quant_param.spec import param_shape


def trans_quant_param(scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int = 0) -> torch.Tensor:
    """Bits 0..31 the scale without its last 13 bits, bits 37..45 the offset as a 9-bit integer, bit 46 set."""
    shape = param_shape(scale, offset, round_mode)
    bits = scale.expand(shape).contiguous().view(torch.int32).long() & 0xFFFFFFFF
    kept = bits >> 13
    if round_mode == 1:
        rest = bits & 0x1FFF
        kept += (rest > 0x1000) | ((rest == 0x1000) & (kept % 2 == 1))  # a carry into the exponent is right
    kept = torch.where(scale.isnan(), bits >> 13 | 1 << 9, kept)  # quiet, or cutting could leave an infinity
    code = torch.zeros(shape, dtype=torch.int64, device=scale.device)
    if offset is not None:
        code = offset.nan_to_num(nan=0.0).round().clamp(-256, 255).long().expand(shape)
    return 1 << 46 | (code & 0x1FF) << 37 | kept << 13


def decode_quant_param(param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The float32 scales and float32 offsets that int64 words of ``anynpu.trans_quant_param`` hold."""
    bits = param & 0xFFFFFFFF
    scale = torch.where(bits < 1 << 31, bits, bits - (1 << 32)).to(torch.int32).view(torch.float32)
    field = param >> 37 & 0x1FF
    return scale, torch.where(field < 256, field, field - 512).float()
