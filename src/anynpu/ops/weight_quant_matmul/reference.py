# SPDX-License-Identifier: Apache-2.0
"""Oracle of weight_quant_matmul: float64, written for reading; and how far from it a kernel may be."""

from __future__ import annotations

import struct

import torch

from anynpu._arguments import takes
from anynpu.ops.weight_quant_matmul import spec
from anynpu.ops.weight_quant_matmul.spec import Arguments

_MAGIC = {4: b"ANPUw4p3", 8: b"ANPUw8p3"}
_FLOAT32_ROUNDING = 2.0**-24  # relative error of one float32 operation
_FIXED_POINT_BLOCK = 256  # most k that share an exponent


@takes(Arguments)
def weight_quant_matmul(a: Arguments) -> torch.Tensor:
    """``y = x @ ((weight + offset) * scale) + bias`` in float64, rounded once to the dtype of x.

    With quant_scale instead ``saturate(round_half_even(y * quant_scale + quant_offset))``, NaN to 0.
    """
    shape, dtype = spec.matmul_result(a)
    if spec.is_prepacked(a.weight):
        _check_prepacked(a.weight, a.scale, a.x.shape[-1], shape[-1])
    return _rounded(unrounded(*a), dtype)


@takes(Arguments)
def unrounded(a: Arguments) -> torch.Tensor:
    """The result of weight_quant_matmul in float64, before it is rounded to its dtype."""
    k = a.x.shape[-1]
    w = integers(a.weight, k)  # [..., K, N]
    if a.offset is not None:
        w = w + _spread(a.offset.double(), a.group_size, k)
    w = w * _spread(decoded_scale(a.scale), a.group_size, k)
    y = a.x.double() @ w
    if a.bias is not None:
        y = y + a.bias.double()
    if a.quant_scale is not None:
        multiplier, addend = decoded_quantisation(a.quant_scale, a.quant_offset)
        y = y * multiplier + addend
    return y


def _rounded(y: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return y.nan_to_num(nan=0).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else y.to(dtype)


def integers(weight: torch.Tensor, k: int) -> torch.Tensor:
    """The weight as float64 [..., K, N]."""
    if spec.is_prepacked(weight):
        weight = unprepacked(weight)
    elif weight.dtype == torch.int32:
        transposed = spec.is_transposed(weight, k)
        words = (weight.transpose(-1, -2) if transposed else weight).contiguous()
        values = nibbles(words)
        weight = values.transpose(-1, -2) if transposed else values
    return weight.double()


def _check_prepacked(blob: torch.Tensor, scale: torch.Tensor, k: int, n: int) -> None:
    matrix = unprepacked(blob)
    if matrix.shape != (k, n):
        raise ValueError(f"{spec.MATMUL}: prepacked weight is {tuple(matrix.shape)}, but x has K {k} and y has N {n}")
    if scale.dtype == torch.int64 and blob.shape[0] == spec.prepacked_bytes(4, k, n):
        raise TypeError(f"{spec.MATMUL}: int64 scale needs int8 weights, got a prepacked int4 weight")


def nibbles(words: torch.Tensor) -> torch.Tensor:
    """Signed int4 of int32 words [..., C], lowest nibble first: [..., 8 * C]."""
    values = (words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return torch.where(values < 8, values, values - 16).flatten(-2)


def _spread(parameter: torch.Tensor, group_size: int, k: int) -> torch.Tensor:
    """A scale or offset as [K or 1, N or 1]: row g of a grouped one holds for k = g * group_size and following."""
    return parameter.repeat_interleave(group_size, dim=0)[:k] if group_size else parameter


def decoded_scale(scale: torch.Tensor) -> torch.Tensor:
    """float64 of a scale; an int64 holds the bits of a float32 in its low half."""
    if scale.dtype == torch.int64:
        scale = scale.contiguous().view(torch.float32).reshape(*scale.shape, 2)[..., 0]
    return scale.double()


def decoded_quantisation(
    quant_scale: torch.Tensor, quant_offset: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, offset) in float64 as the 64-bit quantisation parameter holds them: 19 bits and a 9-bit integer."""
    if quant_scale.dtype == torch.int64:
        offset = (quant_scale >> 37) & 0x1FF
        return decoded_scale(quant_scale), torch.where(offset < 256, offset, offset - 512).double()
    scale = (quant_scale.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32).double()
    if quant_offset is None:
        return scale, torch.zeros_like(scale)
    return scale, quant_offset.double().round().clamp(-256, 255)


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """How far each element of a result may be from the reference, in float64.

    Before its last rounding a kernel rounds, for each output, at most K products, K sums, K sums of the row of x that
    the offset is multiplied with, and a handful of factors, each by 2**-24 of at most
    ``magnitude = |x| @ ((|weight| + |offset|) * |scale|) + |bias|``: together ``(2 K + 8) * 2**-24 * magnitude``.
    A kernel that holds x in fixed point, in blocks of at most 256 k of one group, adds for each block 2**-23 (2**-15
    with inner_precise) of the largest |x| in it, times its sum of ``(|weight| + |offset|) * |scale|``.
    The last rounding then adds half a unit of the result's dtype; int8 results differ only near a tie.
    """
    _, dtype = spec.matmul_result(a)
    exact = unrounded(*a)
    error = _sum_error(a)
    if a.quant_scale is not None:
        multiplier, addend = decoded_quantisation(a.quant_scale, a.quant_offset)
        error = error * multiplier.abs() + 2 * _FLOAT32_ROUNDING * (exact.abs() + error + addend.abs())
    low, high = _rounded(exact - error, dtype).double(), _rounded(exact + error, dtype).double()
    expected = _rounded(exact, dtype).double()
    bound = torch.maximum((expected - low).abs(), (high - expected).abs())
    return bound.nan_to_num(nan=0, posinf=torch.inf)  # NaN: all three are the same infinity or NaN


def _sum_error(a: Arguments) -> torch.Tensor:
    """Before the last rounding, or the quantisation."""
    x, k = a.x.double().abs(), a.x.shape[-1]
    magnitude = integers(a.weight, k).abs()
    if a.offset is not None:
        magnitude = magnitude + _spread(a.offset.double().abs(), a.group_size, k)
    magnitude = magnitude * _spread(decoded_scale(a.scale).abs(), a.group_size, k)
    error = (2 * k + 8) * _FLOAT32_ROUNDING * (x @ magnitude)
    if a.bias is not None:
        error = error + (2 * k + 8) * _FLOAT32_ROUNDING * a.bias.double().abs()
    fixed_point = 2.0**-15 if a.inner_precise else 2.0**-23
    for group in range(0, k, a.group_size or max(k, 1)):
        group_end = min(group + (a.group_size or k), k)
        for first in range(group, group_end, _FIXED_POINT_BLOCK):
            block = slice(first, min(first + _FIXED_POINT_BLOCK, group_end))
            largest = x[..., block].amax(-1, keepdim=True)
            error = error + fixed_point * largest * magnitude[..., block, :].sum(-2, keepdim=True)
    return error


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """Format w4p32 or w8p32 of docs/formats.md: a header, then cells of 32 columns by 4 k, k running fastest.

    A w8p32 cell holds q + 128 as [32 columns][4 k] bytes. A w4p32 cell holds q + 8 as [16 columns][4 k] bytes, columns
    0..15 in the low nibbles and 16..31 in the high ones. Cells are filled up with q = 0.
    """
    spec.prepacked_size(weight)
    bits = 8 if weight.dtype == torch.int8 else 4
    k, n = spec.matrix_shape(spec.PREPACK, weight)
    cells = _cells(integers(weight, k).long() + 2 ** (bits - 1), 2 ** (bits - 1))
    if bits == 4:
        cells = cells[..., :16, :] | cells[..., 16:, :] << 4
    return torch.cat([_header(bits, k, n), cells.flatten().to(torch.uint8)])


def _cells(matrix: torch.Tensor, padding: int) -> torch.Tensor:
    """[K, N] -> [N / 32, K / 4, 32 columns, 4 k], both axes rounded up."""
    k, n = matrix.shape
    matrix = torch.nn.functional.pad(matrix, (0, -n % spec.CELL_COLUMNS, 0, -k % spec.CELL_K), value=padding)
    return matrix.unflatten(0, (-1, spec.CELL_K)).unflatten(2, (-1, spec.CELL_COLUMNS)).permute(2, 0, 3, 1)


def _header(bits: int, k: int, n: int) -> torch.Tensor:
    header = struct.pack("<8sIIQQ", _MAGIC[bits], 1, bits, k, n).ljust(spec.HEADER_BYTES, b"\0")
    return torch.frombuffer(bytearray(header), dtype=torch.uint8)


def unprepacked(blob: torch.Tensor, op: str = spec.MATMUL, name: str = "weight") -> torch.Tensor:
    """The weight in a blob of weight_quant_prepack, as int8 [K, N]; errors name ``op`` and its argument ``name``."""
    header = bytes(blob[: spec.HEADER_BYTES].tolist())
    if blob.shape[0] < spec.HEADER_BYTES or header[:8] not in _MAGIC.values():
        raise ValueError(
            f"{op}: a uint8 {name} must be a blob of weight_quant_prepack (w4p32 or w8p32), "
            f"got {blob.shape[0]} bytes of something else"
        )
    _, version, bits, k, n = struct.unpack_from("<8sIIQQ", header)
    if version != 1 or _MAGIC.get(bits) != header[:8]:
        raise ValueError(f"{op}: prepacked {name} must be version 1, got version {version} with {bits} bits")
    size = spec.prepacked_bytes(bits, k, n)
    if blob.shape[0] != size:
        raise ValueError(f"{op}: prepacked {name} of K {k} and N {n} must have {size} bytes, got {blob.shape[0]}")
    cells = blob[spec.HEADER_BYTES :].reshape(-(-n // spec.CELL_COLUMNS), -(-k // spec.CELL_K), -1, spec.CELL_K)
    if bits == 4:
        cells = torch.cat([cells & 15, cells >> 4], dim=2)
    matrix = cells.permute(1, 3, 0, 2).flatten(2).flatten(0, 1)[:k, :n]
    return (matrix.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
