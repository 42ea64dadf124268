# SPDX-License-Identifier: Apache-2.0
"""Weights of GPTQ checkpoints (AutoGPTQ, GPTQModel), 4 and 8 bits, with and without act-order."""

from __future__ import annotations

import torch

from anynpu._check import require
from anynpu.formats._words import (
    FLOAT_DTYPES,
    group_size_of,
    order_of_groups,
    require_finite,
    require_matrix,
    unsigned_fields,
)
from anynpu.formats.quantized_weight import QuantizedWeight

_ONE_IN_EVERY_FIELD = {4: 0x11111111, 8: 0x01010101}


def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    bits: int = 4,
    checkpoint_format: str = "gptq",
    group_size: int | None = None,
) -> QuantizedWeight:
    """Converts one linear layer; the file's rule is ``real = (q - z) * scale`` with unsigned q.

    Args:
        qweight: int32 ``[K * bits / 32, N]``, fields along K, lowest first.
        qzeros: int32 ``[G, N * bits / 32]``, fields along N; ``z`` in format ``gptq_v2``. Format ``gptq`` (v1) stores
            words from which ``0x11111111`` was subtracted, that is ``z - 1`` in every field.
        scales: float ``[G, N]``.
        g_idx: integers ``[K]``, the group of each k; None, or ``k // group_size``, without act-order.
        group_size: of the file's config; needed where it does not divide K.

    Raises:
        TypeError, ValueError: a dtype, shape or length that does not fit the others.
    """
    op = "from_gptq"
    require(op, bits in (4, 8), f"bits must be 4 or 8, got {bits}")
    formats = ("gptq", "gptq_v2")
    require(op, checkpoint_format in formats, f"checkpoint_format must be one of {formats}, got {checkpoint_format!r}")
    per_word = 32 // bits
    require_matrix(op, "qweight", qweight, (torch.int32,), (None, None))
    k, n = per_word * qweight.shape[0], qweight.shape[1]
    require(op, n % per_word == 0, f"N must be a multiple of {per_word}, got {n}")
    require_matrix(op, "scales", scales, FLOAT_DTYPES, (None, n))
    require_finite(op, "scales", scales)
    groups = scales.shape[0]
    require_matrix(op, "qzeros", qzeros, (torch.int32,), (groups, n // per_word))
    if group_size is None or groups == 1:
        group_size = group_size_of(op, k, groups)
    require(op, group_size > 0, f"group_size must be greater than 0, got {group_size}")
    require(op, groups == -(-k // group_size), f"scales must have ceil({k} / {group_size}) rows, got {groups}")
    order = None if g_idx is None else order_of_groups(op, g_idx, k, group_size)

    middle = 2 ** (bits - 1)
    codes = unsigned_fields(qweight.t(), bits) - middle  # [N, K]
    if order is not None:
        codes = codes[:, order]
    zero_words = qzeros if checkpoint_format == "gptq_v2" else qzeros + _ONE_IN_EVERY_FIELD[bits]
    offset = middle - unsigned_fields(zero_words, bits)  # [G, N]
    return QuantizedWeight.from_codes(codes, scales.t(), offset.t(), group_size, order, bits)
