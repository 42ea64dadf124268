# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of kv_cache_attention: one pass over the codes, which the tensor cores take as they are.

A 16-bit query times the scales of k is written in fixed point, as three signed bytes: scores are exact sums of integers
and need no conversion of k. Its weights are sums of two bfloat16, in which codes are exact. A float32 query takes three
bfloat16 for either product. The offset of k moves all scores of a query alike and has no effect.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import (
    INTERPRETED,
    PROCESSORS,
    ceil_divide,
    dot,
    dot_float32,
    dot_halves,
    launch,
    power_of_two,
    report,
    rounded,
    upper_half,
)
from anynpu.ops.kv_cache_attention.spec import OP, Arguments, check

_LENGTHS = _device_errors.new_rule(OP, "lengths", "must be from S (1 if not causal) to the rows of the cache")
_STARTS = _device_errors.new_rule(OP, "starts", "must be in [0, lengths]")
_BLOCKS = _device_errors.new_rule(OP, "block_table", "must be in [0, C1) where rows are used")
_MOST_AT_ONCE = 64  # queries, and rows of the cache
_MOST_ELEMENTS = 1 << 14  # of those rows
_LEAST_ROWS = 256  # of a part
_STACKED = 8  # queries of a kv head that are so few that all their digits fit into one matrix product
_INFINITY = tl.constexpr(float("inf"))
_LOG2E = tl.constexpr(1.4426950408889634)
_STEPS = tl.constexpr(8355000.0)  # three signed bytes hold more, and so what rounding adds


@triton.jit
def _bounds(batch, lengths_ptr, lengths_stride, starts_ptr, starts_stride, error_ptr, capacity, least,
            LENGTHS: tl.constexpr, STARTS: tl.constexpr, HAS_STARTS: tl.constexpr):  # fmt: skip
    """The first row of a sequence and the one after its last; none where they are wrong."""
    length = tl.load(lengths_ptr + batch * lengths_stride)
    start = length * 0
    if HAS_STARTS:
        start = tl.load(starts_ptr + batch * starts_stride)
    one = tl.arange(0, 1)
    wrong = (one + length < least) | (one + length > capacity)
    report(error_ptr, LENGTHS, wrong, one + batch)
    report(error_ptr, STARTS, ((one + start < 0) | (one + start > length)) & (wrong == 0), one + batch)
    if (length < least) | (length > capacity) | (start < 0) | (start > length):
        length, start = length * 0, start * 0
    return start, length


@triton.jit
def _places(row, end, batch, block_table_ptr, table_batch, table_block, error_ptr, planes, rows, blocks,
            BLOCKS: tl.constexpr, PAGED: tl.constexpr):  # fmt: skip
    """Where rows of a sequence are in the cache seen as [C1 * C2, Nkv, D], and which of them can be read."""
    readable = row < end
    if PAGED:
        block = row // rows
        plane = tl.load(block_table_ptr + batch * table_batch + block * table_block, mask=readable, other=0)
        wrong = readable & ((plane < 0) | (plane >= planes))
        report(error_ptr, BLOCKS, wrong, batch * blocks + block)
        readable &= (plane >= 0) & (plane < planes)
        return tl.where(readable, plane, 0).to(tl.int64) * rows + row % rows, readable
    else:
        return batch.to(tl.int64) * rows + row, readable


@triton.jit
def _load(cache_ptr, place, readable, head, kv_heads, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] of one head; 0 where there is nothing to read."""
    element = tl.arange(0, WIDTH)
    at = (place * kv_heads + head)[:, None] * SIZE + element[None, :]
    return tl.load(cache_ptr + at, mask=readable[:, None] & (element < SIZE)[None, :], other=0)


@triton.jit
def _codes(pairs, SECOND: tl.constexpr):
    """The first or second of the two codes in each int16, as bfloat16; the hardware can transpose pairs, not bytes.

    Seven bits set behind 128, less 128 or, with the sign, 256: three operations for two codes. The difference is an fma
    because GPUs before Hopper have no subtraction of bfloat16.
    """
    if INTERPRETED:
        return ((pairs >> 8) if SECOND else pairs.to(tl.int8)).to(tl.float32).to(tl.bfloat16)
    else:
        shift: tl.constexpr = "shr.u32 a, $1, 8;" if SECOND else "mov.b32 a, $1;"
        return tl.inline_asm_elementwise(
            "{ .reg .b32 a, b, c; " + shift + " lop3.b32 b, a, 0x00800080, 0x43004300, 0xEA; mov.b32 c, 0xBF80BF80;"
            " lop3.b32 a, a, 0x007F007F, 0x43004300, 0xEA; fma.rn.bf16x2 $0, b, c, a; }",
            "=r,r", [pairs], dtype=tl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def _digit(value, place):
    """The signed byte at a place, of which 0 is the lowest."""
    carry = tl.where(place == 0, 0, tl.where(place == 1, 0x80, 0x8080))
    return ((value + carry) >> (8 * place)).to(tl.int8)


@triton.jit
def _product(digits, k):
    """float32 of the exact sums of digits [queries, WIDTH] times codes [rows, WIDTH]."""
    return dot(digits, tl.trans(k), tl.zeros((digits.shape[0], k.shape[0]), tl.int32)).to(tl.float32)


@triton.jit
def _scores(low, middle, high, k):
    """float32 of the products of k with all three digits."""
    if k.shape[1] > 256:
        return _product(low, k) + 256.0 * _product(middle, k) + 65536.0 * _product(high, k)
    else:  # two of them fit into 32 bits together
        upper = dot(high, tl.trans(k), tl.zeros((high.shape[0], k.shape[0]), tl.int32)) * 256
        return _product(low, k) + 256.0 * dot(middle, tl.trans(k), upper).to(tl.float32)


@triton.jit
def _fixed_point(q):
    """float32 [queries, WIDTH] as integers of three signed bytes, times a step for each query."""
    longest = tl.max(tl.abs(q), axis=1)
    longest = tl.where(longest > 0.0, longest, 1.0)
    steps = (q * (1.0 / longest * _STEPS)[:, None]).to(tl.int32)
    return steps, longest / _STEPS + tl.sum(q * 0.0, axis=1)  # NaN where not all are finite


@triton.jit
def _copies(values, COUNT: tl.constexpr):
    """COUNT times [queries, N], one below the other."""
    rows: tl.constexpr = values.shape[0]
    copies = tl.broadcast_to(values[None, :, :], (COUNT, rows, values.shape[1]))
    return tl.reshape(copies, (COUNT * rows, values.shape[1]))


@triton.jit
def _sum_of_copies(values, COUNT: tl.constexpr):
    """Adds what lies below each other."""
    return tl.sum(tl.reshape(values, (COUNT, values.shape[0] // COUNT, values.shape[1])), axis=0)


@triton.jit
def _store(out_ptr, value, total, place, head, inside, scale_v_ptr, offset_v_ptr, D: tl.constexpr, OFFSET: tl.constexpr,
           WIDTH: tl.constexpr):  # fmt: skip
    """Weighted sums of codes [queries, WIDTH] as a result; zeros for a query that saw no row."""
    element = tl.arange(0, WIDTH)
    value = value / tl.where(total > 0.0, total, 1.0)[:, None]
    if OFFSET:
        value -= tl.load(offset_v_ptr + head * D + element, mask=element < D, other=0.0)[None, :]
    value *= tl.load(scale_v_ptr + head * D + element, mask=element < D, other=0.0)[None, :]
    value = tl.where((total == 0.0)[:, None], 0.0, value)
    tl.store(out_ptr + place[:, None] + element[None, :], rounded(value, out_ptr.dtype.element_ty),
             mask=inside[:, None] & (element < D)[None, :])  # fmt: skip


@triton.jit
def _attention_kernel(q_ptr, k_cache_ptr, v_cache_ptr, lengths_ptr, scale_k_ptr, scale_v_ptr, offset_v_ptr,
                      block_table_ptr, starts_ptr, out_ptr, sums_ptr, error_ptr, softmax_scale, S, kv_heads, G, planes,
                      rows, blocks, capacity, least, q_batch, q_row, q_head, q_element, lengths_stride, starts_stride,
                      table_batch, table_block, LENGTHS: tl.constexpr, STARTS: tl.constexpr, BLOCKS: tl.constexpr,
                      HAS_STARTS: tl.constexpr, PAGED: tl.constexpr, OFFSET: tl.constexpr, CAUSAL: tl.constexpr,
                      PARTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr,
                      ROWS: tl.constexpr, STACKED: tl.constexpr):  # fmt: skip
    """QUERIES of one kv head, over one of the PARTS of the rows. A query is a position and one of its G heads.

    STACKED: few 16-bit queries; their digits, and the two bfloat16 of their weights, are rows of one matrix product,
    and v_cache has pairs of codes.
    """
    FIXED_POINT: tl.constexpr = q_ptr.dtype.element_ty != tl.float32
    COPIES: tl.constexpr = 16 // QUERIES  # of weights, in a product
    part, rest = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    query_blocks = tl.cdiv(S * G, QUERIES)
    query = rest % query_blocks * QUERIES + tl.arange(0, QUERIES)
    head, batch = rest // query_blocks % kv_heads, rest // query_blocks // kv_heads
    position, q_of = query // G, head * G + query % G
    real = query < S * G
    start, length = _bounds(batch, lengths_ptr, lengths_stride, starts_ptr, starts_stride, error_ptr, capacity, least,
                            LENGTHS, STARTS, HAS_STARTS)  # fmt: skip
    element = tl.arange(0, WIDTH)
    q_at = batch.to(tl.int64) * q_batch + position.to(tl.int64) * q_row + q_of.to(tl.int64) * q_head
    q = tl.load(q_ptr + q_at[:, None] + element[None, :] * q_element,
                mask=real[:, None] & (element < D)[None, :], other=0.0)  # fmt: skip
    scale_k = tl.load(scale_k_ptr + head * D + element, mask=element < D, other=0.0)
    q = q.to(tl.float32) * scale_k[None, :] * (softmax_scale * _LOG2E)
    step = tl.full((QUERIES,), 1.0, tl.float32)
    if FIXED_POINT:
        q, step = _fixed_point(q)
    if STACKED:
        digit = tl.arange(0, 4 * QUERIES) // QUERIES  # the fourth counts nothing
        q = _digit(_copies(q, 4), tl.minimum(digit, 2)[:, None])
        worth = tl.where(digit < 2, tl.where(digit < 1, 1.0, 256.0), tl.where(digit < 3, 65536.0, 0.0))[:, None]
        copy = (tl.arange(0, 16) // QUERIES)[:, None]
        even = tl.zeros((16, WIDTH // 2), tl.float32)
        odd = tl.zeros((16, WIDTH // 2), tl.float32)
    else:
        sums = tl.zeros((QUERIES, WIDTH), tl.float32)
        if FIXED_POINT:
            low, middle, high = _digit(q, 0), _digit(q, 1), _digit(q, 2)
    seen = length - S + position + 1 if CAUSAL else length + position * 0
    end = tl.minimum(length, tl.max(tl.where(real, seen, 0), axis=0))
    part_rows = tl.cdiv(tl.cdiv(end - start, PARTS), ROWS) * ROWS
    first, last = start + part * part_rows, tl.minimum(end, start + (part + 1) * part_rows)
    largest = tl.full((QUERIES,), -_INFINITY, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    blocks_of_rows = tl.cdiv(last - first, ROWS)
    whole = 0
    if not STACKED:
        all_see = tl.minimum(last, tl.min(tl.where(real, seen, last), axis=0))
        whole = tl.maximum(all_see - first, 0) // ROWS
    for edge in tl.static_range(1 if STACKED else 0, 2):  # blocks of rows that all queries see need no mask
        for block in range(whole if edge else 0, blocks_of_rows if edge else whole):
            row = first + block * ROWS + tl.arange(0, ROWS)
            place, readable = _places(row, last, batch, block_table_ptr, table_batch, table_block, error_ptr, planes,
                                      rows, blocks, BLOCKS, PAGED)  # fmt: skip
            k = _load(k_cache_ptr, place, readable, head, kv_heads, D, WIDTH)
            if STACKED:
                pairs = _load(v_cache_ptr, place, readable, head, kv_heads, D // 2, WIDTH // 2)
                scores = _sum_of_copies(_product(q, k) * worth, 4)
            elif FIXED_POINT:
                v = _load(v_cache_ptr, place, readable, head, kv_heads, D, WIDTH)
                scores = _scores(low, middle, high, k)
            else:
                v = _load(v_cache_ptr, place, readable, head, kv_heads, D, WIDTH)
                k = tl.trans(k.to(tl.float32).to(tl.bfloat16))
                scores = dot_float32(q, k, tl.zeros((QUERIES, ROWS), tl.float32))
            if edge:
                scores = tl.where(readable[None, :] & (row[None, :] < seen[:, None]), scores, -_INFINITY)
            elif PAGED:
                scores = tl.where(readable[None, :], scores, -_INFINITY)
            larger = tl.maximum(largest, tl.max(scores, axis=1) * step)
            base = tl.where(larger == -_INFINITY, 0.0, larger)
            weights = tl.exp2(scores * step[:, None] - base[:, None])
            shrink = tl.exp2(largest - base)
            total = total * shrink + tl.sum(weights, axis=1)
            largest = larger
            shrink = shrink[:, None]
            if STACKED:
                weights, shrink = _copies(weights, COPIES), _copies(shrink, COPIES)
                upper = upper_half(weights)
                weights = rounded(tl.where(copy == 0, upper, tl.where(copy == 1, weights - upper, 0.0)), tl.bfloat16)
                even = dot(weights, _codes(pairs, False), even * shrink)
                odd = dot(weights, _codes(pairs, True), odd * shrink)
            elif FIXED_POINT:
                sums = dot_halves(weights, v.to(tl.float32).to(tl.bfloat16), sums * shrink)
            else:
                sums = dot_float32(weights, v.to(tl.float32).to(tl.bfloat16), sums * shrink)
    if STACKED:
        sums = _sum_of_copies(tl.reshape(tl.join(even, odd), (16, WIDTH)), COPIES)
    if PARTS == 1:
        out_at = ((batch.to(tl.int64) * S + position) * (kv_heads * G) + q_of) * D
        _store(out_ptr, sums, total, out_at, head, real, scale_v_ptr, offset_v_ptr, D, OFFSET, WIDTH)
    else:
        line = ((batch * kv_heads + head).to(tl.int64) * S * G + query) * PARTS + part
        at = sums_ptr + line * (WIDTH + 2)
        tl.store(at[:, None] + element[None, :], sums, mask=real[:, None])
        tl.store(at + WIDTH, total, mask=real)
        tl.store(at + WIDTH + 1, largest, mask=real)


@triton.jit
def _join_kernel(sums_ptr, scale_v_ptr, offset_v_ptr, out_ptr, S, kv_heads, G, OFFSET: tl.constexpr,
                 PARTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Joins the parts of the rows that one query saw, in their order: the result is the same bits in every run."""
    query = tl.program_id(0) % (S * G) + tl.arange(0, 1)
    head, batch = tl.program_id(0) // (S * G) % kv_heads, tl.program_id(0) // (S * G) // kv_heads
    element = tl.arange(0, WIDTH)
    line = sums_ptr + (tl.program_id(0).to(tl.int64) * PARTS + tl.arange(0, PARTS)) * (WIDTH + 2)
    sums = tl.load(line[:, None] + element[None, :])
    total, largest = tl.load(line + WIDTH)[:, None], tl.load(line + WIDTH + 1)[:, None]
    base = tl.max(largest, axis=0)
    shrink = tl.exp2(largest - tl.where(base == -_INFINITY, 0.0, base)[None, :])
    place = ((batch.to(tl.int64) * S + query // G) * (kv_heads * G) + head * G + query % G) * D
    _store(out_ptr, tl.sum(sums * shrink, axis=0)[None, :], tl.sum(total * shrink, axis=0), place, head, query >= 0,
           scale_v_ptr, offset_v_ptr, D, OFFSET, WIDTH)  # fmt: skip


@takes(Arguments)
def kv_cache_attention(a: Arguments) -> torch.Tensor:
    """See ``anynpu.kv_cache_attention``; wrong lengths, starts and blocks are told by ``check_device_errors``."""
    check(a)
    q, v_cache, lengths, starts, block_table = a.q, a.v_cache, a.lengths, a.starts, a.block_table
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    batch, length, heads, size = q.shape
    planes, rows, kv_heads, _ = a.k_cache.shape
    group, blocks = heads // kv_heads, 1 if block_table is None else block_table.shape[1]
    capacity, all_queries = blocks * rows, length * group
    in_pairs = size % 2 == 0 and v_cache.storage_offset() % 2 == 0
    stacked = all_queries <= _STACKED and q.dtype != torch.float32 and in_pairs
    width = power_of_two(size, 32, 1 << 20)
    at_once = power_of_two(_MOST_ELEMENTS // width, 16, _MOST_AT_ONCE)
    queries = power_of_two(all_queries, 4, _STACKED) if stacked else power_of_two(all_queries, 16, at_once)
    programs = batch * kv_heads * ceil_divide(all_queries, queries)
    parts = max(1, min(2 * PROCESSORS // programs, capacity // _LEAST_ROWS))
    parts = 1 << parts.bit_length() - 1  # few different ones, as each is compiled anew
    lines = batch * kv_heads * all_queries
    sums = out if parts == 1 else q.new_empty((lines * parts, width + 2), dtype=torch.float32)
    scales = [scale.contiguous() for scale in (a.scale_k, a.scale_v)]
    offset = scales[1] if a.offset_v is None else a.offset_v.contiguous()  # what is absent is not read
    places = [lengths if value is None else value for value in (block_table, starts)]
    shape = {"OFFSET": a.offset_v is not None, "PARTS": parts, "D": size, "WIDTH": width}
    launch(
        _attention_kernel, programs * parts, q, a.k_cache, v_cache.view(torch.int16) if stacked else v_cache, lengths,
        *scales, offset, *places, out, sums, _device_errors.word(q.device),
        a.scale, length, kv_heads, group, planes, rows, blocks,
        capacity, length if a.causal else 1, *q.stride(), *lengths.stride(), 0 if starts is None else starts.stride(0),
        *((0, 0) if block_table is None else block_table.stride()),
        LENGTHS=_LENGTHS, STARTS=_STARTS, BLOCKS=_BLOCKS, HAS_STARTS=starts is not None,
        PAGED=block_table is not None, CAUSAL=a.causal, QUERIES=queries, ROWS=at_once, STACKED=stacked,
        num_warps=4, **shape,
    )  # fmt: skip
    if parts > 1:
        launch(_join_kernel, lines, sums, scales[1], offset, out, length, kv_heads, group, **shape)
    return out
