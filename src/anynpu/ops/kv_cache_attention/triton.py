# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of kv_cache_attention: one pass over the codes, which the tensor cores take as they are.

Codes are exact in bfloat16; queries and weights, which need float32, go in as three bfloat16 each. The offset of k
moves all scores of a query alike and has no effect.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import ceil_divide, dot_float32, launch, power_of_two, report, rounded
from anynpu.ops.kv_cache_attention.spec import OP, check

_LENGTHS = _device_errors.new_rule(OP, "lengths", "must be from S (1 if not causal) to the rows of the cache")
_STARTS = _device_errors.new_rule(OP, "starts", "must be in [0, lengths]")
_BLOCKS = _device_errors.new_rule(OP, "block_table", "must be in [0, C1) where rows are used")
_PROGRAMS = 264  # two for each processor of an H100 or H200
_ROWS = 64  # of the cache at once
_LEAST_ROWS = 256  # of a part
_INFINITY = tl.constexpr(float("inf"))


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
def _codes(cache_ptr, place, readable, head, kv_heads, D: tl.constexpr, WIDTH: tl.constexpr):
    """[rows, WIDTH] of one head as bfloat16; 0 where there is nothing to read."""
    element = tl.arange(0, WIDTH)
    at = (place * kv_heads + head)[:, None] * D + element[None, :]
    codes = tl.load(cache_ptr + at, mask=readable[:, None] & (element < D)[None, :], other=0)
    return codes.to(tl.float32).to(tl.bfloat16)


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
                      ROWS: tl.constexpr):  # fmt: skip
    """QUERIES of one kv head, over one of the PARTS of the rows. A query is a position and one of its G heads."""
    part, rest = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    query_blocks = tl.cdiv(S * G, QUERIES)
    query = rest % query_blocks * QUERIES + tl.arange(0, QUERIES)
    head, batch = rest // query_blocks % kv_heads, rest // query_blocks // kv_heads
    position, q_of = query // G, head * G + query % G
    real = query < S * G
    start, length = _bounds(batch, lengths_ptr, lengths_stride, starts_ptr, starts_stride, error_ptr, capacity, least,
                            LENGTHS, STARTS, HAS_STARTS)  # fmt: skip
    element = tl.arange(0, WIDTH)
    q_at = batch.to(tl.int64) * q_batch + position.to(tl.int64) * q_row + q_of * q_head
    q = tl.load(q_ptr + q_at[:, None] + element[None, :] * q_element,
                mask=real[:, None] & (element < D)[None, :], other=0.0)  # fmt: skip
    scale_k = tl.load(scale_k_ptr + head * D + element, mask=element < D, other=0.0)
    q = q.to(tl.float32) * scale_k[None, :] * softmax_scale
    seen = length - S + position + 1 if CAUSAL else length + position * 0
    end = tl.minimum(length, tl.max(tl.where(real, seen, 0), axis=0))
    part_rows = tl.cdiv(tl.cdiv(end - start, PARTS), ROWS) * ROWS
    first, last = start + part * part_rows, tl.minimum(end, start + (part + 1) * part_rows)
    largest = tl.full((QUERIES,), -_INFINITY, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for step in range(0, tl.cdiv(last - first, ROWS)):
        row = first + step * ROWS + tl.arange(0, ROWS)
        place, readable = _places(row, last, batch, block_table_ptr, table_batch, table_block, error_ptr, planes, rows,
                                  blocks, BLOCKS, PAGED)  # fmt: skip
        k = _codes(k_cache_ptr, place, readable, head, kv_heads, D, WIDTH)
        scores = dot_float32(q, tl.trans(k), tl.zeros((QUERIES, ROWS), tl.float32))
        scores = tl.where(readable[None, :] & (row[None, :] < seen[:, None]), scores, -_INFINITY)
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        base = tl.where(larger == -_INFINITY, 0.0, larger)
        weights = tl.exp(scores - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(weights, axis=1)
        v = _codes(v_cache_ptr, place, readable, head, kv_heads, D, WIDTH)
        sums = dot_float32(weights, v, sums * shrink[:, None])
        largest = larger
    out_at = ((batch.to(tl.int64) * S + position) * (kv_heads * G) + q_of) * D
    if PARTS == 1:
        _store(out_ptr, sums, total, out_at, head, real, scale_v_ptr, offset_v_ptr, D, OFFSET, WIDTH)
    else:
        line = sums_ptr + (tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)) * (WIDTH + 2)
        tl.store(line[:, None] + element[None, :], sums)
        tl.store(line + WIDTH, total)
        tl.store(line + WIDTH + 1, largest)


@triton.jit
def _join_kernel(sums_ptr, scale_v_ptr, offset_v_ptr, out_ptr, S, kv_heads, G, OFFSET: tl.constexpr,
                 PARTS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr):  # fmt: skip
    """Joins the parts of the rows in their order, so that the result is the same bits in every run."""
    query_blocks = tl.cdiv(S * G, QUERIES)
    query = tl.program_id(0) % query_blocks * QUERIES + tl.arange(0, QUERIES)
    head, batch = tl.program_id(0) // query_blocks % kv_heads, tl.program_id(0) // query_blocks // kv_heads
    element = tl.arange(0, WIDTH)
    largest = tl.full((QUERIES,), -_INFINITY, tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for part in range(PARTS):
        program = tl.program_id(0).to(tl.int64) * PARTS + part
        line = sums_ptr + (program * QUERIES + tl.arange(0, QUERIES)) * (WIDTH + 2)
        its_largest = tl.load(line + WIDTH + 1)
        larger = tl.maximum(largest, its_largest)
        base = tl.where(larger == -_INFINITY, 0.0, larger)
        shrink, its_shrink = tl.exp(largest - base), tl.exp(its_largest - base)
        total = total * shrink + tl.load(line + WIDTH) * its_shrink
        sums = sums * shrink[:, None] + tl.load(line[:, None] + element[None, :]) * its_shrink[:, None]
        largest = larger
    place = ((batch.to(tl.int64) * S + query // G) * (kv_heads * G) + head * G + query % G) * D
    _store(out_ptr, sums, total, place, head, query < S * G, scale_v_ptr, offset_v_ptr, D, OFFSET, WIDTH)


def kv_cache_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """See ``anynpu.kv_cache_attention``; wrong lengths, starts and blocks are told by ``check_device_errors``."""
    check(q, k_cache, v_cache, lengths, scale_k, scale_v, offset_k, offset_v, block_table, starts)
    out = q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    batch, length, heads, size = q.shape
    planes, rows, kv_heads, _ = k_cache.shape
    group, blocks = heads // kv_heads, 1 if block_table is None else block_table.shape[1]
    capacity = blocks * rows
    queries = power_of_two(length * group, 16, 64)
    programs = batch * kv_heads * ceil_divide(length * group, queries)
    parts = max(1, min(_PROGRAMS // programs, capacity // _LEAST_ROWS))
    parts = 1 << parts.bit_length() - 1  # few different ones, as each is compiled anew
    width = power_of_two(size, 16, 1 << 20)
    sums = out if parts == 1 else q.new_empty((programs * parts, queries, width + 2), dtype=torch.float32)
    scales = [scale.contiguous() for scale in (scale_k, scale_v)]
    offset = scales[1] if offset_v is None else offset_v.contiguous()  # what is absent is not read
    places = [lengths if value is None else value for value in (block_table, starts)]
    shape = {"OFFSET": offset_v is not None, "PARTS": parts, "D": size, "WIDTH": width, "QUERIES": queries}
    launch(
        _attention_kernel, programs * parts, q, k_cache, v_cache, lengths, *scales, offset, *places, out, sums,
        _device_errors.word(q.device), size**-0.5 if softmax_scale is None else softmax_scale, length, kv_heads, group,
        planes, rows, blocks, capacity, length if causal else 1, *q.stride(), *lengths.stride(),
        0 if starts is None else starts.stride(0), *((0, 0) if block_table is None else block_table.stride()),
        LENGTHS=_LENGTHS, STARTS=_STARTS, BLOCKS=_BLOCKS, HAS_STARTS=starts is not None,
        PAGED=block_table is not None, CAUSAL=causal, ROWS=_ROWS, num_warps=4 if block_table is None else 8, **shape,
    )  # fmt: skip
    if parts > 1:
        launch(_join_kernel, programs, sums, scales[1], offset, out, length, kv_heads, group, **shape)
    return out
