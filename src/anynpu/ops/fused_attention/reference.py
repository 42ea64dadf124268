# SPDX-License-Identifier: Apache-2.0
"""Oracle of fused_attention: float64 attention, sequence by sequence, and how far a kernel may be from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from anynpu._arguments import takes
from anynpu.ops.fused_attention.spec import ALL, OP, Arguments, check, unpacked
from anynpu.ops.kv_cache_attention.reference import weight_rounding


@dataclass(frozen=True)
class _Sequence:
    """Where a sequence lies: ``q[plane, first : first + rows]``; ``of`` cuts a tensor laid out like k."""

    batch: int
    plane: int
    first: int
    rows: int
    columns: int
    of: Callable[[torch.Tensor], torch.Tensor]


def _cut(name: str, lengths: torch.Tensor | None, packed: bool, batch: int, total: int) -> tuple[int, int]:
    first = int(lengths[batch - 1]) if packed and batch else 0
    end = total if lengths is None else int(lengths[batch])
    if not first <= end <= total or (packed and batch == len(lengths) - 1 and end != total):
        sums = ", running sums that end with the last" if packed else ""
        raise ValueError(f"{OP}: {name} must be in [{first}, {total}]{sums}, got {end} at [{batch}]")
    return first, end


def _blocks(table: torch.Tensor, batch: int, columns: int, planes: int, size: int) -> torch.Tensor:
    used = table[batch, : -(-columns // size)].long() if columns else table[batch, :0].long()
    for block, index in enumerate(used.tolist()):
        if not 0 <= index < planes:
            where = f"[0, {planes}) where rows are used"
            raise ValueError(f"{OP}: block_table must be in {where}, got {index} at [{batch}, {block}]")
    return used


def _sequences(a: Arguments) -> Iterator[_Sequence]:
    blocks, size = a.k.shape[:2]
    paged = a.block_table is not None
    capacity = a.block_table.shape[1] * size if paged else size
    for batch in range(len(a.q_lengths) if a.packed else a.q.shape[0]):
        first, end = _cut("q_lengths", a.q_lengths, a.packed, batch, a.q.shape[1])
        start, last = _cut("kv_lengths", a.kv_lengths, a.packed and not paged, batch, capacity)
        rows, columns = end - first, last - start
        if paged:
            of = _rows_of_blocks(_blocks(a.block_table, batch, columns, blocks, size), columns)
        else:
            of = _rows_of(0 if a.packed else batch, start, last)
        for name, scores in (("mask", a.mask), ("bias", a.bias)):
            if scores is not None and (scores.shape[2] < rows or scores.shape[3] < columns):
                sides = f"at least {rows} rows and {columns} columns"
                raise ValueError(f"{OP}: {name} must have {sides}, got shape {tuple(scores.shape)}")
        yield _Sequence(batch, 0 if a.packed else batch, first, rows, columns, of)


def _rows_of(plane: int, start: int, last: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x[0 if x.shape[0] == 1 else plane][start:last]


def _rows_of_blocks(blocks: torch.Tensor, columns: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x[blocks].flatten(0, 1)[:columns]


def _factors(factors: torch.Tensor, like: torch.Tensor, sequence: _Sequence) -> torch.Tensor:
    """float64 [columns, Nkv, D], or what broadcasts to it."""
    if factors.shape[:2] == (1, 1):
        return factors[0].double()
    planes = like.shape[0] if factors.shape[0] == 1 else factors.shape[0]
    rows = like.shape[1] if factors.shape[1] == 1 else factors.shape[1]
    return sequence.of(factors.expand(planes, rows, -1, -1)[:, : like.shape[1]].double())


def _floats(
    x: torch.Tensor, scale: torch.Tensor | None, offset: torch.Tensor | None, sequence: _Sequence
) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [Nkv, columns, D], and the size of the terms that they are sums of."""
    values = sequence.of(x).double()
    sizes = values.abs()
    if scale is not None:
        scale = _factors(scale, x, sequence)
        if offset is not None:
            offset = _factors(offset, x, sequence)
            values, sizes = values + offset, sizes + offset.abs()
        values, sizes = values * scale, sizes * scale.abs()
    return values.transpose(0, 1), sizes.transpose(0, 1)


def _visible(a: Arguments, sequence: _Sequence) -> torch.Tensor:
    """bool [1 or Nq, rows, columns]."""
    row = torch.arange(sequence.rows)[:, None] + (sequence.columns - sequence.rows if a.from_end else 0)
    column = torch.arange(sequence.columns)
    seen = torch.ones(1, sequence.rows, sequence.columns, dtype=torch.bool)
    if a.before < ALL:
        seen = seen & (column >= row - a.before)
    if a.after < ALL:
        seen = seen & (column <= row + a.after)
    if a.mask is not None:
        plane = a.mask[0 if a.mask.shape[0] == 1 else sequence.batch]
        seen = seen & ~plane[:, : sequence.rows, : sequence.columns].bool()
    return seen


@dataclass(frozen=True)
class _Attention:
    """One sequence, all float64 and with the heads of k and v repeated."""

    sequence: _Sequence
    result: torch.Tensor  # [Nq, rows, Dv]
    error: torch.Tensor
    lse: torch.Tensor  # [Nq, rows, 1]
    lse_error: torch.Tensor


_U = 2.0**-24  # half a unit in the last place of float32
_UNDERFLOW = 2.0**-125  # of a weight beside the largest


def _attend(a: Arguments, sequence: _Sequence) -> _Attention:
    q, k, scale = a.q, a.k, a.scale
    size = q.shape[3] + (0 if a.q_rope is None else a.q_rope.shape[3])
    place = sequence.plane, slice(sequence.first, sequence.first + sequence.rows)
    query = q[place].double().transpose(0, 1)
    key, key_sizes = _floats(k, a.k_scale, a.k_offset, sequence)
    value, value_sizes = _floats(a.v, a.v_scale, a.v_offset, sequence)
    if a.q_rope is not None:
        query = torch.cat([query, a.q_rope[place].double().transpose(0, 1)], -1)
        rope = sequence.of(a.k_rope).double().transpose(0, 1)
        key, key_sizes = torch.cat([key, rope], -1), torch.cat([key_sizes, rope.abs()], -1)
    group = q.shape[2] // k.shape[2]
    key, key_sizes, value, value_sizes = (x.repeat_interleave(group, 0) for x in (key, key_sizes, value, value_sizes))
    hidden = ~_visible(a, sequence)
    bias = _bias(a.bias, sequence)
    scores = (query @ key.mT * scale + bias).masked_fill(hidden, -torch.inf)
    lse = (
        scores.logsumexp(-1, keepdim=True) if sequence.columns else scores.new_full((*scores.shape[:2], 1), -torch.inf)
    )
    total = lse
    if a.sink is not None:
        total = torch.logaddexp(lse, a.sink.double()[:, None, None])
    weights = (scores - total).exp().masked_fill(hidden, 0).nan_to_num(0)

    # What float32 makes of it.
    magnitudes = query.abs() @ key_sizes.mT * abs(scale)
    error = (size + 13) * _U * magnitudes + _U * bias.abs().nan_to_num(0, 0, 0)
    fraction = 0.0
    if k.dtype == torch.int8 and q.dtype != torch.int8:
        fraction = 1.001 * (2.0**-31 if q.dtype == torch.float32 else 2.0**-16)
        factors = _factors(a.k_scale, k, sequence).abs().transpose(0, 1).expand(k.shape[2], -1, -1)
        largest = query.abs() * factors.amax(1, keepdim=True).repeat_interleave(group, 0) if sequence.columns else query
        codes = sequence.of(k).double().abs().sum(-1).transpose(0, 1).repeat_interleave(group, 0)
        error = error + fraction * abs(scale) * largest.abs().amax(-1, keepdim=True) * codes[:, None]
    worst = torch.nn.functional.pad(error.masked_fill(hidden, 0), (0, 1)).amax(-1, keepdim=True)
    if a.sink is not None:
        worst = worst + 4 * _U * a.sink.double().abs()[:, None, None]
    relative = 2 * (worst + 9 * _U) + 2 * (sequence.columns + 8) * _U
    wrong = relative * (weights @ value_sizes) + _UNDERFLOW * value_sizes.sum(1, keepdim=True)
    if fraction and sequence.columns:
        rounding = weight_rounding(weights.unsqueeze(1), value_sizes).squeeze(1)
        wrong = wrong + fraction * rounding
    lse_error = worst + (sequence.columns + 8) * _U * (1 + lse.abs().nan_to_num(0, 0, 0))
    if a.p_scale is not None:
        return _Attention(sequence, *_integer_products(a.p_scale, weights, relative, value), lse, lse_error)
    return _Attention(sequence, weights @ value, wrong, lse, lse_error)


def _bias(bias: torch.Tensor | None, sequence: _Sequence) -> torch.Tensor:
    """float64 [1 or Nq, rows, columns], or one 0."""
    if bias is None:
        return torch.zeros(1, 1, 1, dtype=torch.float64)
    plane = bias[0 if bias.shape[0] == 1 else sequence.batch]
    return plane[:, : sequence.rows, : sequence.columns].double()


def _integer_products(
    p_scale: torch.Tensor, weights: torch.Tensor, relative: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of weights in int8, and how far it may be off: a weight near a half may become another code."""
    codes = _codes(weights, p_scale, None)
    wrong = relative * weights + 3 * _U * weights + _UNDERFLOW
    others = torch.maximum(*[(_codes(weights + sign * wrong, p_scale, None) - codes).abs() for sign in (1, -1)])
    roundings = (value.shape[1] + 8) * _U * ((codes.abs() + others) @ value.abs())
    return codes @ value, others @ value.abs() + roundings


def _all(a: Arguments, pick: Callable[[_Attention], tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    out = torch.zeros(*a.q.shape[:3], a.v.shape[3], dtype=torch.float64)
    lse = torch.zeros(*a.q.shape[:3], dtype=torch.float64)
    for sequence in list(_sequences(a)):
        place = sequence.plane, slice(sequence.first, sequence.first + sequence.rows)
        result, sums = pick(_attend(a, sequence))
        out[place], lse[place] = result.transpose(0, 1), sums.squeeze(-1).transpose(0, 1)
    return out, lse if a.with_lse else lse.new_empty(0)


def _codes(out: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """int8 of a float64 result, still as float64."""
    return (out * scale.double() + (0 if offset is None else offset.double())).round().clamp(-128, 127)


def _checked(a: Arguments) -> Arguments:
    """The arguments with the int4 of k and v one by one."""
    check(a)
    return a._replace(k=unpacked(a.k), v=unpacked(a.v))


@takes(Arguments)
def fused_attention(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence by sequence, with all keys and values as float64."""
    a = _checked(a)
    out, lse = _all(a, lambda attention: (attention.result, attention.lse))
    if a.out_scale is not None:
        out = _codes(out, a.out_scale, a.out_offset)
    return out.to(a.out_dtype), lse.float()


def _code_error(a: Arguments, error: torch.Tensor) -> torch.Tensor:
    """How far an int8 result may be off where float32 is off by ``error`` and the product and sum are rounded."""
    out, _ = _all(a, lambda attention: (attention.result, attention.lse))
    scale, offset = a.out_scale, a.out_offset
    sizes = out.abs() * scale.double().abs() + (0 if offset is None else offset.double().abs())
    wrong = (error * scale.double().abs() + 3 * _U * sizes) / scale.double().abs().clamp(min=2.0**-126)
    expected = _codes(out, scale, offset)
    return torch.maximum(*[(_codes(out + sign * wrong, scale, offset) - expected).abs() for sign in (1, -1)])


@takes(Arguments)
def error_bound(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 rounding errors, those of fixed-point numbers over int8 codes, and one unit in the last place.

    A score is a sum of D (and Dr) products, off by at most (D + 12) u times the sum of their sizes; over codes, whose
    factors take a few roundings more, q times its scales may be rounded to f of its largest element and a weight to f
    of the largest weight near it, see ``kv_cache_attention``. Each weight is then off by a factor of at most
    1 + 2 max(e) + 9 u and by the steps in which sums follow the maximum, and sums have as many terms as there are rows.
    """
    expected, _ = fused_attention(*a)
    a = _checked(a)
    error, lse_error = _all(a, lambda attention: (attention.error, attention.lse_error))
    if a.out_scale is not None:
        return _code_error(a, error), lse_error
    limits = torch.finfo(expected.dtype)
    exponent = expected.double().abs().clamp(limits.smallest_normal, limits.max).log2().floor()
    return error + torch.exp2(exponent) * limits.eps, lse_error
