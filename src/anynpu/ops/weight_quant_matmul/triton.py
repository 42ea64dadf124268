# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of weight_quant_matmul and weight_quant_prepack.

Integers go into the tensor cores as they are: int4 and int8 are exact in float16 and bfloat16, so products lose
nothing, and scale and offset are applied to the float32 sums of each group. Scaling the weights first would round each.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import (
    HOPPER,
    INTERPRETED,
    capability,
    ceil_divide,
    dot,
    int4_to,
    launch,
    nibbles,
    overlapping,
    report,
    tile,
    with_close_rows,
)
from anynpu.ops.weight_quant_matmul import few_rows, hopper, spec
from anynpu.ops.weight_quant_matmul.ending import MAGIC, add_parts_kernel, factors_of, finish_or_keep, own_tile

_HEADER = _device_errors.new_rule(
    spec.MATMUL, "the header of a prepacked weight", "must be what weight_quant_prepack writes for this K and N"
)
_CONFIGURATIONS = Path(__file__).with_name("triton_configurations.json")
_LEAST_STEPS = 4  # of a part of K: shorter ones cost more than they save
_SUM_BLOCK = 1024  # numbers that a program adds up
_PACK_BLOCK = 1024  # bytes that a program packs
_UNPACK_K = 128  # k of a cell's columns that a program unpacks

# How a weight is stored: plain int8; int32 words of eight int4 along N or along K; formats w4p32 and w8p32; as x is.
INT8, WORDS_N, WORDS_K, CELLS4, CELLS8, FLOATS = (tl.constexpr(number) for number in range(6))


@triton.jit
def _cells(blob, first_k, first_column, K, N, BITS: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    """Integers [BK, BN] of format w4p32 (only their low four bits count) or w8p32."""
    k, column = (first_k + tl.arange(0, BK))[:, None], (first_column + tl.arange(0, BN))[None, :]
    cell = (column // 32).to(tl.int64) * tl.cdiv(K, 4) + k // 4
    inside = (k < K) & (column < N)
    if BITS == 8:
        return tl.load(blob + (64 + cell * 128 + column % 32 * 4 + k % 4), mask=inside, other=128).to(tl.int32) - 128
    else:
        byte = tl.load(blob + (64 + cell * 64 + column % 16 * 4 + k % 4), mask=inside, other=0x88).to(tl.int32)
        return (byte >> (column % 32 // 16 * 4)) ^ 8


@triton.jit
def _weight_tile(weight, first_k, first_column, K, N, k_stride, column_stride, STORED: tl.constexpr,
                 WHOLE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """Values [BK, BN] as dtype; the strides are those of the stored elements."""
    if STORED == WORDS_N:
        return int4_to(
            nibbles(weight, first_k, first_column, K, N, k_stride, column_stride, False, WHOLE, BK, BN), dtype
        )
    elif STORED == WORDS_K:
        return int4_to(
            nibbles(weight, first_k, first_column, K, N, k_stride, column_stride, True, WHOLE, BK, BN), dtype
        )
    elif STORED == CELLS4:
        return int4_to(_cells(weight, first_k, first_column, K, N, 4, BK, BN), dtype)
    elif STORED == CELLS8:
        return _cells(weight, first_k, first_column, K, N, 8, BK, BN).to(tl.float32).to(dtype)
    else:
        values = tile(weight, first_k, first_column, K, N, k_stride, column_stride, WHOLE, False, BK, BN)
        return values if STORED == FLOATS else values.to(tl.float32).to(dtype)


@triton.jit
def _header_byte(place, K, N, BITS: tl.constexpr):
    """Byte ``place`` of the header of format w4p32 or w8p32."""
    magic: tl.constexpr = 0x3370347755504E41 if BITS == 4 else 0x3370387755504E41  # ANPUw4p3, ANPUw8p3
    field = place // 8
    word = tl.where(field == 0, magic, tl.where(field == 1, (BITS << 32) + 1, 0))
    word = tl.where(field == 2, K, tl.where(field == 3, N, word))
    return (word >> (8 * (place % 8))) & 255


@triton.jit
def _check_header(blob, K, N, error_ptr, RULE: tl.constexpr, BITS: tl.constexpr):
    if tl.program_id(0) == 0:
        place = tl.arange(0, 32)
        report(error_ptr, RULE, tl.load(blob + place).to(tl.int64) != _header_byte(place, K, N, BITS), place)


@triton.jit
def scaled_sums(x, weight, scale_ptr, offset_ptr, first_row, end_row, first_column, N, first_k, end_k, K, group_size,
                x_row, x_k, weight_k, weight_column, scale_group, scale_column, offset_group, offset_column,
                STORED: tl.constexpr, WHOLE: tl.constexpr, GROUPS: tl.constexpr, OFFSET: tl.constexpr, BM: tl.constexpr,
                BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """float32 [BM, BN]: the products of k in [first_k, end_k), scaled. BK divides first_k, group_size and (WHOLE) K."""
    column = first_column + tl.arange(0, BN)
    sums, row_sums = tl.zeros((BM, BN), tl.float32), tl.zeros((BM,), tl.float32)
    for step in range(0, tl.cdiv(end_k - first_k, BK)):
        k = first_k + step * BK
        a = tile(x, first_row, k, end_row, K, x_row, x_k, False, WHOLE, BM, BK)
        b = _weight_tile(weight, k, first_column, K, N, weight_k, weight_column, STORED, WHOLE, BK, BN, a.dtype)
        if OFFSET:
            step_row_sums = tl.sum(a.to(tl.float32), axis=1)
        if GROUPS:
            group = k // group_size
            products = dot(a, b, tl.zeros((BM, BN), tl.float32))
            if OFFSET:
                offsets = factors_of(offset_ptr, group, column, N, offset_group, offset_column)
                products += step_row_sums[:, None] * offsets[None, :]
            sums += products * factors_of(scale_ptr, group, column, N, scale_group, scale_column)[None, :]
        else:
            sums = dot(a, b, sums)
            if OFFSET:
                row_sums += step_row_sums
    if not GROUPS:
        if OFFSET:
            sums += row_sums[:, None] * factors_of(offset_ptr, 0, column, N, offset_group, offset_column)[None, :]
        if STORED != FLOATS:
            sums *= factors_of(scale_ptr, 0, column, N, scale_group, scale_column)[None, :]
    return sums


@triton.jit(do_not_specialize=["M", "count", "parts"])
def _matmul_kernel(x_ptr, weight_ptr, scale_ptr, offset_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr,
                   parts_ptr, error_ptr, M, N, K, count, group_size, part_k, parts, x_batch, x_row, x_k, weight_batch,
                   weight_k, weight_column, scale_group, scale_column, offset_group, offset_column, bias_stride,
                   quant_scale_stride, quant_offset_stride, RULE: tl.constexpr, STORED: tl.constexpr,
                   WHOLE: tl.constexpr, GROUPS: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
                   QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr, PARTED: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """One tile of y, or PARTED its sums over a part of K. BK divides part_k, group_size and (WHOLE) K."""
    batch, part, first_row, first_column = own_tile(M, N, parts, BM, BN)
    row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
    x, weight = x_ptr + batch * x_batch, weight_ptr + batch * weight_batch
    if STORED == CELLS4 or STORED == CELLS8:
        _check_header(weight, K, N, error_ptr, RULE, 4 if STORED == CELLS4 else 8)
    sums = scaled_sums(x, weight, scale_ptr, offset_ptr, first_row, M, first_column, N, part * part_k,
                       tl.minimum(K, (part + 1) * part_k), K, group_size, x_row, x_k, weight_k, weight_column,
                       scale_group, scale_column, offset_group, offset_column, STORED, WHOLE, GROUPS, OFFSET, BM, BN,
                       BK)  # fmt: skip
    inside = (row < M)[:, None] & (column < N)[None, :]
    place = (batch * M + row)[:, None] * N + column[None, :]
    finish_or_keep(y_ptr, parts_ptr, place, part, count, sums, column[None, :], inside, bias_ptr, quant_scale_ptr,
                   quant_offset_ptr, bias_stride, quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET,
                   PARTED)  # fmt: skip


@triton.jit
def _int4_of_halves(bits, dtype: tl.constexpr):
    """The signed int4 that sit behind the power of two of MAGIC in the low 16 bits, as floats."""
    value = bits.to(tl.int16).to(dtype, bitcast=True)
    if dtype == tl.float16:
        return value - 1032.0
    return (value.to(tl.float32) - 136.0).to(dtype) if INTERPRETED else value - 136.0


@triton.jit
def _transposed_words(words, first_k, first_word, K, row_words, k_stride, word_stride, magic, WHOLE: tl.constexpr,
                      BK: tl.constexpr, BW: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """int4 [8 BW, BK] out of words along N, for the left side of a dot: the rows are columns in the order of _columns.

    The order of k and of the rows is that of the tensor cores' operand, so that words go straight to the threads that
    need them, and are taken apart there, two k at once.
    """
    wide = tl.zeros((), tl.int64)
    here = words + (wide + first_k) * k_stride + (wide + first_word) * word_stride
    # Beyond the edges the last words stand in: x is 0 there, or the column is not stored.
    last_k, last_word = K - 1 - first_k, row_words - 1 - first_word
    word = tl.minimum(tl.arange(0, BW), last_word)[None, :, None, None] * word_stride
    k = 2 * tl.arange(0, 4)[:, None, None, None] + 8 * tl.arange(0, BK // 8)[None, None, :, None]
    if WHOLE:
        even = tl.load(here + (k * k_stride + word))
        odd = tl.load(here + k_stride + (k * k_stride + word))
    else:
        even = tl.load(here + (tl.minimum(k, last_k) * k_stride + word))
        odd = tl.load(here + (tl.minimum(k + 1, last_k) * k_stride + word))
    low, high = (even & 0xFFFF) | (odd << 16), ((even >> 16) & 0xFFFF) | (odd & -65536)
    pairs = tl.reshape(tl.join(low, high), (4, BW // 8, 8, BK // 8, 2, 1))
    pairs = pairs >> tl.reshape(4 * tl.arange(0, 4), (1, 1, 1, 1, 1, 4))
    pairs = (pairs & 0x000F000F) ^ magic
    values = tl.join(_int4_of_halves(pairs, dtype), _int4_of_halves(pairs >> 16, dtype))
    return tl.reshape(tl.permute(values, (5, 1, 4, 2, 3, 0, 6)), (8 * BW, BK))


@triton.jit
def _transposed_words_of_k(words, first_k, first_column, K, N, k_stride, column_stride, magic, WHOLE: tl.constexpr,
                           BK: tl.constexpr, BN: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """int4 [BN, BK] out of words along K, for the left side of a dot: the eight k of a word stay with a thread."""
    wide = tl.zeros((), tl.int64)
    here = words + (wide + first_k // 8) * k_stride + (wide + first_column) * column_stride
    # Beyond the edges the last words stand in: x is 0 there, or the column is not stored.
    column, k = tl.minimum(tl.arange(0, BN), N - 1 - first_column)[:, None], tl.arange(0, BK // 8)[None, :]
    if not WHOLE:
        k = tl.minimum(k, (K - first_k) // 8 - 1)
    word = tl.load(here + (k * k_stride + column * column_stride))
    two = tl.join(word, word >> 4)
    pairs = (tl.join(two, two >> 8) & 0x000F000F) ^ magic
    values = tl.join(_int4_of_halves(pairs, dtype), _int4_of_halves(pairs >> 16, dtype))
    return tl.reshape(tl.permute(values, (0, 1, 4, 3, 2)), (BN, BK))


@triton.jit
def _columns(BW: tl.constexpr):
    """Which column each row of _transposed_words is."""
    column = tl.reshape(tl.arange(0, 8 * BW), (BW // 8, 8, 2, 4))
    return tl.reshape(tl.permute(column, (3, 0, 2, 1)), (8 * BW,))


@triton.jit
def _in_order(sums, BW: tl.constexpr, BM: tl.constexpr):
    """Sums [8 BW, BM] whose rows are those of _transposed_words as [BM, columns]."""
    sums = tl.permute(tl.reshape(sums, (4, BW // 8, 2, 8, BM)), (1, 3, 2, 0, 4))
    return tl.trans(tl.reshape(sums, (8 * BW, BM)))


@triton.jit(do_not_specialize=["M", "count", "parts"])
def _words_kernel(x_ptr, words_ptr, scale_ptr, offset_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr,
                  parts_ptr, M, N, row_words, K, count, group_size, part_k, parts, magic, x_batch, x_row, x_k,
                  words_batch, words_k, words_column, scale_group, scale_column, offset_group, offset_column,
                  bias_stride, quant_scale_stride, quant_offset_stride, WHOLE: tl.constexpr, GROUPS: tl.constexpr,
                  OFFSET: tl.constexpr, BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr,
                  PARTED: tl.constexpr, ALONG_K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  BK: tl.constexpr):  # fmt: skip
    """As _matmul_kernel for int4 words and 16-bit x; computes tiles of y transposed.

    ``magic`` is MAGIC of x, an argument for the reason told at _field.
    """
    BW: tl.constexpr = BN // 8
    batch, part, first_row, first_column = own_tile(M, N, parts, BM, BN)
    x, words = x_ptr + batch * x_batch, words_ptr + batch * words_batch
    shuffled = first_column + (tl.arange(0, BN) if ALONG_K else _columns(BW))
    sums, row_sums = tl.zeros((BN, BM), tl.float32), tl.zeros((BM,), tl.float32)
    for step in range(0, tl.cdiv(tl.minimum(part_k, K - part * part_k), BK)):
        first_k = part * part_k + step * BK
        b = tile(x, first_k, first_row, K, M, x_k, x_row, WHOLE, False, BK, BM)
        if ALONG_K:
            a = _transposed_words_of_k(words, first_k, first_column, K, N, words_k, words_column, magic, WHOLE, BK, BN,
                                       b.dtype)  # fmt: skip
        else:
            a = _transposed_words(words, first_k, first_column // 8, K, row_words, words_k, words_column, magic, WHOLE,
                                  BK, BW, b.dtype)  # fmt: skip
        if OFFSET:
            step_row_sums = tl.sum(b.to(tl.float32), axis=0)
        if GROUPS:
            group = first_k // group_size
            scales = factors_of(scale_ptr, group, shuffled, N, scale_group, scale_column)
            products = dot(a, b, tl.zeros((BN, BM), tl.float32))
            if OFFSET:
                offsets = factors_of(offset_ptr, group, shuffled, N, offset_group, offset_column)
                products += offsets[:, None] * step_row_sums[None, :]
            sums += products * scales[:, None]
        else:
            sums = dot(a, b, sums)
            if OFFSET:
                row_sums += step_row_sums
    if not GROUPS:
        if OFFSET:
            sums += factors_of(offset_ptr, 0, shuffled, N, offset_group, offset_column)[:, None] * row_sums[None, :]
        sums *= factors_of(scale_ptr, 0, shuffled, N, scale_group, scale_column)[:, None]
    value = tl.trans(sums) if ALONG_K else _in_order(sums, BW, BM)
    row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
    inside = (row < M)[:, None] & (column < N)[None, :]
    place = (batch * M + row)[:, None] * N + column[None, :]
    finish_or_keep(y_ptr, parts_ptr, place, part, count, value, column[None, :], inside, bias_ptr, quant_scale_ptr,
                   quant_offset_ptr, bias_stride, quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET,
                   PARTED)  # fmt: skip


@triton.jit
def _element(weight, k, column, inside, k_stride, column_stride, STORED: tl.constexpr):
    """One stored integer for each k and column."""
    if STORED == INT8:
        return tl.load(weight + k * k_stride + column * column_stride, mask=inside, other=0).to(tl.int32)
    elif STORED == WORDS_N:
        word = tl.load(weight + k * k_stride + column // 8 * column_stride, mask=inside, other=0)
        return ((word >> (column % 8 * 4).to(tl.int32) & 15) ^ 8) - 8
    else:
        word = tl.load(weight + k // 8 * k_stride + column * column_stride, mask=inside, other=0)
        return ((word >> (k % 8 * 4).to(tl.int32) & 15) ^ 8) - 8


@triton.jit
def _prepack_kernel(weight_ptr, blob_ptr, K, N, count, k_stride, column_stride, STORED: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK bytes of the cells; the first program writes the header too."""
    bits: tl.constexpr = 8 if STORED == INT8 else 4
    width: tl.constexpr = 32 if STORED == INT8 else 16
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    cell, within = place // (4 * width), place % (4 * width)
    k = cell % tl.cdiv(K, 4) * 4 + within % 4
    column = cell // tl.cdiv(K, 4) * 32 + within // 4
    low = _element(weight_ptr, k, column, (k < K) & (column < N), k_stride, column_stride, STORED)
    byte = low + 128
    if bits == 4:
        high = _element(weight_ptr, k, column + 16, (k < K) & (column + 16 < N), k_stride, column_stride, STORED)
        byte = (low + 8) | ((high + 8) << 4)
    tl.store(blob_ptr + 64 + place, byte.to(tl.uint8), mask=place < count)
    if tl.program_id(0) == 0:
        header = tl.arange(0, 64)
        tl.store(blob_ptr + header, _header_byte(header, K, N, bits).to(tl.uint8))


@takes(spec.Arguments)
def weight_quant_matmul(a: spec.Arguments) -> torch.Tensor:
    """See ``anynpu.weight_quant_matmul``; a foreign prepacked weight is told by ``anynpu.check_device_errors``."""
    shape, dtype = spec.matmul_result(a)
    x, weight, scale, offset, group_size = a.x, a.weight, a.scale, a.offset, a.group_size
    y = x.new_empty(shape, dtype=dtype)
    if y.numel() == 0:
        return y
    k, n = x.shape[-1], shape[-1]
    stored = _stored(weight, k, n)
    rows = with_close_rows(x.reshape(1, -1, k) if weight.dim() <= 2 else x.reshape(-1, *x.shape[-2:]))
    batch, m = rows.shape[:2]
    weight_strides = (0, 0, 0)
    if not spec.is_prepacked(weight):
        weight = with_close_rows(weight.reshape(-1, *weight.shape[-2:]))
        weight_strides = weight.stride()
    in_the_end = {"BIAS": a.bias, "QUANT": a.quant_scale, "QUANT_OFFSET": a.quant_offset}
    ending = {name: value is not None for name, value in in_the_end.items()}
    ending_tensors = [scale if value is None else value for value in in_the_end.values()]  # what is absent is not read
    ending_strides = [_strides(value)[1] for value in in_the_end.values()]
    factors = (scale, scale if offset is None else offset, *ending_tensors)
    strides = (*_strides(scale), *_strides(offset), *ending_strides)
    meta = {"OFFSET": offset is not None, **ending}
    if weight.dim() == 3 and batch == 1 and hopper.takes(rows[0], weight[0], group_size):
        hopper.multiply(rows[0], weight[0], *factors[:2], ending_tensors, y, n, group_size, strides, meta)
        return y
    words, along_k = _words(weight, stored) if m <= few_rows.MOST_ROWS and x.dtype != torch.float32 else (None, False)
    block = dict(_configuration(m, x.dtype, stored, along_k if words is not None else None))
    tiles = batch * ceil_divide(m, block["BM"]) * ceil_divide(n, block["BN"])
    most_k = group_size & -group_size  # of a step, 0 without groups
    programs = block.pop("programs")
    if words is not None:
        block["PIECE"] = min(block["PIECE"], most_k or block["PIECE"])
        step, least = block["PIECES"] * block["PIECE"], few_rows.LEAST_STEPS
        if capability(x.device) >= HOPPER:
            times = few_rows.times_as_many_warps(block, _parts(k, step, tiles, programs, least)[0])
            block |= {name: times * block[name] for name in ("PIECES", "num_warps")}
            step, programs = times * step, programs // times
    else:
        step, least = min(block["BK"], most_k or block["BK"]), _LEAST_STEPS
        block["BK"] = step
    parts, part_k = _parts(k, step, tiles, programs, least)
    sums = y if parts == 1 else x.new_empty((parts, batch, m, n), dtype=torch.float32)
    meta |= {"PARTED": parts > 1, **block}
    if words is not None:
        bits, magic = (8, few_rows.MAGIC_OF_BYTES) if stored == INT8.value else (4, MAGIC)
        launch(
            few_rows.matmul_kernel, tiles * parts, rows, words, *factors, y, sums, m, n, words.shape[-1], k, y.numel(),
            part_k // step, parts, magic[x.dtype], *rows.stride(), *words.stride(), *strides, BITS=bits,
            GROUP=group_size, ALONG_K=along_k, WHOLE=k % step == 0, FULL=n % block["BN"] == 0,
            **overlapping(x.device), **meta,
        )  # fmt: skip
    elif stored in (WORDS_N.value, WORDS_K.value) and x.dtype != torch.float32:
        launch(
            _words_kernel, tiles * parts, rows, weight, *factors, y, sums, m, n, weight.shape[-1], k, y.numel(),
            group_size, part_k, parts, MAGIC[x.dtype], *rows.stride(), *weight.stride(), *strides, WHOLE=k % step == 0,
            GROUPS=group_size > 0, ALONG_K=stored == WORDS_K.value, **meta,
        )  # fmt: skip
    else:
        error = _device_errors.word(x.device) if spec.is_prepacked(weight) else y
        launch(
            _matmul_kernel, tiles * parts, rows, weight, *factors, y, sums, error, m, n, k, y.numel(), group_size,
            part_k, parts, *rows.stride(), *weight_strides, *strides, RULE=_HEADER, STORED=stored, WHOLE=k % step == 0,
            GROUPS=group_size > 0, **meta,
        )  # fmt: skip
    if parts > 1:
        most = triton.next_power_of_2(parts)
        together = max(64, _SUM_BLOCK // most)
        launch(add_parts_kernel, ceil_divide(y.numel(), together), sums, *ending_tensors, y, parts, y.numel(), n,
               *ending_strides, MOST_PARTS=most, BLOCK=together, **overlapping(x.device), **ending)  # fmt: skip
    return y


def _words(weight: torch.Tensor, stored: int) -> tuple[torch.Tensor | None, bool]:
    """The weight as int32 words of several columns or, True, of several k; None where it has no such form."""
    if stored != INT8.value:
        return (weight, stored == WORDS_K.value) if stored in (WORDS_N.value, WORDS_K.value) else (None, False)
    along_k = weight.stride(-1) != 1
    lines = weight.transpose(-1, -2) if along_k else weight
    sizes = (lines.shape[-1], *lines.stride()[:-1], lines.storage_offset(), lines.data_ptr())
    if lines.stride(-1) != 1 or any(size % 4 for size in sizes):
        return None, False
    words = lines.view(torch.int32)
    return words.transpose(-1, -2) if along_k else words, along_k


def _stored(weight: torch.Tensor, k: int, n: int) -> int:
    if spec.is_prepacked(weight):
        return (CELLS4 if weight.shape[0] == spec.prepacked_bytes(4, k, n) else CELLS8).value
    if weight.dtype == torch.int8:
        return INT8.value
    return (WORDS_K if spec.is_transposed(weight, k) else WORDS_N).value


def _strides(parameter: torch.Tensor | None) -> tuple[int, int]:
    """(of the group, of the column); 0 where one value serves all."""
    if parameter is None:
        return 0, 0
    rows = parameter.reshape(1, -1) if parameter.dim() == 1 else parameter
    return tuple(0 if size == 1 else stride for size, stride in zip(rows.shape, rows.stride(), strict=True))


def _configuration(m: int, dtype: torch.dtype, stored: int, along_k: bool | None) -> dict[str, int]:
    """The tile of a program, and how many programs should at least run, from the file of tuning results.

    ``along_k`` is given for few rows: whether words hold neighbours along K.
    """
    kinds = {INT8.value: "int8", WORDS_N.value: "int4 along N", WORDS_K.value: "int4 along K"}
    kind, table = kinds.get(stored, "prepacked"), "weight_quant_matmul"
    if along_k is not None:
        kind, table = (
            f"{'int8' if stored == INT8.value else 'int4'} along {'K' if along_k else 'N'}",
            f"{table} of few rows",
        )
    elif dtype == torch.float32:
        kind = "float32 x"
    for entry in _configurations()[table][kind]:
        if entry["most_m"] is None or m <= entry["most_m"]:
            return entry["tile"]
    raise AssertionError(f"{_CONFIGURATIONS}: the last entry of {kind} must be for any m")


@functools.cache
def _configurations() -> dict:
    return json.loads(_CONFIGURATIONS.read_text())


def _parts(k: int, step: int, tiles: int, programs: int, least_steps: int) -> tuple[int, int]:
    """Into how many parts K is cut so that enough programs run, and their length."""
    steps = ceil_divide(k, step)
    wanted = max(1, min(programs // tiles, steps // least_steps))
    length = max(1, ceil_divide(steps, wanted)) * step
    return max(1, ceil_divide(k, length)), length


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """See ``anynpu.weight_quant_prepack``."""
    blob = weight.new_empty(spec.prepacked_size(weight), dtype=torch.uint8)
    k, n = spec.matrix_shape(spec.PREPACK, weight)
    stored = (WORDS_K if spec.is_transposed(weight) else WORDS_N).value
    count = blob.numel() - spec.HEADER_BYTES
    launch(_prepack_kernel, max(1, ceil_divide(count, _PACK_BLOCK)), weight, blob, k, n, count, *weight.stride(),
           STORED=INT8.value if weight.dtype == torch.int8 else stored, BLOCK=_PACK_BLOCK)  # fmt: skip
    return blob


@triton.jit
def _unprepack_kernel(blob_ptr, matrix_ptr, error_ptr, K, N, RULE: tl.constexpr, BITS: tl.constexpr, BK: tl.constexpr,
                      BN: tl.constexpr):  # fmt: skip
    """BK k of BN columns, as int8 [N, K]."""
    _check_header(blob_ptr, K, N, error_ptr, RULE, BITS)
    first_k, first_column = tl.program_id(0) % tl.cdiv(K, BK) * BK, tl.program_id(0) // tl.cdiv(K, BK) * BN
    values = _cells(blob_ptr, first_k, first_column, K, N, BITS, BK, BN)
    if BITS == 4:
        values = ((values & 15) ^ 8) - 8
    k, column = (first_k + tl.arange(0, BK))[:, None], (first_column + tl.arange(0, BN))[None, :]
    tl.store(matrix_ptr + column.to(tl.int64) * K + k, values.to(tl.int8), mask=(k < K) & (column < N))


def unprepacked(blob: torch.Tensor, k: int, n: int, rule: int) -> torch.Tensor:
    """int8 (K, N), a transposed view, of a prepacked weight; another header breaks ``rule``."""
    matrix = torch.empty((n, k), dtype=torch.int8, device=blob.device)
    bits = 4 if _stored(blob, k, n) == CELLS4.value else 8
    bk, bn = _UNPACK_K, spec.CELL_COLUMNS
    launch(_unprepack_kernel, ceil_divide(k, bk) * ceil_divide(n, bn), blob, matrix, _device_errors.word(blob.device),
           k, n, RULE=rule, BITS=bits, BK=bk, BN=bn)  # fmt: skip
    return matrix.t()
