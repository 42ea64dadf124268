# SPDX-License-Identifier: Apache-2.0
"""Oracle of kv_cache_attention: float64 attention over the dequantised cache, and how far a kernel may be from it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from anynpu._arguments import takes
from anynpu.ops.kv_cache_attention.spec import OP, Arguments, check


def _check_values(a: Arguments) -> None:
    planes, rows = a.k_cache.shape[:2]
    capacity = rows if a.block_table is None else a.block_table.shape[1] * rows
    least, symbol = (a.q.shape[1], "S") if a.causal else (1, "1")
    for batch, length in enumerate(a.lengths.tolist()):
        if not least <= length <= capacity:
            raise ValueError(
                f"{OP}: lengths must be in [{least}, {capacity}], from {symbol} to the rows of the cache, "
                f"got {length} at [{batch}]"
            )
        start = _start(a, batch)
        if not 0 <= start <= length:
            raise ValueError(f"{OP}: starts must be in [0, lengths] = [0, {length}], got {start} at [{batch}]")
        if a.block_table is None or length == 0:
            continue
        for block in range(start // rows, -(-length // rows)):
            index = int(a.block_table[batch, block])
            if not 0 <= index < planes:
                raise ValueError(
                    f"{OP}: block_table must be in [0, C1) = [0, {planes}) where rows are used, "
                    f"got {index} at [{batch}, {block}]"
                )


def _start(a: Arguments, batch: int) -> int:
    return 0 if a.starts is None else int(a.starts[batch])


def _codes(cache: torch.Tensor, batch: int, first: int, last: int, block_table: torch.Tensor | None) -> torch.Tensor:
    """float64 [Nkv, rows, D] of rows first .. last - 1 of one sequence."""
    if block_table is None:
        rows = cache[batch, first:last]
    else:
        at = torch.arange(first, last)
        rows = cache[block_table[batch, at // cache.shape[1]].long(), at % cache.shape[1]]
    return rows.double().transpose(0, 1)


def _visible(length: int, start: int, queries: int, causal: bool) -> torch.Tensor:
    """Which rows start .. length - 1 each query sees: bool [S, rows]."""
    row = torch.arange(start, length)
    if not causal:
        return torch.ones(queries, len(row), dtype=torch.bool)
    return row < (length - queries + 1 + torch.arange(queries)).unsqueeze(1)


def _dequantise(codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    if offset is not None:
        codes = codes - offset.double().unsqueeze(1)
    return codes * scale.double().unsqueeze(1)


def _weights(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax over the visible rows; zeros for a query that sees none."""
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return weights.masked_fill(~visible, 0.0)


def _grouped(q: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[S, Nq, D] -> float64 [Nkv, G, S, D]: query head h reads kv head h // G."""
    return q.double().unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)


def _ungrouped(out: torch.Tensor) -> torch.Tensor:
    return out.permute(2, 0, 1, 3).flatten(1, 2)


@takes(Arguments)
def kv_cache_attention(a: Arguments) -> torch.Tensor:
    """Sequence by sequence, with the cache dequantised as a whole."""
    check(a)
    _check_values(a)
    out = torch.empty(a.q.shape, dtype=torch.float64)
    for batch, length in enumerate(a.lengths.tolist()):
        start = _start(a, batch)
        k = _dequantise(_codes(a.k_cache, batch, start, length, a.block_table), a.scale_k, a.offset_k)
        v = _dequantise(_codes(a.v_cache, batch, start, length, a.block_table), a.scale_v, a.offset_v)
        scores = _grouped(a.q[batch], k.shape[0]) @ k.unsqueeze(1).transpose(-1, -2) * a.scale
        weights = _weights(scores, _visible(length, start, a.q.shape[1], a.causal))
        out[batch] = _ungrouped(weights @ v.unsqueeze(1))
    return out.to(a.q.dtype)


_U = 2.0**-24  # half a unit in the last place of float32
_NEIGHBOURS = 127  # weights are fractions of the largest among at most 128 rows that follow each other


def weight_rounding(weights: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """How far the weighted mean of codes of these sizes moves when each weight does by the largest one near it.

    A weight that is off by d moves numerator and denominator, and so the mean by at most d (|code| + |mean|); all of
    them change the denominator by less than 1 %.
    """
    mean = weights @ sizes.unsqueeze(1)
    if not weights.numel():
        return mean
    near = F.max_pool1d(weights.flatten(0, 1), 2 * _NEIGHBOURS + 1, stride=1, padding=_NEIGHBOURS)
    near = near.unflatten(0, weights.shape[:2])
    return 1.01 * (near @ sizes.unsqueeze(1) + near.sum(-1, keepdim=True) * mean)


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """float32 rounding errors, those of fixed-point numbers, and one unit in the last place of the output.

    q times its scales is rounded to f of its largest element, a weight to f of the largest weight near it: f is 2^-16
    (16 bits, their sign among them) for a 16-bit q, and 2^-31 (two such digits) for a float32 q.

    A score is a sum of D products of float32 or of fixed-point numbers, so it is off by at most
    e = (D + 12) u sum(|q| |scale_k| |code|) + f max(|q| |scale_k|) sum(|code|); an offset of k moves all scores of a
    query alike and costs nothing. Every weight is then off by a factor of at most 1 + 2 max(e) + 9 u (two scores, two
    exponentials of relative error 4 u, their product) and by its rounding; numerator and denominator are sums of as
    many terms as there are rows, and the last steps round four times.
    """
    q, scale = a.q, a.scale
    bound = torch.empty(q.shape, dtype=torch.float64)
    result = kv_cache_attention(*a)
    fraction = 1.001 * (2.0**-31 if q.dtype == torch.float32 else 2.0**-16)  # a step is 1 / 32767, not 2^-15
    for batch, length in enumerate(a.lengths.tolist()):
        start = _start(a, batch)
        k_codes = _codes(a.k_cache, batch, start, length, a.block_table)
        k = k_codes * a.scale_k.double().unsqueeze(1)
        v_codes = _codes(a.v_cache, batch, start, length, a.block_table)
        visible = _visible(length, start, q.shape[1], a.causal)
        grouped = _grouped(q[batch], k.shape[0])
        sizes = grouped.abs() @ k.abs().unsqueeze(1).transpose(-1, -2) * abs(scale)
        largest = (grouped * a.scale_k.double()[:, None, None]).abs().amax(-1, keepdim=True) * abs(scale)
        errors = (q.shape[-1] + 12) * _U * sizes + fraction * largest * k_codes.abs().sum(-1)[:, None, None]
        worst = errors.masked_fill(~visible, 0.0).amax(-1, keepdim=True) if length > start else errors.sum(-1, True)
        scores = grouped @ k.unsqueeze(1).transpose(-1, -2) * scale
        weights = _weights(scores, visible)
        rows = length - start
        relative = 2 * (worst + 9 * _U) + 2 * (rows + 4) * _U
        offset = torch.zeros_like(a.scale_v) if a.offset_v is None else a.offset_v
        size = weights @ v_codes.abs().unsqueeze(1)
        rounding = fraction * weight_rounding(weights, v_codes.abs())
        error = relative * size + rounding + 4 * _U * (size + offset.double().abs()[:, None, None])
        bound[batch] = _ungrouped(error * a.scale_v.double().abs()[:, None, None])
    exponent = (
        result.double().abs().clamp(torch.finfo(q.dtype).smallest_normal, torch.finfo(q.dtype).max).log2().floor()
    )
    return bound + torch.exp2(exponent) * torch.finfo(q.dtype).eps
