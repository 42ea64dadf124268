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
_ENTRIES = 1024  # of the index at once
_WARPS = 4

BLOCK_K, BLOCK_N, PANEL = (tl.constexpr(size) for size in (256, 128, 64))
RAW, CONSTANT, CODED = (tl.constexpr(kind) for kind in range(3))
_MARK1, _MARK2 = (tl.constexpr(mark) for mark in MARKS)
_MIX = tl.constexpr(0x9E3779B1)
_SEED_MIX = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
_STEPS = tl.constexpr(16)  # of 4 k, and 64 columns, at once
_AT_ONCE = tl.constexpr(512)  # words of eight codes; as many are in _STEPS
_AHEAD = tl.constexpr(8)  # pieces of a payload that are on their way to the checksum
# Scratch of a block in words: the symbols of two levels, the classes of all value tables, those of another level, the
# bytes that ranks stand for, the lanes of the checksum.
_SYMBOLS, _MORE_SYMBOLS, _TABLES, _CLASSES, _BYTES, _LANES, _SCRATCH = (
    tl.constexpr(place) for place in (0, 4096, 6144, 6656, 6672, 6928, 6992)
)


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
def _mixed(state, word):
    state ^= word
    return ((state << 13) | (state >> 19)) * _MIX


@triton.jit
def _checksum(words, length, seed, lanes):
    """Of a payload, whose bytes ``words`` holds by four."""
    lane = tl.arange(0, 64)
    state, whole = lane.to(tl.uint32) + seed, length // 256 // _AHEAD * _AHEAD
    for first in range(0, whole, _AHEAD):
        for ahead in tl.static_range(_AHEAD):
            state = _mixed(state, tl.load(words + (first + ahead) * 64 + lane).to(tl.uint32, bitcast=True))
    for piece in range(whole, length // 256 + 1):
        place = piece * 64 + lane
        word = tl.load(words + place, mask=place < length // 4, other=0)
        state = _mixed(state, word.to(tl.uint32, bitcast=True))
    tl.store(lanes + lane, state.to(tl.int32, bitcast=True))
    tl.debug_barrier()
    value = seed ^ length.to(tl.uint32)
    for first in range(0, 64, _AHEAD):
        for ahead in tl.static_range(_AHEAD):
            value = _mixed(value, tl.load(lanes + first + ahead).to(tl.uint32, bitcast=True))
    return value ^ (value >> 16)


@triton.jit
def _seed(seed_of_matrix, block, kind):
    seed = (seed_of_matrix ^ block) * _SEED_MIX
    seed ^= (seed >> 32) & 0xFFFFFFFF
    seed = (seed ^ kind) * _SEED_MIX
    seed ^= (seed >> 32) & 0xFFFFFFFF
    return seed.to(tl.uint32)


@triton.jit
def _nibble(ptr, place, inside):
    """Nibble ``place``, the even ones low, of packed nibbles."""
    byte = tl.load(ptr + place // 2, mask=inside, other=0).to(tl.uint32)
    return (byte >> (4 * (place % 2)).to(tl.uint32)) & 15


@triton.jit
def _word(words, place, end):
    return tl.load(words + place, mask=place < end, other=0).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def _bits_from(words, bit, end):
    """The 64 bits from ``bit`` on of a payload of ``end`` words, 0 behind it."""
    place, shift = bit >> 5, (bit & 31).to(tl.uint64)
    first_two = _word(words, place, end) | (_word(words, place + 1, end) << 32)
    return (first_two >> shift) | ((_word(words, place + 2, end) << 1) << (63 - shift))


@triton.jit
def _class(base, bits, mask, shift):
    """What a code needs to know of its class, in one number; ``mask`` and ``shift`` tell where its bits are put."""
    return (base & 255) | (mask << 8) | (shift << 16) | (bits << 28)


@triton.jit
def _plain_class(base, bits):
    return _class(base, bits, (1 << bits) - 1, 0)


@triton.jit
def _code(its_class, bits, first, BOXES: tl.constexpr):
    """The class's base and the bits from ``first`` on: those of its mask, or put where its box has them."""
    extra, mask = (bits >> first.to(tl.uint64)).to(tl.uint32), its_class >> 8
    if BOXES:
        extra = (extra & mask & 15) | ((extra << ((its_class >> 16) & 7)) & mask & 240)
    else:
        extra &= mask
    return (its_class + extra) & 255


@triton.jit
def _packed(a, b, c, d):
    """Four bytes in a word."""
    return a | (b << 8) | (c << 16) | (d << 24)


@triton.jit
def _codes(labels, classes, table, words, end, first_bit, inside, byte_of_rank, ranks, BOXES: tl.constexpr):
    """The eight codes of each word of class nibbles as two words; and behind which bit of the payload they end.

    Nibble c is class ``table + c`` of ``classes``. With ``ranks`` the codes are ranks, and bytes are returned.
    """
    pairs = tl.join(labels, labels >> 4)
    fours = tl.join(pairs, pairs >> 8)
    label = (tl.join(fours, fours >> 16) & 15).to(tl.int32) + table[:, None, None, None]
    its_class = tl.gather(classes, tl.reshape(label, (8 * _AT_ONCE,)), 0).to(tl.uint32, bitcast=True)
    first_half, second_half = tl.split(tl.reshape(its_class, (_AT_ONCE, 2, 2, 2)))
    two, next_two = tl.split(first_half)
    a, b = tl.split(two)
    c, d = tl.split(next_two)
    two, next_two = tl.split(second_half)
    e, f = tl.split(two)
    g, h = tl.split(next_two)
    to_b = a >> 28
    to_c = to_b + (b >> 28)
    to_d = to_c + (c >> 28)
    to_e = to_d + (d >> 28)
    to_f = to_e + (e >> 28)
    to_g = to_f + (f >> 28)
    to_h = to_g + (g >> 28)
    count = tl.where(inside, to_h + (h >> 28), 0).to(tl.int32)
    bits = _bits_from(words, first_bit + tl.cumsum(count, axis=0) - count, end)
    a, b = _code(a, bits, to_b * 0, BOXES), _code(b, bits, to_b, BOXES)
    c, d = _code(c, bits, to_c, BOXES), _code(d, bits, to_d, BOXES)
    e, f = _code(e, bits, to_e, BOXES), _code(f, bits, to_f, BOXES)
    g, h = _code(g, bits, to_g, BOXES), _code(h, bits, to_h, BOXES)
    if ranks:
        a, b = _byte(byte_of_rank, a), _byte(byte_of_rank, b)
        c, d = _byte(byte_of_rank, c), _byte(byte_of_rank, d)
        e, f = _byte(byte_of_rank, e), _byte(byte_of_rank, f)
        g, h = _byte(byte_of_rank, g), _byte(byte_of_rank, h)
    return _packed(a, b, c, d), _packed(e, f, g, h), first_bit + tl.sum(count, axis=0)


@triton.jit
def _byte(byte_of_rank, rank):
    return tl.load(byte_of_rank + rank).to(tl.uint32, bitcast=True)


@triton.jit
def _labels(words, end, first_bit, place):
    """Eight class nibbles each, of a string of them that begins at a whole byte of the words."""
    bit = first_bit + 32 * place
    low = _word(words, bit >> 5, end) | (_word(words, (bit >> 5) + 1, end) << 32)
    return (low >> (bit & 31).to(tl.uint64)).to(tl.uint32)


@triton.jit
def _store_words(weight_ptr, word, column, step, end_step, n, row, WHOLE: tl.constexpr):
    """Four values each, from k = 4 step on. The weight has a ``row`` of words, or of bytes if k is no multiple of 4.

    WHOLE: there are no edges within what is stored.
    """
    if weight_ptr.dtype.element_ty == tl.int32:
        here, word = weight_ptr + column.to(tl.int64) * row + step, word.to(tl.int32, bitcast=True)
        if WHOLE:
            tl.store(here, word)
        else:
            tl.store(here, word, mask=(column < n) & (step < end_step))
    else:
        here = weight_ptr + column.to(tl.int64) * row + 4 * step
        for j in tl.static_range(4):
            inside = (column < n) & (step < end_step) & (4 * step + j < row)
            tl.store(here + j, (word >> (8 * j)).to(tl.int8), mask=inside)


@triton.jit
def _plain(weight_ptr, words, kind, panels, steps, first_step, first_n, n, row):
    """A raw or constant block."""
    for first in range(0, panels * steps * 64, _AT_ONCE):
        place = first + tl.arange(0, _AT_ONCE)
        inside = place < panels * steps * 64
        word = tl.load(words + tl.where(kind == RAW, place, 0), mask=inside, other=0).to(tl.uint32, bitcast=True)
        word = tl.where(kind == RAW, word, (word & 255) * 0x01010101) ^ 0x80808080
        column = tl.where(inside, first_n + place // (steps * 64) * PANEL + place % 64, n)
        _store_words(weight_ptr, word, column, first_step + place // 64 % steps, first_step + steps, n, row, False)


@triton.jit
def _sort_bytes(order, byte_of_rank):
    """Of a level of ranks: which byte a rank stands for. Whether its weights are in range."""
    byte = tl.arange(0, 256)
    low, high = tl.load(order + byte % 16).to(tl.int32), tl.load(order + byte // 16).to(tl.int32)
    tl.store(byte_of_rank + byte, tl.sort((low + high) * 256 + byte) & 255)
    return tl.max(low, axis=0) <= 127


@triton.jit
def _classes_of_ranks(order, classes):
    """Of a level of ranks. Whether its numbers of bits are in range."""
    label = tl.arange(0, 16)
    bits = _nibble(order + 16, label, label < 16)
    codes = 1 << bits.to(tl.int32)
    base = (tl.cumsum(codes, axis=0) - codes).to(tl.uint32)
    tl.store(classes + label, _plain_class(base, bits).to(tl.int32, bitcast=True))
    return tl.max(bits, axis=0) <= 7


@triton.jit
def _ones(nibble):
    return (nibble & 1) + ((nibble >> 1) & 1) + ((nibble >> 2) & 1) + (nibble >> 3)


@triton.jit
def _classes_of_boxes(order, classes):
    """Of a level of boxes. Whether its masks are masks."""
    label = tl.arange(0, 16)
    base, mask = tl.load(order + label).to(tl.uint32), tl.load(order + 16 + label).to(tl.uint32)
    low, high = mask & 15, mask >> 4
    its_class = _class(base, _ones(low) + _ones(high), mask, 4 - _ones(low))
    tl.store(classes + label, its_class.to(tl.int32, bitcast=True))
    return tl.max((low & (low + 1)) | (high & (high + 1)) | (mask == 255).to(tl.uint32), axis=0) == 0


@triton.jit
def _value_tables(payload, log_tables, tables):
    """Prepares the classes of level 1. Whether their numbers of bits are in range."""
    place = tl.arange(0, 512)
    real = place < (16 << log_tables)
    its_table = payload + 16 + place // 16 * 24
    bits = _nibble(its_table + 16, place % 16, real)
    base = tl.load(its_table + place % 16, mask=real, other=0).to(tl.uint32)
    tl.store(tables + place, _plain_class(base, bits).to(tl.int32, bitcast=True), mask=real)
    return tl.max(bits, axis=0) <= 7


@triton.jit
def _symbols(words, end, first_bit, source, source_end, source_bit, scratch, target, count, ranks):
    """Decodes a level above the first: ``count`` bytes. Returns the bit of the payload behind its extra bits."""
    classes = tl.load(scratch + _CLASSES + tl.arange(0, 16))
    for first in range(0, count // 8, _AT_ONCE):
        place = first + tl.arange(0, _AT_ONCE)
        inside = place < count // 8
        labels = _labels(source, source_end, source_bit, place)
        low, high, first_bit = _codes(labels, classes, place * 0, words, end, first_bit, inside, scratch + _BYTES,
                                      ranks, True)  # fmt: skip
        both = tl.reshape(tl.join(low, high), (2 * _AT_ONCE,)).to(tl.int32, bitcast=True)
        at = 2 * first + tl.arange(0, 2 * _AT_ONCE)
        tl.store(target + at, both, mask=at < count // 4)
    return first_bit


@triton.jit
def _values(weight_ptr, words, end, first_bit, source, source_end, source_bit, tables, log_tables, folded, panels,
            steps, first_step, first_n, n, row, WHOLE: tl.constexpr):  # fmt: skip
    """Decodes level 1. Returns the bit of the payload behind its extra bits."""
    here, classes = tl.arange(0, _AT_ONCE), tl.load(tables + tl.arange(0, 512))
    column, step = (tl.arange(0, PANEL))[:, None], tl.arange(0, _STEPS)[None, :]
    for panel in range(0, panels):
        table = (panel * PANEL + here % 32 * 2) >> (7 - log_tables)
        for first in range(0, steps, _STEPS):
            place, inside = (panel * steps + first) * 32 + here, first + here // 32 < steps
            labels = _labels(source, source_end, source_bit, place)
            low, high, first_bit = _codes(labels, classes, table * 16, words, end, first_bit, inside | WHOLE, tables,
                                          False, False)  # fmt: skip
            code = tl.trans(tl.reshape(tl.join(low, high), (_STEPS, PANEL)))
            unfolded = ((code >> 1) & 0x7F7F7F7F) ^ ((code & 0x01010101) * 255)
            word = tl.where(folded == 1, unfolded, code ^ 0x80808080)
            _store_words(weight_ptr, word, first_n + panel * PANEL + column, first_step + first + step,
                         first_step + steps, n, row, WHOLE)  # fmt: skip
    return first_bit


@triton.jit
def _coded(weight_ptr, payload, words, length, mark, panels, steps, first_step, first_n, n, row, scratch,
           WHOLE: tl.constexpr):  # fmt: skip
    """A coded block; returns whether it is sound."""
    values = panels * steps * 256
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
        end = length // 4
        sound &= _value_tables(payload, log_tables, scratch + _TABLES)
        tl.debug_barrier()
        source, source_end, source_bit = words, end, 8 * classes
        for step in range(0, levels - 1):
            level = levels - step
            order = payload + orders + tl.sum(tl.where(number < level - 2, table_sizes, 0), axis=0)
            ranks = tl.sum(tl.where(number == level - 2, is_box, 0), axis=0) == 0
            if ranks:
                sound &= _sort_bytes(order, scratch + _BYTES) & _classes_of_ranks(order, scratch + _CLASSES)
            else:
                sound &= _classes_of_boxes(order, scratch + _CLASSES)
            tl.debug_barrier()
            first_bit = 8 * (extras + tl.sum(tl.where(number >= level, sizes, 0), axis=0))
            size = tl.sum(tl.where(number == level - 1, sizes, 0), axis=0)
            count = values >> (level - 1)
            target = scratch + tl.where(level % 2 == 0, _SYMBOLS, _MORE_SYMBOLS)
            last = _symbols(words, end, first_bit, source, source_end, source_bit, scratch, target, count, ranks)
            sound &= (last - first_bit + 7) // 8 == size
            source, source_end, source_bit = target, count // 4, source_bit * 0
            tl.debug_barrier()
        first_bit = 8 * (classes - tl.sum(tl.where(number == 0, sizes, 0), axis=0))
        last = _values(weight_ptr, words, end, first_bit, source, source_end, source_bit, scratch + _TABLES, log_tables,
                       folded, panels, steps, first_step, first_n, n, row, WHOLE)  # fmt: skip
        sound &= (last - first_bit + 7) // 8 == tl.sum(tl.where(number == 0, sizes, 0), axis=0)
    return sound


@triton.jit
def _decode_kernel(stream_ptr, words_ptr, index_ptr, checksums_ptr, begin_ptr, weight_ptr, scratch_ptr, error_ptr,
                   stream_bytes, blocks, n, k, row, seed_of_matrix, RULE: tl.constexpr,
                   WHOLE: tl.constexpr):  # fmt: skip
    """One block."""
    block = tl.program_id(0).to(tl.int64)
    k_blocks = tl.cdiv(k, BLOCK_K)
    first_step, first_n = (tl.program_id(0) % k_blocks) * (BLOCK_K // 4), (tl.program_id(0) // k_blocks) * BLOCK_N
    steps = tl.minimum(tl.cdiv(k, 4) - first_step, BLOCK_K // 4)
    panels = tl.cdiv(tl.minimum(n - first_n, BLOCK_N), PANEL)
    values = panels * steps * 256
    one = tl.arange(0, 1)
    length = tl.sum(_lengths(index_ptr, block + one, one == 0), axis=0).to(tl.int32)
    entry = index_ptr + block * 8
    kind, mark = tl.load(entry + 6).to(tl.int32), tl.load(entry + 7).to(tl.int32)
    begin = tl.load(begin_ptr + block)
    sound = ((mark == _MARK1) | (mark == _MARK2)) & (kind <= CODED) & (tl.load(begin_ptr + blocks) == stream_bytes)
    sound &= (begin + length <= stream_bytes) & ((kind != RAW) | (length == values))
    sound &= ((kind != CONSTANT) | (length == 8)) & ((kind != CODED) | ((length >= 16) & (length <= values)))
    payload, words, scratch = stream_ptr + begin, words_ptr + begin // 4, scratch_ptr + block * _SCRATCH
    if sound:
        found = _checksum(words, length, _seed(seed_of_matrix, block, kind.to(tl.int64)), scratch + _LANES)
        sound &= found == tl.load(checksums_ptr + block * 2).to(tl.uint32, bitcast=True)
    if sound:
        if kind == CODED:
            sound &= _coded(weight_ptr, payload, words, length, mark, panels, steps, first_step, first_n, n, row,
                            scratch, WHOLE)  # fmt: skip
        else:
            _plain(weight_ptr, words, kind, panels, steps, first_step, first_n, n, row)
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
    scratch = torch.empty(blocks * _SCRATCH.value, dtype=torch.int32, device=stream.device)
    stream, index = (_aligned(tensor) for tensor in (stream, index))
    launch(_begins_kernel, 1, index, begin, blocks, BLOCK=_ENTRIES)
    words, checksums = stream[: stream.numel() // 4 * 4].view(torch.int32), index.view(torch.int32)
    target = weight.view(torch.int32) if k % 4 == 0 else weight
    launch(_decode_kernel, blocks, stream, words, index, checksums, begin, target, scratch,
           _device_errors.word(stream.device), stream.numel(), blocks, n, k, target.shape[1], _seed_of_matrix(k, n),
           RULE=_BLOCK, WHOLE=k % (4 * _STEPS.value) == 0 and n % PANEL.value == 0, num_warps=_WARPS)  # fmt: skip
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
