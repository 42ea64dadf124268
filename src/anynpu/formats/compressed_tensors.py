# SPDX-License-Identifier: Apache-2.0
"""Weights of compressed-tensors checkpoints (llm-compressor, vLLM), format ``pack-quantized``."""

from __future__ import annotations

import torch

from anynpu._check import require
from anynpu.formats._words import (
    FLIP_SIGN_BITS,
    FLOAT_DTYPES,
    order_of_groups,
    require_finite,
    require_matrix,
    unsigned_fields,
)
from anynpu.formats.quantized_weight import QuantizedWeight, packing_axis, rows_of_groups


def from_compressed_tensors(
    weight_packed: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_zero_point: torch.Tensor | None = None,
    weight_shape: torch.Tensor | None = None,
    weight_g_idx: torch.Tensor | None = None,
    group_size: int | None = None,
    bits: int = 4,
) -> QuantizedWeight:
    """Converts one linear layer; the file's rule is ``real = (q - zero_point) * scale`` with signed q.

    Args:
        weight_packed: int32 ``[N, ceil(K / 8)]``, ``q + 8`` in nibbles, lowest first; with 8 bits ``[N, ceil(K / 4)]``,
            ``q + 128`` in bytes.
        weight_scale: float ``[N, G]``, or ``[N, 1]`` per channel.
        weight_zero_point: int8 ``[N, G]``, or int32 ``[ceil(N / 8), G]`` (8 bits: ``[ceil(N / 4), G]``) packed
            along N as the weight is along K.
        weight_shape: integers ``[N, K]``; needed where K does not fill the last word.
        weight_g_idx: group of each k (activation ordering), -1 everywhere for none.
        group_size: of the file's config; needed where it does not divide K.
        bits: 4 or 8.

    Raises:
        TypeError, ValueError: a dtype, shape or length that does not fit the others.
    """
    op = "from_compressed_tensors"
    require(op, bits in (4, 8), f"bits must be 4 or 8, got {bits}")
    require_matrix(op, "weight_packed", weight_packed, (torch.int32,), (None, None))
    n, words = weight_packed.shape
    k = _columns(op, weight_shape, n, words, 32 // bits)
    require_matrix(op, "weight_scale", weight_scale, FLOAT_DTYPES, (n, None))
    require_finite(op, "weight_scale", weight_scale)
    groups = weight_scale.shape[1]
    group_size = _group_size(op, k, groups, group_size)
    offset = None
    if weight_zero_point is not None:
        offset = -_zero_points(op, weight_zero_point, n, groups, bits).float()
    order = None
    if weight_g_idx is not None and groups > 1 and not bool((weight_g_idx == -1).all()):
        order = order_of_groups(op, weight_g_idx, k, group_size)
    if bits == 4 and order is None and packing_axis(k, n) == "k":
        offset_rows = None if offset is None else rows_of_groups(offset)
        weight = (weight_packed ^ FLIP_SIGN_BITS).contiguous().t()
        return QuantizedWeight(weight, rows_of_groups(weight_scale), offset_rows, group_size if groups > 1 else 0)
    codes = unsigned_fields(weight_packed, bits)[:, :k] - 2 ** (bits - 1)
    if order is not None:
        codes = codes[:, order]
    return QuantizedWeight.from_codes(codes, weight_scale, offset, group_size, order, bits)


def _columns(op: str, weight_shape: torch.Tensor | None, n: int, words: int, per_word: int) -> int:
    if weight_shape is None:
        return per_word * words
    sizes = weight_shape.flatten().tolist()
    require(op, len(sizes) == 2, f"weight_shape must hold (N, K), got {sizes}")
    rows, k = (int(size) for size in sizes)
    require(op, rows == n, f"weight_shape[0] must be the rows of weight_packed, {n}, got {rows}")
    fits = per_word * (words - 1) < k <= per_word * words
    require(op, fits, f"weight_shape[1] must fit {words} words of {per_word}, got {k}")
    return k


def _group_size(op: str, k: int, groups: int, group_size: int | None) -> int:
    if group_size is None or groups == 1:
        require(op, k % groups == 0, f"group_size is needed: {groups} groups do not divide K = {k}")
        return k // groups
    require(op, group_size > 0, f"group_size must be greater than 0, got {group_size}")
    expected = -(-k // group_size)
    require(op, groups == expected, f"weight_scale must have {k} / {group_size} = {expected} columns, got {groups}")
    return group_size


def _zero_points(op: str, zero_point: torch.Tensor, n: int, groups: int, bits: int) -> torch.Tensor:
    if zero_point.dtype != torch.int32:
        require_matrix(op, "weight_zero_point", zero_point, (torch.int8, torch.int32), (n, groups))
        return zero_point
    require_matrix(op, "weight_zero_point", zero_point, (torch.int32,), (-(-n * bits // 32), groups))
    return unsigned_fields(zero_point.t(), bits)[:, :n].t() - 2 ** (bits - 1)
