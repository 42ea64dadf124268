# SPDX-License-Identifier: Apache-2.0
"""Attention over an INT8 KV cache."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.kv_cache_attention import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def kv_cache_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    *,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Attention of queries over the INT8 cache that :func:`anynpu.rope_kv_cache` writes, without dequantising it.

    ::

        k, v = (k_cache - offset_k) * scale_k, (v_cache - offset_v) * scale_v
        out  = softmax(q @ k^T * softmax_scale) @ v            float32 softmax over the rows that a query sees

    Query head h reads kv head ``h // (Nq / Nkv)``.

    Args:
        q: float16, bfloat16 or float32 ``[B, S, Nq, D]``, of any strides: the last S positions of each sequence.
        k_cache, v_cache: int8 ``[C1, C2, Nkv, D]``, contiguous. Row r of sequence b is ``[b, r]``, or with a
            block_table ``[block_table[b, r // C2], r % C2]``.
        lengths: int32 ``[B]``, how many rows each sequence has, those of q included.
        scale_k, scale_v, offset_k, offset_v: float32 ``[Nkv, D]``.
        block_table: int32 ``[B, blocks]``; entries of unused blocks are not read.
        starts: int32 ``[B]``, rows before them are not seen (padding on the left).
        softmax_scale: ``D ** -0.5`` by default.
        causal: query s sees rows before ``lengths[b] - S + s + 1``; otherwise all rows.

    Returns:
        ``[B, S, Nq, D]`` in the dtype of q, zeros for a query that sees no row. The same bits for any
        number of threads.

    Raises:
        TypeError: a dtype.
        ValueError: a shape; a length, start or used block out of range.

    >>> import torch, anynpu
    >>> cache = torch.tensor([[[[4, 2]], [[8, -6]], [[99, 99]]]], dtype=torch.int8)  # rows (4, 2), (8, -6), unused
    >>> one, two_rows = torch.ones(1, 2), torch.tensor([2], dtype=torch.int32)
    >>> anynpu.kv_cache_attention(torch.zeros(1, 1, 1, 2), cache, cache, two_rows, one, one).tolist()
    [[[[6.0, -2.0]]]]
    """
    return _op(
        q, k_cache, v_cache, lengths, scale_k, scale_v, offset_k, offset_v, block_table, starts, softmax_scale, causal
    )
