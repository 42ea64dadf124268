# SPDX-License-Identifier: Apache-2.0
"""weight_quant_matmul of many rows on Hopper GPUs, in Gluon: Triton with layouts and asynchrony in the program's hands.

A program has three parts that run beside each other. One warp lets the copy engine fetch tiles of x and of the weight.
Two groups of four warps each multiply their columns of the weight, the left operand in registers, by the rows of x in
shared memory: y transposed. While the tensor cores work on a step of K, a group unpacks the weight of its next step;
while it scales the sums of a step, they work for the other group. As in triton.py, integers are multiplied as they are.

Triton's interpreter does not know Gluon: this file is compiled in tests without a GPU, and runs on one.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from anynpu._triton import HOPPER, INTERPRETED, PROCESSORS, capability, ceil_divide, launch, power_of_two, tile, tile_of
from anynpu.ops.weight_quant_matmul.ending import MAGIC, ended, factors_of

_copy_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared  # Triton renamed it
_BK = gl.constexpr(64)  # of a step: 128 bytes of x
_STEP = 2 * _BK.value  # what divides K: two steps share the code of a loop
_LEAST_ROWS = 65  # below, cutting K into parts for more programs is faster
_SUM_BLOCK = 4096  # elements of x that a program has under way when it adds them up


@gluon.jit
def _less(pairs, subtrahend, dtype: gl.constexpr):
    """Differences of two 16-bit floats each, held in int32.

    Opaque to the compiler, which else moves all arithmetic on operands behind the wait for the tensor cores.
    """
    subtract: gl.constexpr = "sub.f16x2 $0, $1, $2;" if dtype == gl.float16 else "sub.bf16x2 $0, $1, $2;"
    return gl.inline_asm_elementwise(subtract, "=r,r,r", [pairs, subtrahend], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _of_bytes(pairs, dtype: gl.constexpr):
    """int8 in the low bytes of two halves, as floats: set behind a power of two whose last place is 1.

    bfloat16 has room for seven bits there; the sign chooses what is subtracted.
    """
    if dtype == gl.float16:
        return _less((pairs & 0x00FF00FF) ^ 0x64806480, 0x64806480, dtype)
    else:
        return _less((pairs & 0x007F007F) | 0x43004300, (pairs & 0x00800080) | 0x43004300, dtype)


@gluon.jit
def _unpacked_along_k(stored, magic, BN: gl.constexpr, BITS: gl.constexpr, LOADED: gl.constexpr, HELD: gl.constexpr,
                      dtype: gl.constexpr):  # fmt: skip
    """Integers [BN, _BK] as pairs of floats, out of int32 words along K."""
    words: gl.constexpr = gl.SliceLayout(2, HELD)
    pair = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, HELD)))[None, None, :]  # that a thread takes of eight k
    if BITS == 4:
        byte = (stored.load(words).expand_dims(2) >> (8 * pair)) & 0xFF
        pairs = _less(((byte * 0x1001) & 0x000F000F) ^ magic, magic, dtype)
    else:
        low, high = gl.split(gl.reshape(stored.load(gl.SliceLayout(2, LOADED)), [BN, _BK // 8, 2]))
        low = gl.convert_layout(low, words, assert_trivial=True).expand_dims(2)
        high = gl.convert_layout(high, words, assert_trivial=True).expand_dims(2)
        bytes_of_pair = (2 * pair) | ((2 * pair + 1) << 8)
        pairs = gl.inline_asm_elementwise("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, bytes_of_pair],
                                          dtype=gl.int32, is_pure=True, pack=1)  # fmt: skip
        pairs = _of_bytes(pairs, dtype)
    return gl.reshape(pairs, [BN, _BK // 2])


@gluon.jit
def _unpacked_along_n(stored, magic, BN: gl.constexpr, BITS: gl.constexpr, LOADED: gl.constexpr, HELD: gl.constexpr,
                      dtype: gl.constexpr):  # fmt: skip
    """As _unpacked_along_k, out of [_BK, units] int16 units along N, in the order of _columns.

    Transposed loads from shared memory give a thread units of two k side by side, whose fields it unpacks together.
    """
    units: gl.constexpr = BN * BITS // 16
    transposed = stored.permute([1, 0]).load(gl.SliceLayout(0, LOADED))
    even, odd = gl.split(gl.reshape(transposed, [units, _BK // 2, 2]))
    both = gl.inline_asm_elementwise("mov.b32 $0, {$1, $2};", "=r,h,h", [even, odd], dtype=gl.int32, is_pure=True,
                                     pack=1)  # fmt: skip
    if BITS == 4:  # two warps share a unit of four columns
        both = gl.convert_layout(both, gl.SliceLayout(0, HELD), assert_trivial=True).expand_dims(0)
        both = both >> (8 * gl.arange(0, 2, gl.SliceLayout(1, gl.SliceLayout(2, HELD))))[:, None, None]
        low = _less((both & 0x000F000F) ^ magic, magic, dtype)
        high = _less(((both >> 4) & 0x000F000F) ^ magic, magic, dtype)
        pairs = gl.reshape(gl.join(low, high), [2, units // 8, 8, _BK // 2, 2])
        pairs = gl.permute(pairs, [1, 0, 4, 2, 3])
    else:
        low, high = _of_bytes(both, dtype), _of_bytes(both >> 8, dtype)
        pairs = gl.permute(gl.reshape(gl.join(low, high), [units // 8, 8, _BK // 2, 2]), [0, 3, 1, 2])
    return gl.reshape(pairs, [BN, _BK // 2])


@gluon.jit
def _columns(BN: gl.constexpr, BITS: gl.constexpr, ALONG_K: gl.constexpr, layout: gl.constexpr):
    """Which column each line of the products is."""
    line = gl.arange(0, BN, layout)
    if not ALONG_K:
        if BITS == 4:
            line = line // 32 * 32 + line % 8 * 4 + line // 8 % 4
        else:
            line = line // 16 * 16 + line % 8 * 2 + line // 8 % 2
    return line


@gluon.jit
def _in_order(lines, BN: gl.constexpr, BM: gl.constexpr, BITS: gl.constexpr, ALONG_K: gl.constexpr):
    """Lines [BN, BM] by ascending column."""
    if not ALONG_K:
        if BITS == 4:
            lines = gl.permute(gl.reshape(lines, [BN // 32, 2, 2, 8, BM]), [0, 3, 1, 2, 4])
        else:
            lines = gl.permute(gl.reshape(lines, [BN // 16, 2, 8, BM]), [0, 2, 1, 3])
        lines = gl.reshape(lines, [BN, BM])
    return lines


@gluon.jit
def _fetch(x, weight, x_tiles, weight_tiles, full, empty, steps, first_row, first_column, BN: gl.constexpr,
           BITS: gl.constexpr, ALONG_K: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Fills the stages with the tiles of one step each, as often as both groups have emptied them."""
    for step in range(0, steps):
        stage, k = step % STAGES, step * _BK
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        arrived = full.index(stage)
        mbarrier.expect(arrived, x.block_type.nbytes + 2 * weight.block_type.nbytes)
        _copy_tile(x, [first_row, k], arrived, x_tiles.index(stage))
        for group in gl.static_range(2):
            column = first_column + group * BN
            if ALONG_K:
                _copy_tile(weight, [column, k * BITS // 32], arrived, weight_tiles.index(2 * stage + group))
            else:
                _copy_tile(weight, [k, column * BITS // 16], arrived, weight_tiles.index(2 * stage + group))


@gluon.jit
def _unpacked(weight_tiles, step, magic, GROUP: gl.constexpr, BN: gl.constexpr, BITS: gl.constexpr,
              ALONG_K: gl.constexpr, STAGES: gl.constexpr, LOADED: gl.constexpr, HELD: gl.constexpr,
              dtype: gl.constexpr):  # fmt: skip
    stored = weight_tiles.index(step % STAGES * 2 + GROUP)
    if ALONG_K:
        return _unpacked_along_k(stored, magic, BN, BITS, LOADED, HELD, dtype)
    else:
        return _unpacked_along_n(stored, magic, BN, BITS, LOADED, HELD, dtype)


@gluon.jit
def _step(pairs, sums, products, scale, step, steps, x_tiles, weight_tiles, full, empty, magic, ODD: gl.constexpr,
          FIRST: gl.constexpr, LAST: gl.constexpr, GROUP: gl.constexpr, BN: gl.constexpr, BITS: gl.constexpr,
          ALONG_K: gl.constexpr, STAGES: gl.constexpr, LOADED: gl.constexpr, HELD: gl.constexpr,
          dtype: gl.constexpr):  # fmt: skip
    """Multiplies one step, FIRST and LAST of a group of scales, and unpacks the next: (pairs, sums, products)."""
    mma: gl.constexpr = products.type.layout
    halves = gl.reshape(gl.join(pairs.to(gl.int16), (pairs >> 16).to(gl.int16)), [BN, _BK])
    left = gl.convert_layout(halves.to(dtype, bitcast=True), gl.DotOperandLayout(0, mma, 2), assert_trivial=True)
    right = x_tiles.index(step % STAGES).permute([1, 0])
    flight = warpgroup_mma(left, right, products, use_acc=not FIRST, is_async=True)
    tl.debug_barrier()  # all four warps are done with the step before
    mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), count=1, pred=step > 0)
    if ODD:
        mbarrier.wait(full.index((step + 1) % STAGES), (step + 1) // STAGES & 1, pred=step + 1 < steps)
    following = _unpacked(weight_tiles, step + 1, magic, GROUP, BN, BITS, ALONG_K, STAGES, LOADED, HELD, dtype)
    if ODD:
        # Waiting twice in every other step, the second time after unpacking, leaves the assembler no place behind the
        # wait for the products to which it would move the unpacking.
        mbarrier.wait(full.index((step + 2) % STAGES), (step + 2) // STAGES & 1, pred=step + 2 < steps)
    products = warpgroup_mma_wait(0, [flight])
    if LAST:
        sums += products * scale[:, None]
    return following, sums, products


@gluon.jit
def _multiply(x_tiles, weight_tiles, full, empty, scale_ptr, offset_ptr, x_sums_ptr, bias_ptr, quant_scale_ptr,
              quant_offset_ptr, y_ptr, M, N, steps, magic, first_row, first_column,
              scale_group, scale_column, offset_group, offset_column, bias_stride, quant_scale_stride,
              quant_offset_stride, GROUP: gl.constexpr, SCALED: gl.constexpr, OFFSET: gl.constexpr, BIAS: gl.constexpr,
              QUANT: gl.constexpr, QUANT_OFFSET: gl.constexpr, BM: gl.constexpr,
              BN: gl.constexpr, BITS: gl.constexpr, ALONG_K: gl.constexpr, STAGES: gl.constexpr, LOADED: gl.constexpr,
              HELD: gl.constexpr):  # fmt: skip
    """What one of the two groups of warps does: its columns of a tile of y."""
    dtype: gl.constexpr = x_tiles.dtype
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    lines: gl.constexpr = gl.SliceLayout(1, mma)
    first_column += GROUP * BN
    column = first_column + _columns(BN, BITS, ALONG_K, lines)
    sums = gl.zeros([BN, BM], gl.float32, mma)
    products = sums
    mbarrier.wait(full.index(0), 0)
    mbarrier.wait(full.index(1), 0)
    pairs = _unpacked(weight_tiles, 0, magic, GROUP, BN, BITS, ALONG_K, STAGES, LOADED, HELD, dtype)
    for step in range(0, steps, 2):
        if SCALED:
            scale = factors_of(scale_ptr, step // SCALED, column, N, scale_group, scale_column)
            if SCALED == 1:
                last_scale = factors_of(scale_ptr, step + 1, column, N, scale_group, scale_column)
            else:
                last_scale = scale
            pairs, sums, products = _step(
                pairs, sums, products, scale, step, steps, x_tiles, weight_tiles, full, empty, magic, False, True,
                SCALED == 1, GROUP, BN, BITS, ALONG_K, STAGES, LOADED, HELD, dtype)  # fmt: skip
            pairs, sums, products = _step(
                pairs, sums, products, last_scale, step + 1, steps, x_tiles, weight_tiles, full, empty, magic,
                True, SCALED == 1, True, GROUP, BN, BITS, ALONG_K, STAGES, LOADED, HELD, dtype)  # fmt: skip
        else:
            for half in gl.static_range(2):  # without groups, the products of all steps are the sums
                pairs, products, sums = _step(
                    pairs, products, sums, None, step + half, steps, x_tiles, weight_tiles, full, empty, magic, half,
                    False, False, GROUP, BN, BITS, ALONG_K, STAGES, LOADED, HELD, dtype)  # fmt: skip
    if not SCALED:
        sums *= factors_of(scale_ptr, 0, column, N, scale_group, scale_column)[:, None]
    across: gl.constexpr = gl.SliceLayout(0, mma)
    row = first_row + gl.arange(0, BM, across)
    if OFFSET:
        groups = 1
        if SCALED:
            groups = gl.cdiv(steps, SCALED)
        for group in range(0, groups):
            offset = factors_of(offset_ptr, group, column, N, offset_group, offset_column)
            offset *= factors_of(scale_ptr, group, column, N, scale_group, scale_column)
            x_sums = gl.load(x_sums_ptr + group.to(gl.int64) * M + row, mask=row < M, other=0.0)
            sums += offset[:, None] * x_sums[None, :]
    out: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // BN, BN // 8], [4, 1], [1, 0])
    out_row = (first_row + gl.arange(0, BM, gl.SliceLayout(1, out)))[:, None]
    out_column = (first_column + gl.arange(0, BN, gl.SliceLayout(0, out)))[None, :]
    place, inside = out_row.to(gl.int64) * N + out_column, (out_row < M) & (out_column < N)
    value = ended(sums, column[:, None], (column < N)[:, None], bias_ptr, quant_scale_ptr, quant_offset_ptr,
                  bias_stride, quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET,
                  y_ptr.dtype.element_ty)  # fmt: skip
    value = gl.convert_layout(_in_order(value, BN, BM, BITS, ALONG_K).permute([1, 0]), out)
    gl.store(y_ptr + place, value, mask=inside)


@gluon.jit(do_not_specialize=["M"])
def _many_rows_kernel(scale_ptr, x, weight, offset_ptr, x_sums_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr,
                      M, N, K, magic, scale_group, scale_column, offset_group,
                      offset_column, bias_stride, quant_scale_stride, quant_offset_stride, SCALED: gl.constexpr,
                      OFFSET: gl.constexpr, BIAS: gl.constexpr, QUANT: gl.constexpr, QUANT_OFFSET: gl.constexpr,
                      BM: gl.constexpr, BN: gl.constexpr, BITS: gl.constexpr,
                      ALONG_K: gl.constexpr, STAGES: gl.constexpr, LOADED: gl.constexpr,
                      HELD: gl.constexpr):  # fmt: skip
    """A tile [BM, 2 BN] of y. SCALED: steps of a group of scales, 0 without groups."""
    row_tile, column_tile = tile_of(gl.program_id(0), gl.cdiv(M, BM), gl.cdiv(N, 2 * BN), 4)
    first_row, first_column, steps = row_tile * BM, column_tile * (2 * BN), K // _BK
    x_tiles = gl.allocate_shared_memory(x.dtype, [STAGES, BM, _BK], x.layout)
    weight_tiles = gl.allocate_shared_memory(weight.dtype, [2 * STAGES] + weight.block_type.shape, weight.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    gl.warp_specialize(
        [(_multiply, (x_tiles, weight_tiles, full, empty, scale_ptr, offset_ptr, x_sums_ptr, bias_ptr, quant_scale_ptr,
                      quant_offset_ptr, y_ptr, M, N, steps, magic, first_row,
                      first_column, scale_group, scale_column, offset_group, offset_column, bias_stride,
                      quant_scale_stride, quant_offset_stride, 0, SCALED, OFFSET, BIAS, QUANT, QUANT_OFFSET, BM,
                      BN, BITS, ALONG_K, STAGES, LOADED, HELD)),
         (_multiply, (x_tiles, weight_tiles, full, empty, scale_ptr, offset_ptr, x_sums_ptr, bias_ptr, quant_scale_ptr,
                      quant_offset_ptr, y_ptr, M, N, steps, magic, first_row,
                      first_column, scale_group, scale_column, offset_group, offset_column, bias_stride,
                      quant_scale_stride, quant_offset_stride, 1, SCALED, OFFSET, BIAS, QUANT, QUANT_OFFSET, BM,
                      BN, BITS, ALONG_K, STAGES, LOADED, HELD)),
         (_fetch, (x, weight, x_tiles, weight_tiles, full, empty, steps, first_row, first_column, BN, BITS,
                   ALONG_K, STAGES))],
        [4, 1], [240, 24],
    )  # fmt: skip


@triton.jit
def _x_sums_kernel(x_ptr, sums_ptr, M, K, group_size, x_row, BM: tl.constexpr, BK: tl.constexpr):
    """float32 [groups, M]: the sums of x over each group of K."""
    groups = tl.cdiv(K, group_size)
    first_row, group = tl.program_id(0) // groups * BM, tl.program_id(0) % groups
    end = tl.minimum(K, (group + 1) * group_size)
    sums = tl.zeros((BM,), tl.float32)
    for k in range(group * group_size, end, BK):
        sums += tl.sum(tile(x_ptr, first_row, k, M, end, x_row, 1, False, False, BM, BK).to(tl.float32), axis=1)
    row = first_row + tl.arange(0, BM)
    tl.store(sums_ptr + group.to(tl.int64) * M + row, sums, mask=row < M)


def _x_sums(x: torch.Tensor, group_size: int) -> torch.Tensor:
    m, k = x.shape
    sums = x.new_empty((ceil_divide(k, group_size), m), dtype=torch.float32)
    bk = power_of_two(group_size, _BK.value, 512)
    bm = _SUM_BLOCK // bk
    launch(_x_sums_kernel, ceil_divide(m, bm) * sums.shape[0], x, sums, m, k, group_size, x.stride(0), BM=bm, BK=bk)
    return sums


def takes(x: torch.Tensor, weight: torch.Tensor, group_size: int) -> bool:
    """Whether the kernel computes x [M, K] times int8 or words of int4 [K, N]."""
    if INTERPRETED or capability(x.device) != HOPPER or x.dtype == torch.float32 or x.shape[0] < _LEAST_ROWS:
        return False
    k = x.shape[1]
    if weight.dtype == torch.int32 and (weight.shape[0] != k) != _is_along_k(weight):
        return False
    lines = weight.t() if _is_along_k(weight) else weight
    aligned = all(
        matrix.stride(1) == 1 and (matrix.stride(0) * matrix.element_size()) % 16 == 0 and matrix.data_ptr() % 16 == 0
        for matrix in (x, lines)
    )
    units = weight.dtype == torch.int32 or lines.shape[1] % 2 == 0  # the copy engine takes int8 by the two
    return aligned and units and k % _STEP == 0 and (group_size == _BK.value or group_size % _STEP == 0)


def _is_along_k(weight: torch.Tensor) -> bool:
    return weight.stride(0) == 1 and weight.stride(1) != 1


def _tile_for(m: int, n: int, group_size: int) -> dict[str, int]:
    """The tile of a program.

    The more rows, the less often is a weight unpacked, and the longer do the tensor cores work between two waits; but
    there shall be a program for most processors. 256 need the registers that the sums of groups would take.
    """
    block = {"BM": 64, "BN": 64, "STAGES": 8}
    columns = ceil_divide(n, 2 * block["BN"])
    if not group_size and ceil_divide(m, 256) * columns >= PROCESSORS:
        block |= {"BM": 256, "STAGES": 5}
    elif 3 * ceil_divide(m, 128) * columns >= 2 * PROCESSORS:
        block["BM"] = 128
    return block


def multiply(x, weight, scale, offset, ending, y, n, group_size, strides, meta) -> None:
    """Launches the kernel; the arguments are those of the others in triton.py."""
    (m, k), block = x.shape, _tile_for(x.shape[0], n, group_size)
    bits, along_k = 8 if weight.dtype == torch.int8 else 4, _is_along_k(weight)
    bm, bn = block["BM"], block["BN"]
    stored = weight.t().view(torch.int32) if along_k else weight.view(torch.int16)
    shape = [bn, _BK.value * bits // 32] if along_k else [_BK.value, bn * bits // 16]
    layout = gl.NVMMASharedLayout(shape[1] * stored.element_size(), 8 * stored.element_size(), 2)
    loaded, held = _layouts(bn, bits, along_k)
    x_sums = _x_sums(x, group_size or k) if meta["OFFSET"] else scale
    launch(
        _many_rows_kernel, ceil_divide(m, bm) * ceil_divide(n, 2 * bn), scale,
        TensorDescriptor.from_tensor(x, [bm, _BK.value], gl.NVMMASharedLayout(128, 16, 2)),
        TensorDescriptor.from_tensor(stored, shape, layout), offset, x_sums, *ending,
        y, m, n, k, MAGIC[x.dtype], *strides, SCALED=group_size // _BK.value, BITS=bits, ALONG_K=along_k,
        LOADED=loaded, HELD=held, **block, **meta,
    )  # fmt: skip


@functools.cache
def _layouts(bn: int, bits: int, along_k: bool) -> tuple[gl.DistributedLinearLayout, gl.DistributedLinearLayout]:
    """Which thread loads what, and holds which integers: those of the left operand that the tensor cores take from it.

    Of each 16 x 16 of that, thread t has the lines t / 4 and t / 4 + 8, and the k 2 (t % 4) + {0, 1, 8, 9}.
    """
    bk = _BK.value
    if along_k:  # [column, word, pair of k]: the four threads of a line share its words

        def layout(words: int) -> gl.DistributedLinearLayout:
            registers, lanes = _powers(1, 1, words) + [[8, 0, 0]], _powers(2, 1, 4) + _powers(0, 1, 8)
            return gl.DistributedLinearLayout(registers, lanes, _powers(0, 16, bn), [], [bn, words, 4])

        return layout(bk * bits // 32), layout(bk // 8)
    # [half of a unit, unit, k]
    halves, units = 2 if bits == 4 else 1, bn * bits // 16
    warps, lines = _powers(0, 1, halves) + _powers(1, 8, units), _powers(1, 1, 8)
    loaded = gl.DistributedLinearLayout(_powers(2, 1, 2) + _powers(2, 8, bk), _powers(2, 2, 8) + lines, warps, [],
                                        [halves, units, bk])  # fmt: skip
    return loaded, gl.DistributedLinearLayout(_powers(2, 4, bk // 2), _powers(2, 1, 4) + lines, warps, [],
                                              [halves, units, bk // 2])  # fmt: skip


def _powers(axis: int, first: int, end: int) -> list[list[int]]:
    """Bases of a layout of three axes: the powers of two from first until end along one of them."""
    powers = [first << place for place in range((end // first).bit_length() - 1)]
    return [[power if each == axis else 0 for each in range(3)] for power in powers]
