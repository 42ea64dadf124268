# SPDX-License-Identifier: Apache-2.0
"""The 64-bit words in which quantised matmuls take their scales and offsets."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.trans_quant_param import cpu, reference, spec

# The reference is exact and of tensor operations, and the tensors are small.
_op = register(Operator.of(spec, cpu, reference, cuda=reference.__name__))


def trans_quant_param(scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int = 0) -> torch.Tensor:
    """Encodes float32 scales, and offsets, as the int64 words that quantised matmuls read::

        bits 63..47  46  45 ....... 37  36..32  31 ................ 13  12..0
        0            1   offset, int9   0       float32 without its last 13 bits

    ``anynpu.reference.decode_quant_param`` reads them back.

    Args:
        scale: float32 ``[N]`` or ``[1, N]``, not empty.
        offset: float32 with as many axes; ``N`` or 1 values, or any number when ``scale`` has one. Rounded half to
            even, saturated to [-256, 255]; NaN counts as 0. None: 0.
        round_mode: 0 cuts the last 13 bits of the scale off, 1 rounds it half to even to the 19 that stay.

    Returns:
        int64 of the broadcast shape.

    Raises:
        TypeError: ``scale`` or ``offset`` is not float32.
        ValueError: shapes, or another ``round_mode``.

    Source: aclnnTransQuantParamV2, torch_npu.npu_trans_quant_param.

    >>> import torch, anynpu
    >>> word = anynpu.trans_quant_param(torch.tensor([0.1]), torch.tensor([-3.0]))
    >>> hex(word.item())
    '0x7fa03dccc000'
    >>> anynpu.reference.decode_quant_param(word)
    (tensor([0.1000]), tensor([-3.]))
    """
    return _op(scale, offset, round_mode)
