# SPDX-License-Identifier: Apache-2.0
"""Oracle of quant_matmul: exact integer sums, float64, one rounding; and how far a kernel may be from it."""

from __future__ import annotations

import torch

from anynpu.ops.quant_matmul.int4 import GROUP, applies, require_group_rules, require_int4_rules
from anynpu.ops.quant_matmul.spec import OP, output_shape
from anynpu.ops.weight_quant_matmul.spec import is_transposed, matrix_shape


def exact_sums(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """x1 @ x2 as int64; float64 products and sums of int8 are exact far beyond any K."""
    return torch.matmul(x1.double(), x2.double()).long()


def scale_values(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset as float64: a 64-bit word holds float32 bits low, a signed 9-bit offset at bit 37."""
    if scale.dtype not in (torch.int64, torch.uint64):
        return scale.double(), torch.zeros(scale.shape, dtype=torch.float64)
    words = scale.view(torch.int64)
    offset = words >> 37 & 511
    bits = (words & 0xFFFFFFFF).to(torch.uint32).view(torch.float32)
    return bits.double(), torch.where(offset < 256, offset, offset - 512).double()


def round_once(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to a float with a single rounding: to 16 bits torch goes through float32 and would round twice.

    Rounding to odd on the way makes the second rounding right: the float32 gets an odd last bit unless it is exact.
    """
    nearest = value.float()
    if dtype == torch.float32:
        return nearest
    bits = nearest.view(torch.int32)
    odd = (bits & 1) == 1
    toward = torch.where(value.abs() > nearest.double().abs(), 1, -1)
    exact = nearest.double() == value
    fixed = torch.where(exact | odd | ~value.isfinite(), bits, bits + toward.int()).view(torch.float32)
    return fixed.to(dtype)


def int4_values(words: torch.Tensor) -> torch.Tensor:
    """``[..., 8 C]`` of int32 ``[..., C]``: the low four bits come first, and are signed."""
    nibbles = words.unsqueeze(-1) >> torch.arange(0, 32, 4) & 15
    return torch.where(nibbles < 8, nibbles, nibbles - 16).flatten(-2).to(torch.int8)


def int8_operands(x1: torch.Tensor, x2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x1 and x2 with their int4 values apart."""
    x1 = int4_values(x1) if x1.dtype == torch.int32 else x1
    matrix_shape(OP, x2, x1.shape[-1])
    return x1, int4_values(x2.t()).t() if is_transposed(x2, x1.shape[-1]) else int4_values(x2)


def grouped(x1, x2, scale, offset=None, pertoken_scale=None) -> torch.Tensor:
    """(sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale before its rounding."""
    factors = scale_values(scale)[0]
    parts = [slice(k, k + GROUP) for k in range(0, x2.shape[0], GROUP)]
    value = sum(exact_sums(x1[..., part], x2[part]) * factor for part, factor in zip(parts, factors, strict=True))
    value = value if offset is None else value + offset.double()
    return value if pertoken_scale is None else value * pertoken_scale.double().reshape(-1, 1)


def unrounded(x1, x2, scale, *, offset=None, pertoken_scale=None, bias=None) -> tuple[torch.Tensor, torch.Tensor]:
    """y before its rounding, and the sum of the magnitudes of its terms."""
    sums = exact_sums(x1, x2)
    factor, word_offset = scale_values(scale)
    if pertoken_scale is not None:
        factor = factor * pertoken_scale.double().unsqueeze(-1)
    shift = word_offset if offset is None else offset.double()
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias
    elif bias is not None:
        shift = shift + bias.double()
    scaled = sums.double() * factor
    return scaled + shift, scaled.abs() + shift.abs()


def quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    group_size: int = 0,
) -> torch.Tensor:
    """(x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias + offset; int32 output: x1 @ x2 + bias."""
    if applies(x1, x2, group_size):
        require_int4_rules(x1, x2, output_dtype, group_size)
        x1, x2 = int8_operands(x1, x2)
    if group_size:
        require_group_rules(x1, x2, scale, offset, pertoken_scale, bias, group_size)
        return round_once(grouped(x1, x2, scale, offset, pertoken_scale), output_dtype)
    output_shape(x1, x2, scale, offset, pertoken_scale, bias, output_dtype)
    dtype = output_dtype or torch.int8
    if dtype == torch.int32:
        sums = exact_sums(x1, x2)
        return (sums if bias is None else sums + bias).int()
    if dtype != torch.int8 and scale.dtype in (torch.int64, torch.uint64):
        scale = scale_values(scale)[0].float()  # the offset of the word is for int8
    value, _ = unrounded(x1, x2, scale, offset=offset, pertoken_scale=pertoken_scale, bias=bias)
    if dtype == torch.int8:
        return value.nan_to_num(nan=0.0).round().clamp(-128, 127).to(torch.int8)
    return round_once(value, dtype)


def error_bound(x1, x2, scale, *, offset=None, pertoken_scale=None, bias=None, output_dtype=None) -> torch.Tensor:
    """How far an element may be from the reference.

    Float32 epilogue: the conversion of the sum, two products and two additions round by at most 2^-24 each, relative
    to what they produce, so |error| <= 5 * 2^-24 * (|sum * scale * pts| + |bias| + |offset|) =: e before the last
    rounding. That one adds at most a unit of the output, where e crosses a tie; for int8 a tie within e of the value
    gives one code. With nothing but a scale the 16-bit floats are exact, int32 always is.
    """
    value, magnitude = unrounded(x1, x2, scale, offset=offset, pertoken_scale=pertoken_scale, bias=bias)
    dtype = output_dtype or torch.int8
    if dtype == torch.int32:
        return torch.zeros_like(value)
    floating_bias = bias is not None and bias.dtype != torch.int32
    if dtype in (torch.float16, torch.bfloat16) and pertoken_scale is None and not floating_bias:
        return torch.zeros_like(value)
    error = 5 * 2.0**-24 * magnitude
    if dtype == torch.int8:
        near_tie = ((value - value.floor()) - 0.5).abs() <= error
        return near_tie.double()
    limits = torch.finfo(dtype)
    unit = torch.exp2(torch.floor(torch.log2((value.abs() + error).clamp(min=limits.tiny)))) * limits.eps
    return error + unit
