# SPDX-License-Identifier: Apache-2.0
"""Oracle of quant_matmul: exact integer sums, float64, one rounding; and how far a kernel may be from it."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.quant_matmul.spec import OP, Arguments, is_int4, output_shape, require_int4_rules
from anynpu.ops.weight_quant_matmul.reference import unprepacked
from anynpu.ops.weight_quant_matmul.spec import is_prepacked, is_transposed

EXACT_INT4_K = 16384  # |sum| <= 128 * 8 * K <= 2^24, so that float32 holds it
INT4_BLOCK = 256  # k whose sum is an integer in any case


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


def _with_int8_x1(a: Arguments) -> Arguments:
    return a._replace(x1=int4_values(a.x1)) if a.x1.dtype == torch.int32 else a


def _with_int8_x2(a: Arguments) -> Arguments:
    """The call with x2 as a matrix of int8."""
    x2, k = a.x2, a.x1.shape[-1]
    if is_prepacked(x2):
        x2 = unprepacked(x2, OP, "x2")
        if tuple(x2.shape) != (k, a.n):
            raise ValueError(f"{OP}: prepacked x2 is {tuple(x2.shape)}, but x1 has K {k} and y has N {a.n}")
    elif x2.dtype == torch.int32:
        x2 = int4_values(x2.t()).t() if is_transposed(x2, k) else int4_values(x2)
    return a._replace(x2=x2)


def _grouped(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale + bias before its rounding, and its magnitudes."""
    value = magnitude = torch.zeros((*a.x1.shape[:-1], a.x2.shape[-1]), dtype=torch.float64)
    for group, factor in enumerate(scale_values(a.scale)[0]):
        end = min((group + 1) * a.group_size, a.x2.shape[0])
        for k in range(group * a.group_size, end, INT4_BLOCK):
            part = slice(k, min(k + INT4_BLOCK, end))
            term = exact_sums(a.x1[..., part], a.x2[part]) * factor
            value, magnitude = value + term, magnitude + term.abs()
    if a.offset is not None:
        value, magnitude = value + a.offset.double(), magnitude + a.offset.double().abs()
    if a.pertoken_scale is not None:
        token = a.pertoken_scale.double().reshape(-1, 1)
        value, magnitude = value * token, magnitude * token.abs()
    return (value, magnitude) if a.bias is None else (value + a.bias.double(), magnitude + a.bias.double().abs())


def _unrounded(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """y before its rounding, and the sum of the magnitudes of its terms; both operands in int8."""
    if a.group_size:
        return _grouped(a)
    sums = exact_sums(a.x1, a.x2)
    factor, word_offset = scale_values(a.scale)
    if a.pertoken_scale is not None:
        factor = factor * a.pertoken_scale.double().unsqueeze(-1)
    shift = word_offset if a.offset is None else a.offset.double()
    if a.bias is not None and a.bias.dtype == torch.int32:
        sums = sums + a.bias
    elif a.bias is not None:
        shift = shift + a.bias.double()
    scaled = sums.double() * factor
    return scaled + shift, scaled.abs() + shift.abs()


@takes(Arguments)
def quant_matmul(a: Arguments) -> torch.Tensor:
    """(x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias + offset; int32 output: x1 @ x2 + bias.

    With groups (sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale + float bias.
    """
    if isinstance(a.x1, torch.Tensor) and a.x1.dtype == torch.int32:
        require_int4_rules(a)
        a = _with_int8_x1(a)
    output_shape(a)
    a = _with_int8_x2(a)
    if a.dtype == torch.int32:
        sums = exact_sums(a.x1, a.x2)
        return (sums if a.bias is None else sums + a.bias).int()
    if a.dtype != torch.int8 and a.scale.dtype in (torch.int64, torch.uint64):
        a = a._replace(scale=scale_values(a.scale)[0].float())  # the offset of the word is for int8
    value, _ = _unrounded(a)
    if a.dtype == torch.int8:
        return value.nan_to_num(nan=0.0).round().clamp(-128, 127).to(torch.int8)
    return round_once(value, a.dtype)


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """How far an element may be from the reference.

    Float32 epilogue: the conversion of the sum, two products and two additions round by at most 2^-24 each, relative
    to what they produce, so |error| <= 5 * 2^-24 * (|sum * scale * pts| + |bias| + |offset|) =: e before the last
    rounding. That one adds at most a unit of the output, where e crosses a tie; for int8 a tie within e of the value
    gives one code. With nothing but a scale the 16-bit floats are exact, int32 always is.

    Of int4 weights with groups a term is the exact sum of a block, at most 256 k of a group, times its scale, which
    rounds once; of B blocks each addition rounds once more, and so do those of offset and bias and the product with
    pertoken_scale: at most B + 4 roundings meet a term, |error| <= (B + 4) * 2^-24 * magnitudes. Without groups the
    sums of more than 16384 k are those of B such blocks with a scale of 1, added up in float32: B roundings more.
    """
    a = _with_int8_x1(a)
    k, int4, a = a.x1.shape[-1], is_int4(a), _with_int8_x2(a)
    value, magnitude = _unrounded(a)
    if a.dtype == torch.int32:
        return torch.zeros_like(value)
    floating_bias = a.bias is not None and a.bias.dtype != torch.int32
    exact = not a.group_size and (k <= EXACT_INT4_K or not int4)
    if a.dtype in (torch.float16, torch.bfloat16) and a.pertoken_scale is None and not floating_bias and exact:
        return torch.zeros_like(value)
    error = 5 * 2.0**-24 * magnitude
    if a.group_size:
        error = (_blocks(k, a.group_size) + 4) * 2.0**-24 * magnitude
    elif not exact:
        row = scale_values(a.scale)[0].expand(1, value.shape[-1]).float()
        _, magnitude = _grouped(a._replace(scale=row, group_size=k, offset=None, bias=None))
        error = error + _blocks(k, k) * 2.0**-24 * magnitude
    if a.dtype == torch.int8:
        near_tie = ((value - value.floor()) - 0.5).abs() <= error
        return near_tie.double()
    limits = torch.finfo(a.dtype)
    unit = torch.exp2(torch.floor(torch.log2((value.abs() + error).clamp(min=limits.tiny)))) * limits.eps
    return error + unit


def _blocks(k: int, group_size: int) -> int:
    """How many blocks of at most INT4_BLOCK k, none of which is in two groups."""
    whole, rest = divmod(k, group_size)
    return whole * -(-group_size // INT4_BLOCK) + -(-rest // INT4_BLOCK)
