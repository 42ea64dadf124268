# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels share: launching, rounding, unpacking, and reporting errors that only the device sees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):  # before other imports, which older ones lack
    raise ImportError(f"anynpu: the kernels for CUDA need Triton 3.6 or newer, got {triton.__version__}")

from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.errors import OutOfResources

# Triton's interpreter takes bfloat16 for its bits in a dot, and cuts instead of rounding when it converts to it.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_HALF_TO_EVEN = tl.constexpr(1.5 * 2**23)  # a float32 near it has no bits behind the point
_NO_ERROR = tl.constexpr(2**63 - 1)

PROCESSORS = 132  # of an H100 or H200
HOPPER = 9  # the major compute capability of both
_AMPERE = 8  # the first with bfloat16
_STAGES = 3  # of a loop, unless a kernel asks for others
_fewer_stages: dict[tuple[Any, Any, str], int] = {}  # what kernels could have that asked for more
_FARTHEST = 1 << 22  # elements from row to row of a tile, which has fewer than 512: its offsets are of 32 bits


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Runs ``programs`` programs of ``kernel`` on the device of its first argument; the order of work is torch's."""
    if programs == 0:
        return
    device = args[0].device
    if device.type == "cuda" and capability(device) < _AMPERE:
        raise NotImplementedError(
            f"anynpu: the kernels for CUDA need compute capability 8.0 or newer, got "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))} on {device}"
        )
    elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
    with torch.cuda.device(device) if elsewhere else nullcontext():
        run = functools.partial(kernel[(programs,)], *args, enable_fp_fusion=True)
        with_fewer_stages(run, meta, kernel, device)


def with_fewer_stages(run: Callable[..., Any], meta: dict[str, Any], kernel: Any, gpu: Any) -> Any:
    """Runs ``run(**meta)``; with fewer stages of its loops if so many need more shared memory than the GPU has.

    Blocks have 227 KiB on Hopper, 163 on an A100, and 99 on most other GPUs. How many ``kernel`` could have on ``gpu``
    is kept: failing takes longer than a small kernel does.
    """
    asked = meta.get("num_stages", _STAGES)
    kept = (kernel, gpu, str(meta)) if _fewer_stages else None
    for stages in range(_fewer_stages.get(kept, asked), 1, -1):
        try:
            return run(**{**meta, "num_stages": stages})
        except OutOfResources:
            _fewer_stages[kernel, gpu, str(meta)] = stages - 1
    return run(**{**meta, "num_stages": 1})


@functools.cache
def capability(device: torch.device) -> int:
    """The major compute capability of a GPU, 0 of the CPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def with_close_rows(x: torch.Tensor) -> torch.Tensor:
    """Matrices ``x``, or a copy of them where rows or columns are too far apart for the offsets within a tile.

    Such are the last positions of long sequences, ``hidden[:, -1]``, and one of many weights that lie column by column.
    """
    far = any(size > 1 and step > _FARTHEST for size, step in zip(x.shape[-2:], x.stride()[-2:], strict=True))
    return x.contiguous() if far else x


def overlapping(device: torch.device) -> dict[str, bool]:
    """Options of a kernel with wait_for_previous and start_next, whose start overlaps the end of the one before."""
    return {"OVERLAP": True, "launch_pdl": True} if capability(device) >= HOPPER else {"OVERLAP": False}


def ceil_divide(value: int, by: int) -> int:
    """``value / by``, rounded up."""
    return -(-value // by)


def power_of_two(value: int, least: int, most: int) -> int:
    """The least power of two that is not below ``value``, within bounds: the size of a block."""
    return max(least, min(most, triton.next_power_of_2(value)))


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Comes before anything is read or written in a kernel that may come onto the GPU before the previous has ended."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Lets the next kernel come onto the GPU when all programs of this one have, to wait there for their end."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def fetch(ptr):
    """Asks for the sectors of the L2 that pointers point into; whoever reads them later need not wait for memory."""
    if not INTERPRETED:
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [ptr], dtype=tl.int32,
                                  is_pure=False, pack=1)  # fmt: skip


@triton.jit
def tile_of(program, rows, columns, TOGETHER: tl.constexpr = 8):
    """The (row, column) of a tile: programs that run together share rows and columns, which then stay in the cache."""
    band = program // (TOGETHER * columns)
    height = tl.minimum(rows - band * TOGETHER, TOGETHER)
    within = program % (TOGETHER * columns)
    return band * TOGETHER + within % height, within // height


@triton.jit
def report(error_ptr, rule: tl.constexpr, wrong, position):
    """Notes that ``rule`` (of anynpu._device_errors) is broken at the least ``position`` where ``wrong`` holds."""
    least = tl.min(tl.where(wrong, position.to(tl.int64) + rule, _NO_ERROR), axis=None)
    tl.atomic_min(error_ptr, least, mask=least != _NO_ERROR, sem="relaxed")


@triton.jit
def dot(a, b, acc):
    """``acc + a @ b``: exact products, float32 or int32 sums."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """float32 to the dtype of a result, to nearest, half to even; int8 saturates and gives 0 for NaN."""
    if dtype == tl.int8:
        value = tl.where(value == value, value, 0.0)
        value = tl.minimum(tl.maximum(value, -128.0), 127.0)
        # The integer is in the low bits behind the power of two: a conversion runs at a fraction of the rate.
        return (value + _HALF_TO_EVEN).to(tl.int32, bitcast=True).to(tl.int8)
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        up = tl.where(value == value, bits + 0x7FFF + ((bits >> 16) & 1), 0x7FC00000)
        return (up >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)


@triton.jit
def half_to_even(value):
    """The nearest integer as a float32, for magnitudes below 2**22."""
    return (value + _HALF_TO_EVEN) - _HALF_TO_EVEN


@triton.jit
def encoded_scale(word):
    """The float32 in the low half of a 64-bit quantisation parameter."""
    return (word & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def encoded_offset(word):
    """The signed 9-bit integer at bit 37 of a 64-bit quantisation parameter."""
    offset = ((word >> 37) & 511).to(tl.int32)
    return tl.where(offset < 256, offset, offset - 512).to(tl.float32)


@triton.jit
def tile(ptr, first_row, first_column, rows, columns, row_stride, column_stride, ROWS_INSIDE: tl.constexpr,
         COLUMNS_INSIDE: tl.constexpr, R: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Elements [R, C] of a matrix; 0 beyond its edges, which are not looked at where everything is INSIDE."""
    row, column = tl.arange(0, R), tl.arange(0, C)
    wide = tl.zeros((), tl.int64)  # the whole matrix may have more than 2**31 elements, a tile has not
    first = ptr + (wide + first_row) * row_stride + (wide + first_column) * column_stride
    inside = (row < R)[:, None] & (column < C)[None, :]
    if not ROWS_INSIDE:
        inside &= (first_row + row < rows)[:, None]
    if not COLUMNS_INSIDE:
        inside &= (first_column + column < columns)[None, :]
    return tl.load(first + row[:, None] * row_stride + column[None, :] * column_stride, mask=inside, other=0)


@triton.jit
def nibbles(words, first_k, first_column, K, N, k_stride, column_stride, ALONG_K: tl.constexpr, WHOLE: tl.constexpr,
            BK: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """int4 [BK, BN] in the low bits of int32, out of words of eight along K or along N, whose strides these are.

    k and columns begin at multiples of eight. WHOLE: no k is beyond K.
    """
    shift = 4 * tl.arange(0, 8)
    if ALONG_K:
        word = tile(words, first_k // 8, first_column, K // 8, N, k_stride, column_stride, WHOLE, False, BK // 8, BN)
        return tl.reshape(word[:, None, :] >> shift[None, :, None], (BK, BN))
    else:
        word = tile(words, first_k, first_column // 8, K, N // 8, k_stride, column_stride, WHOLE, False, BK, BN // 8)
        return tl.reshape(word[:, :, None] >> shift[None, None, :], (BK, BN))


@triton.jit
def int4_to(bits, dtype: tl.constexpr):
    """The signed int4 in the lowest bits of an int32, as a float: set behind a power of two whose last place is 1.

    That takes two integer operations and a subtraction; a conversion runs at a fraction of their rate.
    """
    if dtype == tl.float16:
        return ((bits & 15) ^ 0x6408).to(tl.int16).to(tl.float16, bitcast=True) - 1032.0
    elif dtype == tl.bfloat16:
        shifted = ((bits & 15) ^ 0x4308).to(tl.int16).to(tl.bfloat16, bitcast=True)
        return (shifted.to(tl.float32) - 136.0).to(tl.bfloat16) if INTERPRETED else shifted - 136.0
    else:
        return (((bits & 15) ^ 8) - 8).to(tl.float32)


@triton.jit
def upper_half(value):
    """A float32 cut to the bits that bfloat16 has too; NaN stays NaN."""
    cut = (value.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return tl.where(value == value, cut, float("nan"))


@triton.jit
def _as_bfloat16(value):
    """A float32 that is a bfloat16, as one."""
    return (value.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def dot_float32(a, b, acc):
    """``acc + a @ b`` for float32 a and bfloat16 b, as exact as float32 products: a is the sum of three bfloat16."""
    first = upper_half(a)
    rest = tl.where(first == a, 0.0, a - first)  # also for infinities
    second = upper_half(rest)
    third = rest - second
    acc = dot(_as_bfloat16(third), b, acc)
    acc = dot(_as_bfloat16(second), b, acc)
    return dot(_as_bfloat16(first), b, acc)


@triton.jit
def dot_halves(a, b, acc):
    """``acc + a @ b`` for float32 a and bfloat16 b: a is the sum of two bfloat16, less than 2**-16 of it away."""
    first = upper_half(a)
    acc = dot(rounded(a - first, tl.bfloat16), b, acc)
    return dot(_as_bfloat16(first), b, acc)
