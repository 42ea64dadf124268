# SPDX-License-Identifier: Apache-2.0
"""Weights of AWQ checkpoints (AutoAWQ, version GEMM), 4 bits."""

from __future__ import annotations

import torch

from anynpu.formats._words import FLIP_SIGN_BITS, FLOAT_DTYPES, group_size_of, require_finite, require_matrix
from anynpu.formats.quantized_weight import QuantizedWeight

_SHIFT_OF_COLUMN = (0, 16, 4, 20, 8, 24, 12, 28)  # nibbles hold columns 0, 2, 4, 6, 1, 3, 5, 7, lowest first


def from_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> QuantizedWeight:
    """Converts one linear layer; the file's rule is ``real = (q - z) * scale`` with unsigned q.

    Args:
        qweight: int32 ``[K, N / 8]``; the nibbles of a word, lowest first, hold columns 0, 2, 4, 6, 1, 3, 5, 7.
        qzeros: int32 ``[G, N / 8]`` in the same order.
        scales: float ``[G, N]``.

    Raises:
        TypeError, ValueError: a dtype, shape or length that does not fit the others.
    """
    op = "from_awq"
    require_matrix(op, "qweight", qweight, (torch.int32,), (None, None))
    k, words = qweight.shape
    require_matrix(op, "scales", scales, FLOAT_DTYPES, (None, 8 * words))
    require_finite(op, "scales", scales)
    groups = scales.shape[0]
    require_matrix(op, "qzeros", qzeros, (torch.int32,), (groups, words))
    group_size = group_size_of(op, k, groups)
    offset = (8 - _fields(qzeros).flatten(-2)).float()  # [G, N]
    weight = _pack(_fields(qweight)) ^ FLIP_SIGN_BITS
    if groups == 1:
        return QuantizedWeight(weight, scales[0].float(), offset[0])
    return QuantizedWeight(weight, scales.float(), offset, group_size)


def _fields(words: torch.Tensor) -> torch.Tensor:
    shifts = torch.tensor(_SHIFT_OF_COLUMN, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> shifts) & 15  # [..., 8] in the order of columns


def _pack(fields: torch.Tensor) -> torch.Tensor:
    shifts = torch.arange(0, 32, 4, device=fields.device)
    return (fields.long() << shifts).sum(-1).to(torch.int32)
