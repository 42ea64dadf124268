# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of compressed_matmul: a decoder with a program for each block, then the product of quant_matmul.

Format c8 of docs/formats.md. A program decodes level by level; what is between two levels goes through memory. Other
programs of the same launch compare the checksums, each a long chain of steps. Decoding need not wait for them: whatever
the stream holds, only the block's own payload is read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import INTERPRETED, ceil_divide, fetch, launch, report
from anynpu.ops.compressed_matmul.reference import MARKS
from anynpu.ops.compressed_matmul.spec import OP, Arguments, output_shape
from anynpu.ops.quant_matmul.triton import multiply

_BLOCK = _device_errors.new_rule(OP, "the index (a block of 8 bytes)", "must belong to a sound block of this matrix")
_BIAS = _device_errors.new_rule(OP, "bias", "must be so small that int32 sums cannot overflow")
_ENTRIES = 2048  # of the index at once
_WARPS = 4
_REGISTERS = 128  # of a thread: latency bounds the decoder, and a processor has room for four programs then, not three

BLOCK_K, BLOCK_N, PANEL = (tl.constexpr(size) for size in (256, 128, 64))
RAW, CONSTANT, CODED = (tl.constexpr(kind) for kind in range(3))
_MARK1, _MARK2 = (tl.constexpr(mark) for mark in MARKS)
_MIX = tl.constexpr(0x9E3779B1)
_SEED_MIX = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
_STEPS = tl.constexpr(16)  # of 4 k, and 64 columns, at once
_LANES = tl.constexpr(256)  # of sixteen codes each, those of _STEPS
_CHECKED = tl.constexpr(4)  # blocks whose checksums a program computes
_FETCHED = tl.constexpr(128)  # sectors of the L2, of eight words, that are asked for at once
_AHEAD = tl.constexpr(16)  # pieces of a payload that are on their way to the checksum
# Scratch of a block in words: the symbols of two levels, the classes of all value tables, those of another level, the
# bytes that ranks stand for, the lanes of the checksum.
_SYMBOLS, _MORE_SYMBOLS, _TABLES, _CLASSES, _BYTES, _LANE_STATES, _SCRATCH = (
    tl.constexpr(place) for place in (0, 4096, 6144, 7168, 7200, 7456, 7520)
)
_CLASSES_AT_ONCE = tl.constexpr(128)  # of the value tables


@triton.jit
def _begins_kernel(index_ptr, begin_ptr, blocks, BLOCK: tl.constexpr):
    """Where each payload begins, and behind the last of them."""
    before = tl.zeros((), tl.int64)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        length = _length(_entry(index_ptr, block, block < blocks)).to(tl.int64)
        tl.store(begin_ptr + block, before + tl.cumsum(length, axis=0) - length, mask=block < blocks)
        before += tl.sum(length, axis=0)
    tl.store(begin_ptr + blocks, before)


@triton.jit
def _entry(index_ptr, block, real):
    """Length, kind and mark of a block, the second of its words in the index."""
    return tl.load(index_ptr + block * 2 + 1, mask=real, other=0)


@triton.jit
def _length(entry):
    return (entry & 0xFFFF) * 8


@triton.jit
def _mixed(state, word):
    state ^= word
    return ((state << 13) | (state >> 19)) * _MIX


@triton.jit
def _checksums(words_ptr, begin, length, real, seed, lanes):
    """Of the payloads of _CHECKED blocks; ``lanes`` is scratch of 64 words for each."""
    lane = tl.arange(0, 64)[None, :]
    state = lane.to(tl.uint32) + seed[:, None]
    words, end, pieces = words_ptr + (begin // 4)[:, None] + lane, (length // 4)[:, None], (length // 256)[:, None]
    common = tl.min(length, axis=0) // 256 // _AHEAD * _AHEAD
    for first in range(0, common, _AHEAD):
        for ahead in tl.static_range(_AHEAD):
            state = _mixed(state, tl.load(words + (first + ahead) * 64).to(tl.uint32, bitcast=True))
    for first in range(common, tl.max(length, axis=0) // 256 + 1, _AHEAD):
        for ahead in tl.static_range(_AHEAD):
            piece = first + ahead
            word = tl.load(words + piece * 64, mask=piece * 64 + lane < end, other=0)
            state = tl.where(piece <= pieces, _mixed(state, word.to(tl.uint32, bitcast=True)), state)
    tl.store(lanes[:, None] + lane, state.to(tl.int32, bitcast=True), mask=real[:, None])
    tl.debug_barrier()
    value = seed ^ length.to(tl.uint32)
    for first in range(0, 64, _AHEAD):
        for ahead in tl.static_range(_AHEAD):
            word = tl.load(lanes + first + ahead, mask=real, other=0)
            value = _mixed(value, word.to(tl.uint32, bitcast=True))
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
def _word(words, place):
    return tl.load(words + place).to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def _window(words, bit, end):
    """The 64 bits from ``bit`` on of a payload of ``end`` words, as two words; anything where they do not lie in it."""
    place, shift = tl.minimum(bit >> 5, end - 3), (bit & 31).to(tl.uint64)
    first, second, third = _word(words, place), _word(words, place + 1), _word(words, place + 2)
    return ((first | (second << 32)) >> shift).to(tl.uint32), ((second | (third << 32)) >> shift).to(tl.uint32)


@triton.jit
def _class(base, bits, mask, shift):
    """What a code needs to know of its class, two words that have base and mask in the top byte.

    The low bits are the number of its extra bits, and how far those of the high nibble are moved up.
    """
    low, high = (base << 24) | bits, (mask << 24) | shift
    return (low.to(tl.uint64) | (high.to(tl.uint64) << 32)).to(tl.int64, bitcast=True)


@triton.jit
def _plain_class(base, bits):
    return _class(base, bits, (1 << bits) - 1, bits * 0)


@triton.jit
def _code(base, mask, bits, shift, BOXES: tl.constexpr):
    """The class's base and its bits, which a shift by the low bits of ``shift`` brings to bit 24; in the top byte."""
    extra = bits << (shift & 31)
    if BOXES:
        return base + (extra & mask & 0x0F000000) + ((extra << (mask & 31)) & mask & 0xF0000000)
    else:
        return base + (extra & mask & 0xFF000000)


@triton.jit
def _packed(a, b, c, d):
    """The top bytes of four words in one."""
    return ((((((d >> 24) << 8) | (c >> 24)) << 8) | (b >> 24)) << 8) | (a >> 24)


@triton.jit
def _byte(byte_of_rank, rank):
    return tl.load(byte_of_rank + (rank >> 24)).to(tl.uint32, bitcast=True) << 24


@triton.jit
def _class_of(classes, labels, number: tl.constexpr):
    its_class = tl.load(classes + ((labels >> (4 * number)) & 15))
    return its_class.to(tl.uint32), (its_class >> 32).to(tl.uint32)


@triton.jit
def _classes_of(classes, labels, FIRST: tl.constexpr):
    """Of four labels, and their bits."""
    a, a_mask = _class_of(classes, labels, FIRST)
    b, b_mask = _class_of(classes, labels, FIRST + 1)
    c, c_mask = _class_of(classes, labels, FIRST + 2)
    d, d_mask = _class_of(classes, labels, FIRST + 3)
    return (a, b, c, d, a_mask, b_mask, c_mask, d_mask), (a + b + c + d) & 31


@triton.jit
def _four(classes, bits, byte_of_rank, BOXES: tl.constexpr):
    """The codes of four classes, packed. Those of levels of ranks are ranks, and bytes are returned."""
    a, b, c, d, a_mask, b_mask, c_mask, d_mask = classes
    to_b = 24 - a
    to_c = to_b - b
    to_d = to_c - c
    a, b = _code(a, a_mask, bits, a * 0 + 24, BOXES), _code(b, b_mask, bits, to_b, BOXES)
    c, d = _code(c, c_mask, bits, to_c, BOXES), _code(d, d_mask, bits, to_d, BOXES)
    if byte_of_rank is not None:
        a, b = _byte(byte_of_rank, a), _byte(byte_of_rank, b)
        c, d = _byte(byte_of_rank, c), _byte(byte_of_rank, d)
    return _packed(a, b, c, d)


@triton.jit
def _later(low, high, bits):
    """Of 64 bits the 32 behind ``bits``."""
    return ((low.to(tl.uint64) | (high.to(tl.uint64) << 32)) >> bits.to(tl.uint64)).to(tl.uint32)


@triton.jit
def _codes(labels, more_labels, classes, words, end, first_bit, inside, byte_of_rank, BOXES: tl.constexpr):
    """The codes of two words of eight class nibbles as four words; and behind which bit of the payload they end.

    Nibble c is class c of ``classes``.
    """
    first, first_count = _classes_of(classes, labels, 0)
    second, second_count = _classes_of(classes, labels, 4)
    third, third_count = _classes_of(classes, more_labels, 0)
    fourth, fourth_count = _classes_of(classes, more_labels, 4)
    half = (first_count + second_count).to(tl.int32)
    count = tl.where(inside, half + (third_count + fourth_count).to(tl.int32), 0)
    bit = first_bit + tl.cumsum(count, axis=0) - count
    low, high = _window(words, bit, end)
    a = _four(first, low, byte_of_rank, BOXES)
    b = _four(second, _later(low, high, first_count), byte_of_rank, BOXES)
    low, high = _window(words, bit + half, end)
    c = _four(third, low, byte_of_rank, BOXES)
    d = _four(fourth, _later(low, high, third_count), byte_of_rank, BOXES)
    return a, b, c, d, first_bit + tl.sum(count, axis=0)


@triton.jit
def _two_words(words, end, first_bit, place):
    """Words ``place`` and ``place + 1`` of a string that begins at a whole byte of the words and ends within them."""
    bit = first_bit + 32 * place
    at, shift = tl.minimum(bit >> 5, end - 2), (bit & 31).to(tl.uint64)
    first, second, third = _word(words, at), _word(words, at + 1), _word(words, tl.minimum(at + 2, end - 1))
    return ((first | (second << 32)) >> shift).to(tl.uint32), ((second | (third << 32)) >> shift).to(tl.uint32)


@triton.jit
def _picked(a, b, BYTES: tl.constexpr):
    """Four of the eight bytes of two words, by their numbers in four nibbles; Triton has no name for it."""
    if INTERPRETED:
        both, word = a.to(tl.uint64) | (b.to(tl.uint64) << 32), a * 0
        for i in tl.static_range(4):
            word |= ((both >> (8 * ((BYTES >> (4 * i)) & 7))) & 255).to(tl.uint32) << (8 * i)
        return word
    else:
        return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, BYTES], dtype=tl.uint32,
                                         is_pure=True, pack=1)  # fmt: skip


@triton.jit
def _joined(a, b, c, d):
    """Of four tensors the elements in turn."""
    return tl.join(tl.join(a, c), tl.join(b, d))


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
    for first in range(0, panels * steps * 64, 2 * _LANES):
        place = first + tl.arange(0, 2 * _LANES)
        inside = place < panels * steps * 64
        word = tl.load(words + tl.where(kind == RAW, place, 0), mask=inside, other=0).to(tl.uint32, bitcast=True)
        word = tl.where(kind == RAW, word, (word & 255) * 0x01010101) ^ 0x80808080
        column = tl.where(inside, first_n + place // (steps * 64) * PANEL + place % 64, n)
        _store_words(weight_ptr, word, column, first_step + place // 64 % steps, first_step + steps, n, row, False)


@triton.jit
def _rank_bytes(order, byte_of_rank):
    """Of a level of ranks: which byte a rank stands for. Whether its weights are in range."""
    byte, rank = tl.arange(0, 256), tl.zeros((256,), tl.int32)
    low, high = tl.load(order + byte % 16).to(tl.int32), tl.load(order + byte // 16).to(tl.int32)
    for other in range(16):
        weight = tl.load(order + other).to(tl.int32)
        for other_low in tl.static_range(16):
            both = weight + tl.load(order + other_low).to(tl.int32)
            rank += (both * 256 + other * 16 + other_low < (low + high) * 256 + byte).to(tl.int32)
    tl.store(byte_of_rank + rank, byte)
    return tl.max(low, axis=0) <= 127


@triton.jit
def _classes_of_ranks(order, classes):
    """Of a level of ranks. Whether its numbers of bits are in range."""
    label = tl.arange(0, 16)
    bits = _nibble(order + 16, label, label < 16)
    codes = 1 << bits.to(tl.int32)
    base = (tl.cumsum(codes, axis=0) - codes).to(tl.uint32)
    tl.store(classes + label, _plain_class(base, bits))
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
    tl.store(classes + label, _class(base, _ones(low) + _ones(high), mask, 4 - _ones(low)))
    return tl.max((low & (low + 1)) | (high & (high + 1)) | (mask == 255).to(tl.uint32), axis=0) == 0


@triton.jit
def _value_tables(payload, log_tables, tables):
    """Prepares the classes of level 1. Whether their numbers of bits are in range, and whether all are nibbles."""
    most, others = tl.zeros((), tl.uint32), tl.zeros((), tl.uint32)
    for first in range(0, 16 << log_tables, _CLASSES_AT_ONCE):
        place = first + tl.arange(0, _CLASSES_AT_ONCE)
        real = place < (16 << log_tables)
        its_table = payload + 16 + place // 16 * 24
        bits = _nibble(its_table + 16, place % 16, real)
        base = tl.load(its_table + place % 16, mask=real, other=0).to(tl.uint32)
        tl.store(tables + place, _plain_class(base, bits), mask=real)
        most = tl.maximum(most, tl.max(bits, axis=0))
        others |= tl.max(tl.where(real, (base ^ (place % 16 * 16).to(tl.uint32)) | (bits ^ 4), 0), axis=0)
    return most <= 7, others == 0


@triton.jit
def _symbols(words, end, first_bit, source, source_end, source_bit, classes, byte_of_rank, target, count,
             BOXES: tl.constexpr):  # fmt: skip
    """Decodes a level above the first: ``count`` bytes. Returns the bit of the payload behind its extra bits."""
    for first in range(0, count // 16, _LANES):
        place = first + tl.arange(0, _LANES)
        labels, more_labels = _two_words(source, source_end, source_bit, 2 * place)
        a, b, c, d, first_bit = _codes(labels, more_labels, classes, words, end, first_bit, place < count // 16,
                                       byte_of_rank, BOXES)  # fmt: skip
        all_four = tl.reshape(_joined(a, b, c, d), (4 * _LANES,)).to(tl.int32, bitcast=True)
        at = 4 * first + tl.arange(0, 4 * _LANES)
        tl.store(target + at, all_four, mask=at < count // 4)
    return first_bit


@triton.jit
def _weights(code, folded):
    """Four in each word."""
    unfolded = ((code >> 1) & 0x7F7F7F7F) ^ ((code & 0x01010101) * 255)
    return tl.where(folded == 1, unfolded, code ^ 0x80808080)


@triton.jit
def _values(weight_ptr, words, end, first_bit, source, source_end, source_bit, tables, log_tables, folded, panels,
            steps, first_step, first_n, n, row, WHOLE: tl.constexpr):  # fmt: skip
    """Decodes level 1. Returns the bit of the payload behind its extra bits."""
    here, column, step = tl.arange(0, _LANES), tl.arange(0, PANEL)[:, None], tl.arange(0, _STEPS)[None, :]
    for panel in range(0, panels):
        table = (panel * PANEL + here % 16 * 4) >> (7 - log_tables)
        for first in range(0, steps, _STEPS):
            place, inside = (panel * steps + first) * 32 + 2 * here, first + here // 16 < steps
            labels, more_labels = _two_words(source, source_end, source_bit, place)
            a, b, c, d, first_bit = _codes(labels, more_labels, tables + table * 16, words, end, first_bit,
                                           inside | WHOLE, None, False)  # fmt: skip
            code = tl.trans(tl.reshape(_joined(a, b, c, d), (_STEPS, PANEL)))
            _store_words(weight_ptr, _weights(code, folded), first_n + panel * PANEL + column,
                         first_step + first + step, first_step + steps, n, row, WHOLE)  # fmt: skip
    return first_bit


@triton.jit
def _nibble_codes(extra, labels):
    """Eight codes of an extra nibble, the low one, and a label each."""
    even = (extra & 0x0F0F0F0F) | ((labels << 4) & 0xF0F0F0F0)
    odd = ((extra >> 4) & 0x0F0F0F0F) | (labels & 0xF0F0F0F0)
    return _picked(even, odd, 0x5140), _picked(even, odd, 0x7362)


@triton.jit
def _nibble_step(extras, shift, labels, folded):
    """The weights of four columns in a step."""
    first, second, third = _word(extras, 0), _word(extras, 1), _word(extras, 2)
    both = tl.load(labels)
    a, b = _nibble_codes(((first | (second << 32)) >> shift).to(tl.uint32), both.to(tl.uint32))
    c, d = _nibble_codes(((second | (third << 32)) >> shift).to(tl.uint32), (both >> 32).to(tl.uint32))
    return _weights(a, folded), _weights(b, folded), _weights(c, folded), _weights(d, folded)


@triton.jit
def _store_steps(here, a, b, c, d):
    """Of a column the words of four steps."""
    words = tl.reshape(_joined(a, b, c, d), (_LANES, 4)).to(tl.int32, bitcast=True)
    tl.store(here[:, None] + tl.arange(0, 4)[None, :], words)


@triton.jit
def _nibble_values(weight_ptr, words, first_bit, source, folded, panels, steps, first_step, first_n, row):
    """Decodes level 1 where class c has the codes 16 c to 16 c + 15: a code is two nibbles.

    A thread decodes 4 steps of 4 columns.
    """
    here, shift = tl.arange(0, _LANES), (first_bit & 31).to(tl.uint64)
    column, step = here % 16 * 4, here // 16 * 4
    extras, labels = words + first_bit // 32, source.to(tl.pointer_type(tl.int64))
    for panel in range(0, panels):
        for first in range(0, steps, _LANES // 4):
            at = tl.multiple_of(tl.minimum(first + step, steps - 4), 4)
            place = (panel * steps + at) * 16 + column // 4
            first_four = _nibble_step(extras + 2 * place, shift, labels + place, folded)
            second = _nibble_step(extras + 2 * place + 32, shift, labels + place + 16, folded)
            third = _nibble_step(extras + 2 * place + 64, shift, labels + place + 32, folded)
            last = _nibble_step(extras + 2 * place + 96, shift, labels + place + 48, folded)
            to = weight_ptr + (first_n + panel * PANEL + column).to(tl.int64) * row + first_step + at
            for i in tl.static_range(4):
                _store_steps(to + i * row, first_four[i], second[i], third[i], last[i])


@triton.jit
def _size(sizes, level):
    return tl.load(sizes + level).to(tl.int32) & 0xFFFF


@triton.jit
def _coded(weight_ptr, payload, words, length, mark, panels, steps, first_step, first_n, n, row, scratch,
           WHOLE: tl.constexpr):  # fmt: skip
    """A coded block; returns whether it is sound."""
    values = panels * steps * 256
    levels, folded = tl.load(payload).to(tl.int32), tl.load(payload + 1).to(tl.int32)
    log_tables, boxes = tl.load(payload + 2).to(tl.int32), tl.load(payload + 3).to(tl.int32)
    sizes = payload.to(tl.pointer_type(tl.int16)) + 1  # of the extra bits of a level
    extras = 16 + (24 << tl.minimum(log_tables, 5)) + 24 * (levels - 1) + 8 * (_ones(boxes & 15) + ((boxes >> 4) & 1))
    classes = extras
    for number in tl.static_range(1, 7):
        classes += tl.where(number <= levels, _size(sizes, number), 0)
    sound = (levels >= 1) & (levels <= 6) & (folded <= 1) & (log_tables <= 5)
    sound &= (mark == _MARK2) | (boxes == 0)
    sound &= (boxes >> tl.minimum(tl.maximum(levels - 1, 0), 7)) == 0
    levels = tl.minimum(tl.maximum(levels, 1), 6)
    sound &= (values % (32 << levels) == 0) & (values >> levels >= 64)
    sound &= (classes + (values >> levels) + 7) // 8 * 8 == length
    if sound:
        end = length // 4
        tables = (scratch + _TABLES).to(tl.pointer_type(tl.int64))
        level_classes = (scratch + _CLASSES).to(tl.pointer_type(tl.int64))
        in_range, nibbles = _value_tables(payload, log_tables, tables)
        sound &= in_range
        tl.debug_barrier()
        source, source_end, source_bit = words, end, 8 * classes
        order, first_bit = payload + extras, 8 * extras
        for step in range(0, levels - 1):
            level = levels - step
            is_box = (boxes >> (level - 2)) & 1
            order -= 24 + 8 * is_box
            ranks, size, count = is_box == 0, _size(sizes, level), values >> (level - 1)
            if ranks:
                sound &= _rank_bytes(order, scratch + _BYTES) & _classes_of_ranks(order, level_classes)
            else:
                sound &= _classes_of_boxes(order, level_classes)
            tl.debug_barrier()
            target = scratch + tl.where(level % 2 == 0, _SYMBOLS, _MORE_SYMBOLS)
            if ranks:
                last = _symbols(words, end, first_bit, source, source_end, source_bit, level_classes, scratch + _BYTES,
                                target, count, False)  # fmt: skip
            else:
                last = _symbols(words, end, first_bit, source, source_end, source_bit, level_classes, None, target,
                                count, True)  # fmt: skip
            sound &= (last - first_bit + 7) // 8 == size
            first_bit += 8 * size
            source, source_end, source_bit = target, count // 4, source_bit * 0
            tl.debug_barrier()
        size = _size(sizes, 1)
        if nibbles & (levels > 1) & WHOLE:
            sound &= size == values // 2
            if sound:
                _nibble_values(weight_ptr.to(tl.pointer_type(tl.int32)), words, first_bit, source, folded, panels,
                               steps, first_step, first_n, row)  # fmt: skip
        else:
            last = _values(weight_ptr, words, end, first_bit, source, source_end, source_bit, tables, log_tables,
                           folded, panels, steps, first_step, first_n, n, row, WHOLE)  # fmt: skip
            sound &= (last - first_bit + 7) // 8 == size
    return sound


@triton.jit
def _checked(words_ptr, index_ptr, begin_ptr, scratch_ptr, error_ptr, stream_bytes, blocks, seed_of_matrix, program,
             RULE: tl.constexpr):  # fmt: skip
    """Compares the checksums of _CHECKED blocks."""
    block = program.to(tl.int64) * _CHECKED + tl.arange(0, _CHECKED)
    real = block < blocks
    entry, begin = _entry(index_ptr, block, real), tl.load(begin_ptr + block, mask=real, other=0)
    real &= begin + _length(entry) <= stream_bytes
    lanes = scratch_ptr + block * _SCRATCH + _LANE_STATES
    length, seed = tl.where(real, _length(entry), 0), _seed(seed_of_matrix, block, ((entry >> 16) & 255).to(tl.int64))
    found = _checksums(words_ptr, begin, length, real, seed, lanes)
    expected = tl.load(index_ptr + block * 2, mask=real, other=0).to(tl.uint32, bitcast=True)
    report(error_ptr, RULE, real & (found != expected), block)


@triton.jit
def _decode_kernel(stream_ptr, words_ptr, index_ptr, begin_ptr, weight_ptr, scratch_ptr, error_ptr, stream_bytes,
                   blocks, n, k, row, seed_of_matrix, RULE: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Checks some blocks, or decodes one."""
    checking = tl.cdiv(blocks, _CHECKED)
    if tl.program_id(0) < checking:
        _checked(words_ptr, index_ptr, begin_ptr, scratch_ptr, error_ptr, stream_bytes, blocks, seed_of_matrix,
                 tl.program_id(0), RULE)  # fmt: skip
    else:
        _decoded(stream_ptr, words_ptr, index_ptr, begin_ptr, weight_ptr, scratch_ptr, error_ptr, stream_bytes, blocks,
                 n, k, row, tl.program_id(0) - checking, RULE, WHOLE)  # fmt: skip


@triton.jit
def _decoded(stream_ptr, words_ptr, index_ptr, begin_ptr, weight_ptr, scratch_ptr, error_ptr, stream_bytes, blocks, n,
             k, row, number, RULE: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """One block."""
    block = number.to(tl.int64)
    k_blocks = tl.cdiv(k, BLOCK_K)
    first_step, first_n = (number % k_blocks) * (BLOCK_K // 4), (number // k_blocks) * BLOCK_N
    steps = tl.minimum(tl.cdiv(k, 4) - first_step, BLOCK_K // 4)
    panels = tl.cdiv(tl.minimum(n - first_n, BLOCK_N), PANEL)
    values = panels * steps * 256
    entry = _entry(index_ptr, block, True)
    length, kind, mark = _length(entry), (entry >> 16) & 255, (entry >> 24) & 255
    begin = tl.load(begin_ptr + block)
    sound = ((mark == _MARK1) | (mark == _MARK2)) & (kind <= CODED) & (tl.load(begin_ptr + blocks) == stream_bytes)
    sound &= (begin + length <= stream_bytes) & ((kind != RAW) | (length == values))
    sound &= ((kind != CONSTANT) | (length == 8)) & ((kind != CODED) | ((length >= 16) & (length <= values)))
    payload, words, scratch = stream_ptr + begin, words_ptr + begin // 4, scratch_ptr + block * _SCRATCH
    if sound:
        for first in range(0, length // 4, _FETCHED * 8):  # levels come one after the other
            fetch(words + tl.minimum(first + tl.arange(0, _FETCHED) * 8, length // 4 - 1))
        if kind == CODED:
            sound &= _coded(weight_ptr, payload, words, length, mark, panels, steps, first_step, first_n, n, row,
                            scratch, WHOLE)  # fmt: skip
        else:
            _plain(weight_ptr, words, kind, panels, steps, first_step, first_n, n, row)
    one = tl.arange(0, 1)
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
    words, index = stream[: stream.numel() // 4 * 4].view(torch.int32), index.view(torch.int32)
    launch(_begins_kernel, 1, index, begin, blocks, BLOCK=_ENTRIES)
    target = weight.view(torch.int32) if k % 4 == 0 else weight
    launch(_decode_kernel, blocks + ceil_divide(blocks, _CHECKED.value), stream, words, index, begin, target, scratch,
           _device_errors.word(stream.device), stream.numel(), blocks, n, k, target.shape[1], _seed_of_matrix(k, n),
           RULE=_BLOCK, WHOLE=k % (4 * _STEPS.value) == 0 and n % PANEL.value == 0, num_warps=_WARPS,
           maxnreg=_REGISTERS)  # fmt: skip
    return weight


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, from an address on that words may have."""
    tensor = tensor.view(torch.uint8)
    return tensor.clone() if tensor.storage_offset() % 8 else tensor


@takes(Arguments)
def compressed_matmul(a: Arguments) -> torch.Tensor:
    """See ``anynpu.compressed_matmul``; a weight that is damaged or foreign is told by ``check_device_errors``."""
    m, n = output_shape(a)
    y = a.x.new_empty((m, n), dtype=a.output_dtype)
    if y.numel() == 0:
        return y
    scale = a.scale.reshape(-1)
    words = scale.view(torch.int32 if scale.dtype == torch.float32 else torch.int64)
    if a.scale_19_bits:
        words = words & ~0x1FFF
    scale = words.view(torch.float32) if scale.dtype == torch.float32 else words
    weight = decompress(a.stream, a.index, n, a.x.shape[1])
    bias = None if a.bias is None else a.bias.reshape(-1)
    multiply(
        a.x.unsqueeze(0), weight.t().unsqueeze(0), y, scale, pertoken_scale=a.pertoken_scale, bias=bias, rule=_BIAS
    )
    return y
