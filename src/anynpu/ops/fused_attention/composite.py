# SPDX-License-Identifier: Apache-2.0
"""fused_attention out of torch operators, which looks at no value: what a query does not see is masked.

Gradients flow through it, in contrast to the kernel of the CPU.
"""

from __future__ import annotations

import torch

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu.ops.fused_attention.spec import ALL, OP, Arguments, check, unpacked

_Q_LENGTHS = _device_errors.new_rule(OP, "q_lengths", "must be in the rows of q, running sums if packed")
_KV_LENGTHS = _device_errors.new_rule(OP, "kv_lengths", "must be in the rows of k, running sums if packed")
_BLOCKS = _device_errors.new_rule(OP, "block_table", "must be a plane of k where rows are used")


def _spans(
    lengths: torch.Tensor | None, total: int, planes: int, packed: bool, rule: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row of [planes, total]: its sequence (-1: none), its position in it; and how long each sequence is."""
    row = torch.arange(total, device=device).expand(planes, total)
    if packed:
        ends = _device_errors.within(lengths, 0, total + 1, rule)
        sequence = torch.searchsorted(ends, row.contiguous(), right=True)
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        starts = torch.cat([ends - counts, ends.new_zeros(1)])[sequence]  # of rows behind all sequences: any
        return torch.where(sequence < ends.numel(), sequence, -1), row - starts, counts
    counts = torch.full((planes,), total, device=device)
    if lengths is not None:
        counts = _device_errors.within(lengths, 0, total + 1, rule)
    own = torch.arange(planes, device=device)[:, None]
    return torch.where(row < counts[:, None], own, -1), row, counts


def _gathered(x: torch.Tensor, planes: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """[B, T, ..] of a tensor laid out like k, or of its factors, which axes of 1 repeat."""
    if planes is None:
        return x[:, : like.shape[1]] if x.shape[1] > 1 else x
    if x.shape[:2] == (1, 1):
        return x
    whole = x.expand(like.shape[0] if x.shape[0] == 1 else -1, like.shape[1] if x.shape[1] == 1 else -1, -1, -1)
    return whole[:, : like.shape[1]][planes].flatten(1, 2)


def _floats(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    offset: torch.Tensor | None,
    planes: torch.Tensor | None,
    used: torch.Tensor,
) -> torch.Tensor:
    """float32 [B, T, N, D], 0 where no sequence has a row: what lies there may be NaN."""
    values = unpacked(_gathered(x, planes, x)).float()
    if scale is not None:
        factors = [None if each is None else _gathered(each, planes, x)[: values.shape[0]] for each in (scale, offset)]
        values = (values if offset is None else values + factors[1]) * factors[0].float()
    return values.masked_fill(~used[:, :, None, None], 0)


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, T, Nkv, D] -> [B, Nq, T, D]."""
    return x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1)


@takes(Arguments)
def fused_attention(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``anynpu.fused_attention``."""
    check(a)
    q, k, paged, planes = a.q, a.k, a.block_table is not None, None
    own_row, row, rows = _spans(a.q_lengths, q.shape[1], q.shape[0], a.packed, _Q_LENGTHS, q.device)
    batch = rows.numel()
    capacity = a.block_table.shape[1] * k.shape[1] if paged else k.shape[1]
    own_column, column, columns = _spans(
        a.kv_lengths, capacity, batch if paged else k.shape[0], a.packed and not paged, _KV_LENGTHS, q.device
    )
    if paged:
        needed = torch.arange(a.block_table.shape[1], device=q.device) * k.shape[1] < columns[:, None]
        planes = _device_errors.within(torch.where(needed, a.block_table, 0), 0, k.shape[0], _BLOCKS).long()
    used = own_column >= 0
    key, value = _floats(k, a.k_scale, a.k_offset, planes, used), _floats(a.v, a.v_scale, a.v_offset, planes, used)
    query = q.float()
    if a.q_rope is not None:
        query = torch.cat([query, a.q_rope.float()], -1)
        key = torch.cat([key, _floats(a.k_rope, None, None, planes, used)], -1)
    if a.packed:  # all sequences in one plane
        key, value = key.flatten(0, 1)[None], value.flatten(0, 1)[None]
        own_column, column = own_column.flatten()[None], column.flatten()[None]
    query = query.masked_fill((own_row < 0)[:, :, None, None], 0)
    key, value, query = _by_head(key, q.shape[2]), _by_head(value, q.shape[2]), query.transpose(1, 2)
    at = row + ((columns - rows)[own_row.clamp(min=0)] if a.from_end and batch else 0)
    seen = (own_row[:, :, None] == own_column[:, None]) & (own_row >= 0)[:, :, None]
    if a.before < ALL:
        seen = seen & (column[:, None] >= (at - a.before)[:, :, None])
    if a.after < ALL:
        seen = seen & (column[:, None] <= (at + a.after)[:, :, None])
    seen, bias = seen[:, None], None
    if a.mask is not None:
        seen = seen & ~_of_sides(a.mask.bool(), q.shape[1], capacity)
    if a.bias is not None:
        bias = _of_sides(a.bias.float(), q.shape[1], capacity)
        seen = seen & (bias != -torch.inf)
    out, lse = _attend(query, key, value, seen, bias, a)
    lse = lse.masked_fill((own_row < 0)[:, :, None], 0) if a.with_lse else lse
    if a.out_scale is not None:
        out = out * a.out_scale.float() + (0 if a.out_offset is None else a.out_offset.float())
        out = out.round().clamp(-128, 127)
    return out.to(a.out_dtype), lse


def _of_sides(planes: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A mask or bias of these sides."""
    sides = (0, max(0, columns - planes.shape[3]), 0, max(0, rows - planes.shape[2]))
    return torch.nn.functional.pad(planes, sides)[:, :, :rows, :columns]


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    bias: torch.Tensor | None,
    a: Arguments,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, S, N, Dv] and [B, S, N]."""
    out, lse = query.new_zeros(*query.shape[:3], value.shape[3]), query.new_empty(0)
    if key.shape[2] and a.p_scale is None:
        mask = seen if bias is None else torch.where(seen, bias, -torch.inf)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=a.scale)
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0)
    if a.with_lse or a.sink is not None or a.p_scale is not None:
        scores = query @ key.mT * a.scale + (0 if bias is None else bias)
        scores = scores.masked_fill(~seen, -torch.inf)
        lse = scores.logsumexp(-1)
        if a.p_scale is not None:
            weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(~seen, 0)
            weights = weights if a.sink is None else weights * _share(lse, a.sink)
            out = (weights * a.p_scale.float()).round().clamp(-128, 127) @ value
        elif a.sink is not None:
            out = out * _share(lse, a.sink)
    return out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous() if a.with_lse else query.new_empty(0)


def _share(lse: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """Of the weights, what the sinks leave to the keys."""
    return torch.sigmoid(lse - sink.float()[:, None]).unsqueeze(-1)
