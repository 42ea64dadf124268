# SPDX-License-Identifier: Apache-2.0
"""CUDA kernel of dequant_swiglu_quant: a program for each row, which it reads once unless the row is long."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import launch, power_of_two, rounded
from anynpu._triton_groups import bounds_of, groups_of, rows_of_groups
from anynpu.ops.dequant_swiglu_quant.spec import DYNAMIC, HALVES, INTERLEAVED_CLAMPED, OP, Arguments, output_shapes
from anynpu.ops.dynamic_quant.triton import magnitude

_GROUPS = _device_errors.new_rule(OP, "group_index", "must not be negative, nor go beyond the rows of x")
_MOST_AT_ONCE = 4096  # results of a row

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN2_HIGH = tl.constexpr(0.693359375)  # few bits, so that its product with a small integer is exact
_LN2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def _sigmoid(z):
    """To 7 units of 2**-24, and 0 below -88. The exponential of the hardware is only near 0 that exact."""
    power = tl.minimum(tl.maximum(-z, -88.0), 88.0)
    whole = tl.floor(power * _LOG2_E + 0.5)
    rest = (power - whole * _LN2_HIGH) - whole * _LN2_LOW
    two_to_whole = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(z < -88.0, 0.0, tl.div_rn(1.0, 1.0 + tl.exp2(rest * _LOG2_E) * two_to_whole))


@triton.jit
def _dequantised(x_row, column, inside, column_stride, weight_scale_row, row_scale, bias_ptr, BIAS: tl.constexpr):
    """Columns of a row of x in float32."""
    x = tl.load(x_row + column.to(tl.int64) * column_stride, mask=inside, other=0)
    if x.dtype != tl.int32:
        return x.to(tl.float32)
    else:
        integer: tl.constexpr = BIAS and bias_ptr.dtype.element_ty == tl.int32
        if integer:
            x = x.to(tl.int64) + tl.load(bias_ptr + column, mask=inside, other=0)
        value = x.to(tl.float32) * tl.load(weight_scale_row + column, mask=inside, other=0.0) * row_scale
        if BIAS and not integer:
            value += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        return value


@triton.jit
def _parameter(row, place, inside, VALUES: tl.constexpr):
    """Of results of a row: each its own value, or with VALUES 1 all the same."""
    return tl.load(row + (place * 0 if VALUES == 1 else place), mask=inside, other=1.0).to(tl.float32)


@triton.jit
def _activated(x_row, place, H, column_stride, weight_scale_row, row_scale, bias_ptr, limit, alpha, shift,
               BIAS: tl.constexpr, GATE: tl.constexpr, CLAMPED: tl.constexpr):  # fmt: skip
    """The results of a row at ``place`` before quantisation, 0 behind the row."""
    inside = place < H
    if GATE == "even":
        gates, others = 2 * place, 2 * place + 1
    elif GATE == "left":
        gates, others = place, H + place
    else:
        gates, others = H + place, place
    gate = _dequantised(x_row, gates, inside, column_stride, weight_scale_row, row_scale, bias_ptr, BIAS)
    other = _dequantised(x_row, others, inside, column_stride, weight_scale_row, row_scale, bias_ptr, BIAS)
    z = gate
    if CLAMPED:
        gate = tl.minimum(gate, limit, propagate_nan=tl.PropagateNan.ALL)
        other = tl.minimum(other, limit, propagate_nan=tl.PropagateNan.ALL)
        other = tl.maximum(other, -limit, propagate_nan=tl.PropagateNan.ALL) + shift
        z = alpha * gate
    return tl.where(inside, gate * _sigmoid(z) * other, 0.0)


@triton.jit
def _row_kernel(x_ptr, weight_scale_ptr, row_scale_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, bounds_ptr, y_ptr,
                scale_ptr, H, row_stride, column_stride, weight_scale_group, quant_scale_group, limit, alpha, shift,
                ROW_SCALE: tl.constexpr, BIAS: tl.constexpr, QUANT: tl.constexpr, OFFSET: tl.constexpr,
                GATE: tl.constexpr, CLAMPED: tl.constexpr, PER_ROW: tl.constexpr, GROUPED: tl.constexpr,
                G: tl.constexpr, GROUPS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One row, of more than BLOCK results if LONG. PER_ROW: quantised with the scale that its largest result needs.

    QUANT, OFFSET: 0 none, 1 for all results, 2 one each.
    """
    row, group = tl.program_id(0).to(tl.int64), tl.zeros((), tl.int64)
    if GROUPED:
        _, end = rows_of_groups(bounds_ptr, G, GROUPS)
        group += tl.sum(((end <= row) & (tl.arange(0, GROUPS) < G)).to(tl.int32), axis=0)
    y_row, scale = y_ptr + row * H, 0.0
    if group < G:
        x_row = x_ptr + row * row_stride
        weight_scale_row = weight_scale_ptr + group * weight_scale_group
        quant_scale_row = quant_scale_ptr + group * quant_scale_group
        row_scale = tl.load(row_scale_ptr + row) if ROW_SCALE else 1.0
        value, divisor = tl.zeros((BLOCK,), tl.float32), 1.0
        if PER_ROW:
            largest = value
            for first in range(0, H, BLOCK):
                place = first + tl.arange(0, BLOCK)
                value = _activated(x_row, place, H, column_stride, weight_scale_row, row_scale, bias_ptr, limit, alpha,
                                   shift, BIAS, GATE, CLAMPED)  # fmt: skip
                if QUANT > 0:
                    value *= _parameter(quant_scale_row, place, place < H, QUANT)
                largest = tl.maximum(largest, magnitude(value))
            scale = tl.div_rn(tl.max(largest, axis=0), 127.0)
            divisor = tl.where(scale == 0.0, 1.0, scale)  # of values that are 0 or NaN
        for first in range(0, H, BLOCK):
            place = first + tl.arange(0, BLOCK)
            if LONG or not PER_ROW:
                value = _activated(x_row, place, H, column_stride, weight_scale_row, row_scale, bias_ptr, limit, alpha,
                                   shift, BIAS, GATE, CLAMPED)  # fmt: skip
                if PER_ROW and QUANT > 0:
                    value *= _parameter(quant_scale_row, place, place < H, QUANT)
            code = value
            if PER_ROW:
                code = tl.div_rn(value, divisor)
            elif QUANT > 0:
                code = tl.div_rn(value, _parameter(quant_scale_row, place, place < H, QUANT))
            if OFFSET > 0:
                code += _parameter(quant_offset_ptr, place, place < H, OFFSET)
            tl.store(y_row + place, rounded(code, tl.int8), mask=place < H)
    else:
        for first in range(0, H, BLOCK):
            place = first + tl.arange(0, BLOCK)
            tl.store(y_row + place, tl.zeros((BLOCK,), tl.int8), mask=place < H)
    tl.store(scale_ptr + row, scale)


@takes(Arguments)
def dequant_swiglu_quant(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``anynpu.dequant_swiglu_quant``; a wrong group_index is told by ``anynpu.check_device_errors``."""
    shape, scale_shape = output_shapes(a)
    y, scale = a.x.new_empty(shape, dtype=torch.int8), a.x.new_empty(scale_shape, dtype=torch.float32)
    if y.numel() == 0:
        return y, scale.zero_()
    rows, results = scale.numel(), shape[-1]
    groups = 1 if a.group_index is None else a.group_index.shape[0]
    bounds = scale if a.group_index is None else bounds_of(a.group_index, rows, _GROUPS, counts=True)
    matrix, block = a.x.reshape(rows, -1), power_of_two(results, 16, _MOST_AT_ONCE)
    parameters = [a.weight_scale, a.activation_scale, a.bias, a.quant_scale, a.quant_offset]
    present = [scale if value is None else value.contiguous() for value in parameters]  # what is absent is not read
    quant, offset = (_values(value, groups, results) for value in (a.quant_scale, a.quant_offset))
    gate = "even" if a.swiglu_mode == INTERLEAVED_CLAMPED else "left" if a.activate_left else "right"
    launch(
        _row_kernel, rows, matrix, *present, bounds, y, scale, results, *matrix.stride(), 2 * results,
        results if quant == 2 else 1, a.clamp_limit, a.glu_alpha, a.glu_bias, ROW_SCALE=a.activation_scale is not None,
        BIAS=a.bias is not None, QUANT=quant, OFFSET=offset, GATE=gate, CLAMPED=a.swiglu_mode != HALVES,
        PER_ROW=a.quant_mode == DYNAMIC, GROUPED=a.group_index is not None, LONG=results > block, BLOCK=block,
        num_warps=max(1, min(block // 256, 16)), **groups_of(groups),
    )  # fmt: skip
    return y, scale


def _values(parameter: torch.Tensor | None, groups: int, results: int) -> int:
    """How many values a parameter has for each group: 0 none, 1 one, 2 one for each result."""
    if parameter is None:
        return 0
    return 2 if parameter.numel() == groups * results else 1
