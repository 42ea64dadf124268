# SPDX-License-Identifier: Apache-2.0
"""Oracle of dequant_swiglu_quant: float64, one rounding to codes; and how far a float32 kernel may be."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.dequant_swiglu_quant.spec import DYNAMIC, HALVES, INTERLEAVED_CLAMPED, OP, Arguments, output_shapes

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


def _dequantised(a: Arguments, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of the rows that have a group, and how far float32 may be from them."""
    values = a.x.reshape(-1, a.x.shape[-1])[: len(group)].double()
    if a.x.dtype != torch.int32:
        return values, torch.zeros_like(values)
    shift = torch.zeros(1, dtype=torch.float64)
    if a.bias is not None and a.bias.dtype == torch.int32:
        values = values + a.bias.double().reshape(-1)
    elif a.bias is not None:
        shift = a.bias.double().reshape(-1)
    scale = _by_row(a.weight_scale, group, a.x.shape[-1], 1.0)
    if a.activation_scale is not None:
        scale = scale * a.activation_scale.double().reshape(-1, 1)[: len(group)]
    product = values * scale
    # One rounding of the sum, two products, one addition.
    return product + shift, 4 * _U * (product.abs() + shift.abs())


def _split(a: Arguments, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row what is activated, and what that is multiplied by."""
    if a.swiglu_mode == INTERLEAVED_CLAMPED:
        return values[:, 0::2], values[:, 1::2]
    left, right = values.chunk(2, dim=-1)
    return (left, right) if a.activate_left else (right, left)


def _activated(a: Arguments, values: torch.Tensor, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values before quantisation, and how far float32 may be from them.

    To first order, with s = sigmoid(z): the exponential is right to 2**-22 = 4 U, three roundings follow, so s is to
    7 U of itself, and to 2**-125 where it is cut to 0; z adds |s'| times its own error. Twice that covers the second
    order.
    """
    (gate, linear), (gate_error, linear_error) = _split(a, values), _split(a, error)
    alpha, shift = (1.0, 0.0) if a.swiglu_mode == HALVES else (a.glu_alpha, a.glu_bias)
    if a.swiglu_mode != HALVES:
        gate, linear = gate.clamp(max=a.clamp_limit), linear.clamp(-a.clamp_limit, a.clamp_limit)
        linear_error = linear_error + _U * (linear + shift).abs()
    factor = linear + shift
    z_error = abs(alpha) * gate_error + (_U * (alpha * gate).abs() if alpha != 1.0 else 0.0)
    s = torch.sigmoid(alpha * gate)
    s_error = 7 * _U * s + s * (1 - s) * z_error + 2.0**-125
    value = gate * s * factor
    error = (s * factor).abs() * gate_error + (gate * factor).abs() * s_error + (gate * s).abs() * linear_error
    return value, 2 * (error + 2 * _U * value.abs()) + 2.0**-126


def _quotients(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What is rounded to codes and its error, and the scales and theirs, of the rows that have a group."""
    rows = a.x.numel() // a.x.shape[-1] if a.x.numel() else 0
    group = _group_of_rows(a.group_index, rows)
    value, error = _activated(a, *_dequantised(a, group))
    scale = _by_row(a.quant_scale, group, value.shape[-1], 1.0)
    if a.quant_mode != DYNAMIC:
        shift = _by_row(a.quant_offset, group, value.shape[-1], 0.0)
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


@takes(Arguments)
def dequant_swiglu_quant(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise, activate one half and multiply by the other, quantise; rows without a group give zeros."""
    shape, scale_shape = output_shapes(a)
    y, scale = torch.zeros(shape, dtype=torch.int8), torch.zeros(scale_shape)
    if y.numel() == 0:
        return y, scale
    quotient, _, row_scale, _ = _quotients(a)
    y.view(-1, shape[-1])[: len(quotient)] = quotient.nan_to_num(nan=0.0).round().clamp(-128, 127).to(torch.int8)
    if row_scale is not None:
        scale.view(-1)[: len(quotient)] = row_scale.float()
    return y, scale


@takes(Arguments)
def error_bound(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the codes: 1 where what is rounded is as near a tie as its own error, else 0. Of the scales: their error."""
    shape, scale_shape = output_shapes(a)
    codes = torch.zeros(shape, dtype=torch.float64)
    scales = torch.zeros(scale_shape, dtype=torch.float64)
    if codes.numel() == 0:
        return codes, scales
    quotient, quotient_error, row_scale, scale_error = _quotients(a)
    near_tie = (quotient - quotient.floor() - 0.5).abs() <= quotient_error
    codes.view(-1, shape[-1])[: len(quotient)] = near_tie.double()
    if row_scale is not None:
        scales.view(-1)[: len(quotient)] = scale_error + _U * row_scale
    return codes, scales
