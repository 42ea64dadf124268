# SPDX-License-Identifier: Apache-2.0
"""weight_quant_matmul of few rows of x on CUDA: words of integers stay with the threads whose operand they are."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu._triton import INTERPRETED, dot, encoded_scale, fetch, start_next, wait_for_previous
from anynpu.ops.weight_quant_matmul.ending import finish_or_keep

MOST_ROWS = 16  # that this kernel is faster with than others
LEAST_STEPS = 2  # of a part of K: the second is loaded while the first is multiplied
_MOST_WARPS = 16  # of a program of up to 8 rows, which then are alone on a processor
MAGIC_OF_BYTES = {torch.float16: 0x64806480, torch.bfloat16: 0x43004300}  # as MAGIC, plus 128 where there is room


@triton.jit
def _pairs(bits, magic, BITS: tl.constexpr, dtype: tl.constexpr):
    """The signed integers in the low BITS of both halves of int32, as floats [..., 2]. ``magic`` is MAGIC of both.

    Each is set behind a power of two whose last place is 1, and that subtracted again. bfloat16 has no room for eight
    bits: there the sign is a bit of the exponent of what is subtracted.
    """
    if dtype == tl.float16:
        if BITS == 4:
            return _halves((bits & 0x000F000F) ^ magic, dtype) - 1032.0
        return _halves((bits & 0x00FF00FF) ^ magic, dtype) - 1152.0
    elif BITS == 4:
        value = _halves((bits & 0x000F000F) ^ magic, dtype)
        return (value.to(tl.float32) - 136.0).to(dtype) if INTERPRETED else value - 136.0
    else:
        value, power = _halves((bits & 0x007F007F) | magic, dtype), _halves((bits & 0x00800080) | magic, dtype)
        return (value.to(tl.float32) - power.to(tl.float32)).to(dtype) if INTERPRETED else value - power


@triton.jit
def _halves(bits, dtype: tl.constexpr):
    """The lower and upper 16 bits of int32 as floats [..., 2]."""
    low, high = bits.to(tl.int16), (bits >> 16).to(tl.int16)
    return tl.join(low.to(dtype, bitcast=True), high.to(dtype, bitcast=True))


# The tensor cores want the weights of lane 4 g + t of a warp: those of every eighth column from g on, and of the k that
# begin at 4 t in each 16. Columns and k are put in an order in which a lane's weights are words side by side. Tensors
# that are loaded have two axes. The last is what a thread loads at once; Triton gives the first to the lanes, then to
# the warps, a piece each, and what is left to the threads again, so that what is loaded stays in its thread. (Of more
# axes that are as contiguous as each other Triton 3.6 takes the first before the last, 3.7 the last before the first.)


@triton.jit
def _lines(COUNT: tl.constexpr, PIECES: tl.constexpr):
    """(t, g, piece, which of the COUNT of its thread) of each line, [COUNT * PIECES * 32, 1]."""
    line = tl.arange(0, COUNT * PIECES * 32)[:, None]
    return line % 4, line // 4 % 8, line // 32 % PIECES, line // (32 * PIECES)


@triton.jit
def _words_along_k(words, first_k, first_column, K, N, words_k, words_column, WHOLE: tl.constexpr, FULL: tl.constexpr,
                   VALUES: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Words [BN / 8 lines, PIECE / VALUES / 4]."""
    WORDS: tl.constexpr = PIECE // VALUES // 4
    t, g, piece, number = _lines(BN // 8, PIECES)
    column, word = BN // 8 * g + number, WORDS * (4 * piece + t) + tl.arange(0, WORDS)[None, :]
    # Beyond the edges the last words stand in: x is 0 there, or the column is not stored.
    if not FULL:
        column = tl.minimum(column, N - 1 - first_column)
    if not WHOLE:
        word = tl.minimum(word, (K - first_k) // VALUES - 1)
    wide = tl.zeros((), tl.int64)
    here = words + (wide + first_k // VALUES) * words_k + (wide + first_column) * words_column
    return tl.load(here + (word * words_k + column * words_column))


@triton.jit
def _fetch_words(words, first_k, first_column, K, N, row_words, words_k, words_column, VALUES: tl.constexpr,
                 ALONG_K: tl.constexpr, BN: tl.constexpr, STEP: tl.constexpr):  # fmt: skip
    """Asks for the words of STEP k of BN columns, a pointer for each eight of them side by side."""
    wide = tl.zeros((), tl.int64)
    if ALONG_K:
        word = tl.minimum(first_k // VALUES + 8 * tl.arange(0, STEP // VALUES // 8), K // VALUES - 1)[None, :]
        column = tl.minimum(first_column + tl.arange(0, BN), N - 1)[:, None]
        fetch(words + (wide + word) * words_k + (wide + column) * words_column)
    else:
        k = tl.minimum(first_k + tl.arange(0, STEP), K - 1)[:, None]
        word = first_column // VALUES + 8 * tl.arange(0, max(1, BN // VALUES // 8))
        word = tl.minimum(word, row_words - 1)[None, :]
        fetch(words + (wide + k) * words_k + (wide + word) * words_column)


@triton.jit
def _integers_along_k(word, magic, BITS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, BN: tl.constexpr,
                      dtype: tl.constexpr):  # fmt: skip
    """Integers [PIECES, BN, PIECE] of _words_along_k; the order of k is that of _x_along_k."""
    VALUES: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = PIECE // VALUES // 4
    pairs = _pairs(word[:, :, None] >> (BITS * tl.arange(0, VALUES // 2)), magic, BITS, dtype)
    pairs = tl.reshape(pairs, (BN // 8, PIECES, 8, 4, WORDS, VALUES // 4, 2, 2))
    return tl.reshape(tl.permute(pairs, (1, 0, 2, 4, 5, 3, 6, 7)), (PIECES, BN, PIECE))


@triton.jit
def _x_along_k(x, first_k, M, K, x_row, x_k, WHOLE: tl.constexpr, VALUES: tl.constexpr, BM: tl.constexpr,
               PIECE: tl.constexpr, PIECES: tl.constexpr):  # fmt: skip
    """x [words x BM / 8 lines, VALUES]; rows beyond M are the last."""
    WORDS: tl.constexpr = PIECE // VALUES // 4
    t, g, piece, number = _lines(WORDS * (BM // 8), PIECES)
    k = VALUES * (WORDS * t + number // (BM // 8)) + PIECE * piece + tl.arange(0, VALUES)[None, :]
    return _rows_of_x(x, g + 8 * (number % (BM // 8)), first_k, k, M, K, x_row, x_k, WHOLE)


@triton.jit
def _rows_of_x(x, row, first_k, k, M, K, x_row, x_k, WHOLE: tl.constexpr):
    here = x + (tl.zeros((), tl.int64) + first_k) * x_k
    here += tl.minimum(row, M - 1) * x_row + k * x_k
    return tl.load(here) if WHOLE else tl.load(here, mask=first_k + k < K, other=0.0)


@triton.jit
def _words_along_n(words, first_k, first_word, K, row_words, words_k, words_column, WHOLE: tl.constexpr,
                   FULL: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, BW: tl.constexpr):  # fmt: skip
    """Words [PIECE / 8 lines, BW / 8], those of even k and those of odd k."""
    t, g, piece, number = _lines(PIECE // 8, PIECES)
    k, word = 4 * t + PIECE * piece + 16 * (number // 2) + number % 2 * 2, BW // 8 * g + tl.arange(0, BW // 8)[None, :]
    wide = tl.zeros((), tl.int64)
    here = words + (wide + first_k) * words_k + (wide + first_word) * words_column
    # Beyond the edges the last words stand in: x is 0 there, or the column is not stored.
    if not FULL:
        word = tl.minimum(word, row_words - 1 - first_word)
    if WHOLE:
        here += k * words_k + word * words_column
        return tl.load(here), tl.load(here + words_k)
    last = K - 1 - first_k
    here += word * words_column
    return tl.load(here + tl.minimum(k, last) * words_k), tl.load(here + tl.minimum(k + 1, last) * words_k)


@triton.jit
def _integers_along_n(even, odd, magic, BITS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
                      BW: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """Integers [PIECES, columns, PIECE] of _words_along_n.

    Two k of a column share a register of the tensor cores: their words are mixed before they are taken apart.
    """
    mixed = tl.join((even & 0xFFFF) | (odd << 16), ((even >> 16) & 0xFFFF) | (odd & -65536))
    pairs = _pairs(mixed[:, :, :, None] >> (BITS * tl.arange(0, 16 // BITS)), magic, BITS, dtype)
    pairs = tl.reshape(pairs, (PIECE // 16, 2, PIECES, 8, 4, BW // 8, 2, 16 // BITS, 2))
    return tl.reshape(tl.permute(pairs, (2, 7, 5, 6, 3, 0, 4, 1, 8)), (PIECES, 32 // BITS * BW, PIECE))


@triton.jit
def _x_along_n(x, first_k, M, K, x_row, x_k, WHOLE: tl.constexpr, BM: tl.constexpr, PIECE: tl.constexpr,
               PIECES: tl.constexpr):  # fmt: skip
    """x [PIECE / 16 x BM / 8 lines, 4]; rows beyond M are the last."""
    t, g, piece, number = _lines(PIECE // 16 * (BM // 8), PIECES)
    k = 4 * t + PIECE * piece + 16 * (number // (BM // 8)) + tl.arange(0, 4)[None, :]
    return _rows_of_x(x, g + 8 * (number % (BM // 8)), first_k, k, M, K, x_row, x_k, WHOLE)


@triton.jit
def _column_order(VALUES: tl.constexpr, ALONG_K: tl.constexpr, BN: tl.constexpr):
    """Which column each row of the integers [PIECES, BN, PIECE] is: a lane has BN / 8 columns side by side."""
    order = tl.arange(0, BN)
    within = order // 8
    if not ALONG_K:  # (value of a half, word, half)
        words: tl.constexpr = BN // (8 * VALUES)
        within = within // 2 % words * VALUES + within % 2 * (VALUES // 2) + within // (2 * words)
    return order % 8 * (BN // 8) + within


@triton.jit
def _factors_of_pieces(ptr, first_k, first_column, N, K, group_stride, column_stride, GROUP: tl.constexpr,
                       FULL: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Scales or offsets [lines, columns side by side]; all t have the same."""
    SIDE_BY_SIDE: tl.constexpr = min(BN // 8, 8)
    _, g, piece, number = _lines(BN // 8 // SIDE_BY_SIDE, PIECES)
    column = BN // 8 * g + SIDE_BY_SIDE * number + tl.arange(0, SIDE_BY_SIDE)[None, :]
    if not FULL:
        column = tl.minimum(column, N - 1 - first_column)
    if GROUP > 0:  # beyond K any group will do
        group = tl.minimum(first_k + PIECE * piece, K - 1) // GROUP
        ptr += group.to(tl.int64) * group_stride
    return tl.load(ptr + (first_column + column) * column_stride)


@triton.jit
def _for_all_rows(values, VALUES: tl.constexpr, ALONG_K: tl.constexpr, BM: tl.constexpr, PIECES: tl.constexpr,
                  BN: tl.constexpr):  # fmt: skip
    """_factors_of_pieces as float32 [PIECES, BN, BM]; an int64 scale holds one in its low half."""
    SIDE_BY_SIDE: tl.constexpr = min(BN // 8, 8)
    values = encoded_scale(values) if values.dtype == tl.int64 else values.to(tl.float32)
    values = tl.reshape(values, (BN // 8 // SIDE_BY_SIDE, PIECES, 8, 4, SIDE_BY_SIDE))
    values = tl.permute(values, (1, 2, 3, 0, 4))
    if ALONG_K:
        values = tl.permute(tl.reshape(values, (PIECES, 8, 4, BN // 8)), (0, 3, 1, 2))
    else:
        values = tl.reshape(values, (PIECES, 8, 4, BN // (8 * VALUES), 2, VALUES // 2))
        values = tl.permute(values, (0, 5, 3, 4, 1, 2))
    values = tl.reshape(values, (PIECES, BN, 1, 4, 1))
    return tl.reshape(tl.broadcast_to(values, (PIECES, BN, BM // 8, 4, 2)), (PIECES, BN, BM))


@triton.jit
def _load_step(step, x, words, scale_ptr, offset_ptr, first_column, M, N, row_words, K, x_row, x_k, words_k,
               words_column, scale_group, scale_column, offset_group, offset_column, VALUES: tl.constexpr,
               GROUP: tl.constexpr, ALONG_K: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr,
               OFFSET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PIECES: tl.constexpr,
               PIECE: tl.constexpr):  # fmt: skip
    """(words, words of odd k, x, scales, offsets) of a step; numbers of 16 bits in pairs."""
    first_k = step * (PIECES * PIECE)
    if ALONG_K:
        word = _words_along_k(words, first_k, first_column, K, N, words_k, words_column, WHOLE, FULL, VALUES, PIECE,
                              PIECES, BN)  # fmt: skip
        odd = word
        rows = _x_along_k(x, first_k, M, K, x_row, x_k, WHOLE, VALUES, BM, PIECE, PIECES)
    else:
        word, odd = _words_along_n(words, first_k, first_column // VALUES, K, row_words, words_k, words_column, WHOLE,
                                   FULL, PIECE, PIECES, BN // VALUES)  # fmt: skip
        rows = _x_along_n(x, first_k, M, K, x_row, x_k, WHOLE, BM, PIECE, PIECES)
    scales = _factors_of_pieces(scale_ptr, first_k, first_column, N, K, scale_group, scale_column, GROUP, FULL, PIECE,
                                PIECES, BN)  # fmt: skip
    offsets = scales
    if OFFSET:
        offsets = _factors_of_pieces(offset_ptr, first_k, first_column, N, K, offset_group, offset_column, GROUP, FULL,
                                     PIECE, PIECES, BN)  # fmt: skip
    return word, odd, rows, scales, offsets


@triton.jit
def _products_of_step(words, odd, rows, scales, offsets, magic, BITS: tl.constexpr, ALONG_K: tl.constexpr,
                      OFFSET: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PIECES: tl.constexpr,
                      PIECE: tl.constexpr):  # fmt: skip
    """What _load_step has loaded, multiplied: float32 [PIECES, BN, BM]."""
    VALUES: tl.constexpr = 32 // BITS
    if ALONG_K:
        a = _integers_along_k(words, magic, BITS, PIECE, PIECES, BN, rows.dtype)
        b = tl.reshape(rows, (PIECE // VALUES // 4, BM // 8, PIECES, 8, 4, 2, VALUES // 4, 2))
        b = tl.reshape(tl.permute(b, (2, 0, 6, 4, 7, 5, 1, 3)), (PIECES, PIECE, BM))
    else:
        a = _integers_along_n(words, odd, magic, BITS, PIECE, PIECES, BN // VALUES, rows.dtype)
        b = tl.reshape(rows, (PIECE // 16, BM // 8, PIECES, 8, 4, 4))
        b = tl.reshape(tl.permute(b, (2, 0, 4, 5, 1, 3)), (PIECES, PIECE, BM))
    products = dot(a, b, tl.zeros((PIECES, BN, BM), tl.float32))
    if OFFSET:
        row_sums = tl.sum(b.to(tl.float32), axis=1)[:, None, :]
        products += _for_all_rows(offsets, VALUES, ALONG_K, BM, PIECES, BN) * row_sums
    return products * _for_all_rows(scales, VALUES, ALONG_K, BM, PIECES, BN)


@triton.jit(do_not_specialize=["M", "count", "steps", "parts"])
def matmul_kernel(x_ptr, words_ptr, scale_ptr, offset_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr,
                  parts_ptr, M, N, row_words, K, count, steps, parts, magic, x_batch, x_row, x_k, words_batch, words_k,
                  words_column, scale_group, scale_column, offset_group, offset_column, bias_stride,
                  quant_scale_stride, quant_offset_stride, BITS: tl.constexpr, GROUP: tl.constexpr,
                  ALONG_K: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, OFFSET: tl.constexpr,
                  BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr, PARTED: tl.constexpr,
                  OVERLAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr,
                  num_stages: tl.constexpr):  # fmt: skip
    """All M <= BM rows of BN columns of y out of words, or PARTED their sums over a part of K; computed transposed.

    A part has ``steps`` steps of PIECES pieces of K, which the warps share out: each takes words for itself. Those of
    ``num_stages`` - 1 steps are on their way to shared memory meanwhile. GROUP: k of a group of scales, 0 without
    groups; no piece is in two. WHOLE: no step goes beyond K, FULL: no tile beyond N.
    """
    VALUES: tl.constexpr = 32 // BITS
    tile, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    batch, first_column = (tile // tl.cdiv(N, BN)).to(tl.int64), tile % tl.cdiv(N, BN) * BN
    x, words = x_ptr + batch * x_batch, words_ptr + batch * words_batch
    begin = part * steps
    end = tl.minimum(begin + steps, tl.cdiv(K, PIECES * PIECE))
    start_next(OVERLAP)
    if OVERLAP:
        for step in tl.static_range(num_stages - 1):
            _fetch_words(words, (begin + step) * PIECES * PIECE, first_column, K, N, row_words, words_k, words_column,
                         VALUES, ALONG_K, BN, PIECES * PIECE)  # fmt: skip
    wait_for_previous(OVERLAP)
    sums = tl.zeros((PIECES, BN, BM), tl.float32)
    for step in tl.range(begin, end, num_stages=num_stages):
        word, odd, rows, scales, offsets = _load_step(
            step, x, words, scale_ptr, offset_ptr, first_column, M, N, row_words, K, x_row, x_k, words_k, words_column,
            scale_group, scale_column, offset_group, offset_column, VALUES, GROUP, ALONG_K, WHOLE, FULL, OFFSET, BM,
            BN, PIECES, PIECE,
        )  # fmt: skip
        sums += _products_of_step(word, odd, rows, scales, offsets, magic, BITS, ALONG_K, OFFSET, BM, BN, PIECES,
                                  PIECE)  # fmt: skip
    row, column = tl.arange(0, BM)[None, :], (first_column + _column_order(VALUES, ALONG_K, BN))[:, None]
    finish_or_keep(y_ptr, parts_ptr, (batch * M + row) * N + column, part, count, tl.sum(sums, axis=0), column,
                   (row < M) & (column < N), bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride,
                   quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET, PARTED)  # fmt: skip


def times_as_many_warps(block: dict[str, int], parts: int) -> int:
    """How many of the parts of K the warps of one program take, which spares adding them up in another kernel."""
    most = _MOST_WARPS // block["num_warps"] if block["BM"] == 8 else 1
    return 1 << min(parts, most).bit_length() - 1
