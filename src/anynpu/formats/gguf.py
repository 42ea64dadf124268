# SPDX-License-Identifier: Apache-2.0
"""Weights of GGUF files (llama.cpp) in the block types Q4_0, Q4_1 and Q8_0."""

from __future__ import annotations

import torch

from anynpu._check import require, require_type
from anynpu.formats._words import require_finite, require_matrix
from anynpu.formats.quantized_weight import QuantizedWeight

BLOCK = 32  # k in one block
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
BLOCK_TYPES = tuple(_BLOCK_BYTES)


def from_gguf(data: torch.Tensor, block_type: str) -> QuantizedWeight:
    """Converts one matrix; ``real = (q - 8) * d`` in Q4_0 and ``q * d + m`` in Q4_1, q unsigned; ``q * d`` in Q8_0.

    Args:
        data: uint8 ``[N, K / 32 * B]``: blocks of B = 18 (20) bytes: fp16 d, (fp16 m,) and 16 bytes whose low nibbles
            are k = 0..15 of the block and whose high nibbles k = 16..31; in Q8_0 34 bytes, fp16 d and 32 int8.
        block_type: ``"Q4_0"``, ``"Q4_1"`` or ``"Q8_0"``.

    Raises:
        TypeError, ValueError: another block type, dtype or length.
    """
    op = "from_gguf"
    require_type(op, "block_type", block_type, str, "a string")
    require(op, block_type in _BLOCK_BYTES, f"block_type must be one of {BLOCK_TYPES}, got {block_type!r}")
    require_matrix(op, "data", data, (torch.uint8,), (None, None))
    size = _BLOCK_BYTES[block_type]
    n, row_bytes = data.shape
    require(op, row_bytes % size == 0, f"rows of data must be whole blocks of {size} bytes, got {row_bytes} bytes")
    blocks = data.contiguous().reshape(n, row_bytes // size, size)
    code_bytes = BLOCK if block_type == "Q8_0" else BLOCK // 2
    header = blocks[..., :-code_bytes].contiguous().view(torch.float16).float()  # [N, G, 1 or 2]
    require_finite(op, "block scales", header)
    if block_type == "Q8_0":
        codes = blocks[..., 2:].contiguous().view(torch.int8).reshape(n, -1)
        return QuantizedWeight.from_codes(codes, header[..., 0], None, BLOCK, bits=8)
    nibbles = torch.cat([blocks[..., -16:] & 15, blocks[..., -16:] >> 4], dim=-1)  # [N, G, 32]
    codes = nibbles.to(torch.int8) - 8
    scale = header[..., 0]
    if block_type == "Q4_0":
        return QuantizedWeight.from_codes(codes.reshape(n, -1), scale, None, BLOCK)
    minimum = header[..., 1]
    flat = scale == 0  # every value of the block is m: written as (0 + m) * 1
    codes = codes.masked_fill(flat.unsqueeze(-1), 0)
    offset = torch.where(flat, minimum, 8 + minimum / torch.where(flat, 1, scale))
    return QuantizedWeight.from_codes(codes.reshape(n, -1), torch.where(flat, 1, scale), offset, BLOCK)
