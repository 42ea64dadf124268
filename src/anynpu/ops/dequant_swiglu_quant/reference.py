# SPDX-License-Identifier: Apache-2.0
"""Oracle of dequant_swiglu_quant: float64, one rounding to codes; and how far a float32 kernel may be."""

from __future__ import annotations

import torch

from anynpu.ops.dequant_swiglu_quant.spec import DYNAMIC, HALVES, INTERLEAVED_CLAMPED, OP, output_shapes

_U = 2.0**-24  # half a unit in the last place of float32


def _group_of_rows(group_index: torch.Tensor | None, rows: int) -> torch.Tensor:
    """The group of each row that belongs to one."""
    if group_index is None:
        return torch.zeros(rows, dtype=torch.int64)
    counts = group_index.tolist()
    if min(counts) < 0 or sum(counts) > rows:
        raise ValueError(
            f"{OP}: group_index must hold counts whose sum is at most the number of rows, {rows}, got {counts}"
        )
    return torch.arange(len(counts)).repeat_interleave(group_index)


def _by_row(parameter: torch.Tensor | None, group: torch.Tensor, length: int, default: float) -> torch.Tensor:
    """The row of a parameter, (G, length), (G,) or (length,), that each row uses."""
    if parameter is None:
        return torch.full((len(group), 1), default, dtype=torch.float64)
    one_group = parameter.dim() == 1 and parameter.shape[0] == length
    table = parameter.double().reshape(1, -1) if one_group else parameter.double().reshape(parameter.shape[0], -1)
    return table[group if table.shape[0] > 1 else torch.zeros_like(group)]


def _dequantised(x, weight_scale, activation_scale, bias, group) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of the rows that have a group, and how far float32 may be from them."""
    values = x.reshape(-1, x.shape[-1])[: len(group)].double()
    if x.dtype != torch.int32:
        return values, torch.zeros_like(values)
    shift = torch.zeros(1, dtype=torch.float64)
    if bias is not None and bias.dtype == torch.int32:
        values = values + bias.double().reshape(-1)
    elif bias is not None:
        shift = bias.double().reshape(-1)
    scale = _by_row(weight_scale, group, x.shape[-1], 1.0)
    if activation_scale is not None:
        scale = scale * activation_scale.double().reshape(-1, 1)[: len(group)]
    product = values * scale
    # One rounding of the sum, two products, one addition.
    return product + shift, 4 * _U * (product.abs() + shift.abs())


def _split(values: torch.Tensor, swiglu_mode: int, activate_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if swiglu_mode == INTERLEAVED_CLAMPED:
        return values[:, 0::2], values[:, 1::2]
    left, right = values.chunk(2, dim=-1)
    return (left, right) if activate_left else (right, left)


def _activated(gate, linear, gate_error, linear_error, swiglu_mode, limit, alpha, shift):
    """The values before quantisation, and how far float32 may be from them.

    To first order, with s = sigmoid(z): the exponential is right to 2**-22 = 4 U, three roundings follow, so s is to
    7 U of itself, and to 2**-125 where it is cut to 0; z adds |s'| times its own error. Twice that covers the second
    order.
    """
    if swiglu_mode == HALVES:
        alpha, shift = 1.0, 0.0
    else:
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
        linear_error = linear_error + _U * (linear + shift).abs()
    factor = linear + shift
    z_error = abs(alpha) * gate_error + (_U * (alpha * gate).abs() if alpha != 1.0 else 0.0)
    s = torch.sigmoid(alpha * gate)
    s_error = 7 * _U * s + s * (1 - s) * z_error + 2.0**-125
    value = gate * s * factor
    error = (s * factor).abs() * gate_error + (gate * factor).abs() * s_error + (gate * s).abs() * linear_error
    return value, 2 * (error + 2 * _U * value.abs()) + 2.0**-126


def _quotients(x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index, activate_left,
               quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias):  # fmt: skip
    """What is rounded to codes and its error, and the scales and theirs, of the rows that have a group."""
    rows = x.numel() // x.shape[-1] if x.numel() else 0
    group = _group_of_rows(group_index, rows)
    values, error = _dequantised(x, weight_scale, activation_scale, bias, group)
    gate, linear = _split(values, swiglu_mode, activate_left)
    gate_error, linear_error = _split(error, swiglu_mode, activate_left)
    value, error = _activated(gate, linear, gate_error, linear_error, swiglu_mode, clamp_limit, glu_alpha, glu_bias)
    scale = _by_row(quant_scale, group, value.shape[-1], 1.0)
    if quant_mode != DYNAMIC:
        shift = _by_row(quant_offset, group, value.shape[-1], 0.0)
        quotient = value / scale
        return quotient + shift, error / scale.abs() + 2 * _U * (quotient.abs() + shift.abs()), None, None
    value, error = value * scale, error * scale.abs() + _U * (value * scale).abs()
    finite = value.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    row_scale = finite.abs().amax(-1, keepdim=True) / 127
    scale_error = error.nan_to_num(nan=0.0).amax(-1, keepdim=True) / 127 + _U * row_scale
    quotient = torch.where(row_scale == 0, 0.0, value / row_scale)
    relative = torch.where(row_scale == 0, 0.0, scale_error / row_scale)
    quotient_error = torch.where(row_scale == 0, 0.0, error / row_scale) + quotient.abs() * (relative + _U)
    return quotient, quotient_error, row_scale.squeeze(-1), scale_error.squeeze(-1)


def dequant_swiglu_quant(
    x: torch.Tensor,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise, activate one half and multiply by the other, quantise; rows without a group give zeros."""
    arguments = (x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index, activate_left,
                 quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias)  # fmt: skip
    shape, scale_shape = output_shapes(*arguments)
    y, scale = torch.zeros(shape, dtype=torch.int8), torch.zeros(scale_shape)
    if y.numel() == 0:
        return y, scale
    quotient, _, row_scale, _ = _quotients(*arguments)
    y.view(-1, shape[-1])[: len(quotient)] = quotient.nan_to_num(nan=0.0).round().clamp(-128, 127).to(torch.int8)
    if row_scale is not None:
        scale.view(-1)[: len(quotient)] = row_scale.float()
    return y, scale


def error_bound(
    x: torch.Tensor,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the codes: 1 where what is rounded is as near a tie as its own error, else 0. Of the scales: their error."""
    arguments = (x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index, activate_left,
                 quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias)  # fmt: skip
    shape, scale_shape = output_shapes(*arguments)
    codes = torch.zeros(shape, dtype=torch.float64)
    scales = torch.zeros(scale_shape, dtype=torch.float64)
    if codes.numel() == 0:
        return codes, scales
    quotient, quotient_error, row_scale, scale_error = _quotients(*arguments)
    near_tie = (quotient - quotient.floor() - 0.5).abs() <= quotient_error
    codes.view(-1, shape[-1])[: len(quotient)] = near_tie.double()
    if row_scale is not None:
        scales.view(-1)[: len(quotient)] = scale_error + _U * row_scale
    return codes, scales
