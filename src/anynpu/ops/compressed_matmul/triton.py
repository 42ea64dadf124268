# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of compressed_matmul: a decoder with a program for each block, then the product of quant_matmul.

Format c8 of docs/formats.md. A program decodes level by level; what is between two levels goes through memory. Whatever
the stream holds, only the block's own payload is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import launch, report
from anynpu.ops.compressed_matmul.reference import MARKS
from anynpu.ops.compressed_matmul.spec import OP, output_shape
from anynpu.ops.quant_matmul.triton import multiply

_BLOCK = _device_errors.new_rule(OP, "the index (a block of 8 bytes)", "must belong to a sound block of this matrix")
_BIAS = _device_errors.new_rule(OP, "bias", "must be so small that int32 sums cannot overflow")
_CHUNK = 4096  # codes at once
_ENTRIES = 1024  # of the index at once

BLOCK_K, BLOCK_N, PANEL = (tl.constexpr(size) for size in (256, 128, 64))
RAW, CONSTANT, CODED = (tl.constexpr(kind) for kind in range(3))
_MARK1, _MARK2 = (tl.constexpr(mark) for mark in MARKS)
_MIX = tl.constexpr(0x9E3779B1)
_SEED_MIX = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
# Scratch of a block: the symbols of two levels, which bytes the ranks stand for, the bases of the classes.
_SYMBOLS, _MORE_SYMBOLS, _BYTES, _BASES = (tl.constexpr(place) for place in (0, 16384, 24576, 24832))
_SCRATCH = 24832 + 16


@triton.jit
def _begins_kernel(index_ptr, begin_ptr, blocks, BLOCK: tl.constexpr):
    """Where each payload begins, and behind the last of them."""
    before = tl.zeros((), tl.int64)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        length = _lengths(index_ptr, block, block < blocks)
        tl.store(begin_ptr + block, before + tl.cumsum(length, axis=0) - length, mask=block < blocks)
        before += tl.sum(length, axis=0)
    tl.store(begin_ptr + blocks, before)


@triton.jit
def _lengths(index_ptr, block, real):
    low = tl.load(index_ptr + block * 8 + 4, mask=real, other=0).to(tl.int64)
    return 8 * (low + 256 * tl.load(index_ptr + block * 8 + 5, mask=real, other=0).to(tl.int64))


@triton.jit
def _checksum(words, length, seed, scratch):
    """Of a payload, whose bytes ``words`` holds by four."""
    lane = tl.arange(0, 64)
    state = (lane + seed) & 0xFFFFFFFF
    for piece in range(0, length // 256 + 1):
        word = piece * 64 + lane
        state ^= tl.load(words + word, mask=word < length // 4, other=0).to(tl.int64) & 0xFFFFFFFF
        state = (((state << 13) | (state >> 19)) & 0xFFFFFFFF) * _MIX & 0xFFFFFFFF
    tl.store(scratch + lane, state)
    tl.debug_barrier()
    value = seed ^ length
    for number in range(0, 64):
        value ^= tl.load(scratch + number)
        value = (((value << 13) | (value >> 19)) & 0xFFFFFFFF) * _MIX & 0xFFFFFFFF
    tl.debug_barrier()
    return value ^ (value >> 16)


@triton.jit
def _seed(seed_of_matrix, block, kind):
    seed = (seed_of_matrix ^ block) * _SEED_MIX
    seed ^= (seed >> 32) & 0xFFFFFFFF
    seed = (seed ^ kind) * _SEED_MIX
    seed ^= (seed >> 32) & 0xFFFFFFFF
    return seed & 0xFFFFFFFF


@triton.jit
def _nibble(ptr, place, inside):
    """Nibble ``place``, the even ones low, of packed nibbles."""
    byte = tl.load(ptr + place // 2, mask=inside, other=0).to(tl.int32)
    return (byte >> (4 * (place % 2))) & 15


@triton.jit
def _extra(extras, position, bits, size):
    """``bits`` bits from bit ``position`` on, of ``size`` bytes."""
    at = position // 8
    low = tl.load(extras + at, mask=at < size, other=0).to(tl.int32)
    high = tl.load(extras + at + 1, mask=at + 1 < size, other=0).to(tl.int32)
    return ((low | (high << 8)) >> (position % 8)) & ((1 << bits) - 1)


@triton.jit
def _store_values(weight_ptr, value, place, steps, first_k, first_n, n, k, inside):
    """Values by their place in the order [panel][step][column][k] into the weight [N, K]."""
    column = first_n + place // (steps * 256) * PANEL + place % 256 // 4
    at_k = first_k + place // 256 % steps * 4 + place % 4
    tl.store(weight_ptr + column.to(tl.int64) * k + at_k, value.to(tl.int8), mask=inside & (column < n) & (at_k < k))


@triton.jit
def _plain(weight_ptr, payload, kind, values, steps, first_k, first_n, n, k, CHUNK: tl.constexpr):
    """A raw or constant block."""
    for first in range(0, values, CHUNK):
        place = first + tl.arange(0, CHUNK)
        source = tl.where(kind == RAW, place, 0)
        value = tl.load(payload + source, mask=place < values, other=0).to(tl.int32) - 128
        _store_values(weight_ptr, value, place, steps, first_k, first_n, n, k, place < values)


@triton.jit
def _prepare(order, scratch, bases):
    """Of a level above the first: which byte a rank stands for, and the bases of the classes. Whether it is sound."""
    byte, label = tl.arange(0, 256), tl.arange(0, 16)
    low, high = tl.load(order + byte % 16).to(tl.int32), tl.load(order + byte // 16).to(tl.int32)
    key, rank = (low + high) * 256 + byte, byte * 0
    for its_high in range(0, 16):
        other = (tl.load(order + label).to(tl.int32) + tl.load(order + its_high)) * 256 + its_high * 16 + label
        rank += tl.sum((other[None, :] < key[:, None]).to(tl.int32), axis=1)
    tl.store(scratch + rank, byte.to(tl.uint8))
    bits = _nibble(order + 16, label, label < 16)
    codes = 1 << bits
    tl.store(bases + label, tl.cumsum(codes, axis=0) - codes)
    return (tl.max(low, axis=0) <= 127) & (tl.max(bits, axis=0) <= 7)


@triton.jit
def _sound_boxes(masks):
    """Whether the 16 masks of a level of boxes are masks."""
    mask = tl.load(masks + tl.arange(0, 16)).to(tl.int32)
    low, high = mask & 15, mask >> 4
    return tl.max((low & (low + 1)) | (high & (high + 1)) | (mask == 255).to(tl.int32), axis=0) == 0


@triton.jit
def _coded(weight_ptr, payload, length, mark, values, steps, first_k, first_n, n, k, scratch, bases,
           CHUNK: tl.constexpr):  # fmt: skip
    """A coded block; returns whether it is sound."""
    levels, folded = tl.load(payload).to(tl.int32), tl.load(payload + 1).to(tl.int32)
    log_tables, boxes = tl.load(payload + 2).to(tl.int32), tl.load(payload + 3).to(tl.int32)
    number = tl.arange(0, 8)
    sizes = tl.load(payload + 4 + 2 * number, mask=number < 6, other=0).to(tl.int32)
    sizes += tl.load(payload + 5 + 2 * number, mask=number < 6, other=0).to(tl.int32) << 8
    sizes = tl.where(number < levels, sizes, 0)
    orders = 16 + (24 << tl.minimum(log_tables, 5))
    is_box = (boxes >> number) & 1
    table_sizes = tl.where(number < levels - 1, 24 + 8 * is_box, 0)  # of levels 2 and up
    extras = orders + tl.sum(table_sizes, axis=0)
    classes = extras + tl.sum(sizes, axis=0)
    sound = (levels >= 1) & (levels <= 6) & (folded <= 1) & (log_tables <= 5)
    sound &= (mark == _MARK2) | (boxes == 0)
    sound &= (boxes >> tl.minimum(tl.maximum(levels - 1, 0), 7)) == 0
    levels = tl.minimum(tl.maximum(levels, 1), 6)
    sound &= (values % (32 << levels) == 0) & (values >> levels >= 64)
    sound &= (classes + (values >> levels) + 7) // 8 * 8 == length
    if sound:
        table = tl.arange(0, 512)  # bit counts of all value tables
        real = table < (16 << log_tables)
        its_bits = _nibble(payload + 16 + table // 16 * 24 + 16, table % 16, real)
        sound &= tl.max(tl.where(real, its_bits, 0), axis=0) <= 7
        for step in range(0, levels):
            level = levels - step
            order = payload + orders + tl.sum(tl.where(number < level - 2, table_sizes, 0), axis=0)
            of_boxes = tl.sum(tl.where(number == level - 2, is_box, 0), axis=0) == 1
            if level > 1:
                if of_boxes:
                    sound &= _sound_boxes(order + 16)
                else:
                    sound &= _prepare(order, scratch + _BYTES, bases)
                tl.debug_barrier()
            size = tl.sum(tl.where(number == level - 1, sizes, 0), axis=0)
            its_extras = payload + extras + tl.sum(tl.where(number >= level, sizes, 0), axis=0)
            source = payload + classes
            if step > 0:
                source = scratch + tl.where(level % 2 == 1, _SYMBOLS, _MORE_SYMBOLS)
            position = extras * 0
            count = values >> (level - 1)
            for first in range(0, count, CHUNK):
                place = first + tl.arange(0, CHUNK)
                inside = place < count
                label = _nibble(source, place, inside)
                low_mask, high_bits = label * 0, label * 0
                if level > 1:
                    if of_boxes:
                        base = tl.load(order + label).to(tl.int32)
                        mask = tl.where(inside, tl.load(order + 16 + label).to(tl.int32), 0)
                        low_mask, high_mask = mask & 15, mask >> 4
                        high_bits = (high_mask & 1) + (high_mask >> 1 & 1) + (high_mask >> 2 & 1) + (high_mask >> 3)
                        bits = (mask & 1) + (mask >> 1 & 1) + (mask >> 2 & 1) + (mask >> 3 & 1) + high_bits
                    else:
                        bits = tl.where(inside, _nibble(order + 16, label, inside), 0)
                        base = tl.load(bases + label)
                else:
                    column = place // (steps * 256) * PANEL + place % 256 // 4
                    its_table = payload + 16 + (column >> (7 - log_tables)) * 24
                    bits = tl.where(inside, _nibble(its_table + 16, label, inside), 0)
                    base = tl.load(its_table + label, mask=inside, other=0).to(tl.int32)
                ends = position + tl.cumsum(bits, axis=0)
                extra = _extra(its_extras, ends - bits, bits, size)
                if (level > 1) & of_boxes:
                    extra = (extra & low_mask) | ((extra >> (bits - high_bits)) << 4)
                code = (base + extra) & 255
                position += tl.sum(bits, axis=0)
                if level > 1:
                    symbol = code.to(tl.uint8)
                    if not of_boxes:
                        symbol = tl.load(scratch + _BYTES + code)
                    target = scratch + tl.where(level % 2 == 0, _SYMBOLS, _MORE_SYMBOLS)
                    tl.store(target + place, symbol, mask=inside)
                else:
                    unfolded = tl.where(code % 2 == 0, code // 2, -((code + 1) // 2))
                    value = tl.where(folded == 1, unfolded, code - 128)
                    _store_values(weight_ptr, value, place, steps, first_k, first_n, n, k, inside)
            sound &= (position + 7) // 8 == size
            tl.debug_barrier()
    return sound


@triton.jit
def _decode_kernel(stream_ptr, words_ptr, index_ptr, checksums_ptr, begin_ptr, weight_ptr, scratch_ptr, states_ptr,
                   bases_ptr, error_ptr, stream_bytes, blocks, n, k, seed_of_matrix, RULE: tl.constexpr,
                   SCRATCH: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """One block."""
    block = tl.program_id(0).to(tl.int64)
    k_blocks = tl.cdiv(k, BLOCK_K)
    first_k, first_n = (tl.program_id(0) % k_blocks) * BLOCK_K, (tl.program_id(0) // k_blocks) * BLOCK_N
    steps = tl.cdiv(tl.minimum(k - first_k, BLOCK_K), 4)
    values = tl.cdiv(tl.minimum(n - first_n, BLOCK_N), PANEL) * steps * 256
    one = tl.arange(0, 1)
    length = tl.sum(_lengths(index_ptr, block + one, one == 0), axis=0)
    entry = index_ptr + block * 8
    kind, mark = tl.load(entry + 6).to(tl.int32), tl.load(entry + 7).to(tl.int32)
    begin = tl.load(begin_ptr + block)
    sound = ((mark == _MARK1) | (mark == _MARK2)) & (kind <= CODED) & (tl.load(begin_ptr + blocks) == stream_bytes)
    sound &= (begin + length <= stream_bytes) & ((kind != RAW) | (length == values))
    sound &= ((kind != CONSTANT) | (length == 8)) & ((kind != CODED) | ((length >= 16) & (length <= values)))
    payload = stream_ptr + begin
    if sound:
        seed = _seed(seed_of_matrix, block, kind.to(tl.int64))
        found = _checksum(words_ptr + begin // 4, length, seed, states_ptr + block * 64)
        sound &= found == (tl.load(checksums_ptr + block * 2).to(tl.int64) & 0xFFFFFFFF)
    if sound:
        if kind == CODED:
            scratch, bases = scratch_ptr + block * SCRATCH, bases_ptr + block * 16
            sound &= _coded(
                weight_ptr, payload, length, mark, values, steps, first_k, first_n, n, k, scratch, bases, CHUNK
            )
        else:
            _plain(weight_ptr, payload, kind, values, steps, first_k, first_n, n, k, CHUNK)
    report(error_ptr, RULE, (one + sound.to(tl.int32)) == 0, one + block)


def _seed_of_matrix(k: int, n: int) -> int:
    """The part of a block's seed that all blocks share, as int64."""
    seed = MARKS[0]
    for part in (k, n):
        seed = (seed ^ part) * (_SEED_MIX.value + 2**64) % 2**64
        seed ^= seed >> 32
    return seed - 2**64 if seed >= 2**63 else seed


def decompress(stream: torch.Tensor, index: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """The int8 weight ``(n, k)``; blocks that are not sound are left as they are and told by check_device_errors."""
    weight = torch.empty((n, k), dtype=torch.int8, device=stream.device)
    blocks = index.numel() // 8
    begin = torch.empty(blocks + 1, dtype=torch.int64, device=stream.device)
    scratch = torch.empty(blocks * _SCRATCH, dtype=torch.uint8, device=stream.device)
    states = torch.empty(blocks * 64, dtype=torch.int64, device=stream.device)
    bases = torch.empty(blocks * 16, dtype=torch.int32, device=stream.device)
    stream, index = (_aligned(tensor) for tensor in (stream, index))
    launch(_begins_kernel, 1, index, begin, blocks, BLOCK=_ENTRIES)
    words, checksums = stream[: stream.numel() // 4 * 4].view(torch.int32), index.view(torch.int32)
    launch(_decode_kernel, blocks, stream, words, index, checksums, begin, weight, scratch, states, bases,
           _device_errors.word(stream.device), stream.numel(), blocks, n, k, _seed_of_matrix(k, n), RULE=_BLOCK,
           SCRATCH=_SCRATCH, CHUNK=_CHUNK, num_warps=8)  # fmt: skip
    return weight


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, from an address on that words may have."""
    tensor = tensor.view(torch.uint8)
    return tensor.clone() if tensor.storage_offset() % 8 else tensor


def compressed_matmul(
    x: torch.Tensor,
    stream: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    *,
    n: int | None = None,
    scale_19_bits: bool = False,
    pertoken_scale: torch.Tensor | None = None,
    output_dtype: torch.dtype = torch.float16,
) -> torch.Tensor:
    """See ``anynpu.compressed_matmul``; a weight that is damaged or foreign is told by ``check_device_errors``."""
    m, n = output_shape(x, stream, index, bias, scale, n, pertoken_scale, output_dtype)
    y = x.new_empty((m, n), dtype=output_dtype)
    if y.numel() == 0:
        return y
    scale = scale.reshape(-1)
    words = scale.view(torch.int32 if scale.dtype == torch.float32 else torch.int64)
    if scale_19_bits:
        words = words & ~0x1FFF
    scale = words.view(torch.float32) if scale.dtype == torch.float32 else words
    weight = decompress(stream, index, n, x.shape[1])
    bias = None if bias is None else bias.reshape(-1)
    multiply(x.unsqueeze(0), weight.t().unsqueeze(0), y, scale, None, pertoken_scale, bias, _BIAS)
    return y
