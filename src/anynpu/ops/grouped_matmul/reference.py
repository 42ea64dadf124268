# SPDX-License-Identifier: Apache-2.0
"""Oracle of grouped_matmul: exact integer sums, float64, one rounding; and how far from it a result may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu.ops.grouped_matmul.spec import CUMULATIVE, Mode, group_count, group_sizes, results
from anynpu.ops.quant_matmul.reference import round_once, scale_values
from anynpu.ops.weight_quant_matmul.reference import decoded_scale, integers

_FLOAT32_ROUNDING = 2.0**-24  # relative error of one float32 operation


def grouped_matmul(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    group_list: torch.Tensor | None = None,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    antiquant_scale: Sequence[torch.Tensor] | None = None,
    antiquant_offset: Sequence[torch.Tensor] | None = None,
    per_token_scale: Sequence[torch.Tensor] | None = None,
    split_item: int = 0,
    group_type: int = -1,
    group_list_type: int = CUMULATIVE,
    output_dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """The product of each group of rows with its weight, see ``_value``; rows behind the last group are zero."""
    lists = (bias, scale, antiquant_scale, antiquant_offset, per_token_scale)
    values, _, mode = _unrounded(x, weight, group_list, lists, split_item, group_type, group_list_type, output_dtype)
    return [_rounded(value, mode.dtype) for value in values]


def error_bound(
    x,
    weight,
    group_list=None,
    bias=None,
    scale=None,
    antiquant_scale=None,
    antiquant_offset=None,
    per_token_scale=None,
    split_item=0,
    group_type=-1,
    group_list_type=CUMULATIVE,
    output_dtype=None,
) -> tuple[torch.Tensor, ...]:
    """How far each element of the results may be from the reference, in float64.

    Integer sums are exact; int32 results are equal. Every other value goes through at most c float32 roundings, each by
    2^-24 of at most the magnitudes of its terms: c = 2 K + 8 where float32 products are summed (and a kernel that holds
    x in fixed point of 24 bits adds 2^-23 of the largest |x| times the sum of the |weights| of a row), c = 2 G + 8
    where G scaled integer sums are. The last rounding may then fall the other way: the results of value - error and
    value + error bound it.
    """
    lists = (bias, scale, antiquant_scale, antiquant_offset, per_token_scale)
    values, errors, mode = _unrounded(
        x, weight, group_list, lists, split_item, group_type, group_list_type, output_dtype
    )
    bounds = []
    for value, error in zip(values, errors, strict=True):
        if mode.dtype == torch.int32:
            bounds.append(torch.zeros_like(value))
            continue
        middle = _rounded(value, mode.dtype).double()
        ends = [_rounded(value + side * error, mode.dtype).double() for side in (-1, 1)]
        bounds.append(torch.maximum((middle - ends[0]).abs(), (ends[1] - middle).abs()).nan_to_num(nan=0))
    return tuple(bounds)


def _rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype in (torch.float16, torch.bfloat16):
        return round_once(value, dtype)
    if dtype == torch.int8:
        return value.nan_to_num(nan=0.0).round().clamp(-128, 127).to(dtype)
    return value.to(dtype)


def _unrounded(x, weight, group_list, lists, split_item, group_type, group_list_type, output_dtype):
    shapes, mode = results(x, weight, group_list, *lists, split_item, group_type, group_list_type, output_dtype)
    if split_item in (0, 1):
        pairs = [_value(x[i], weight[i], [t[i] if t else None for t in lists], mode) for i in range(len(x))]
        return [value for value, _ in pairs], [error for _, error in pairs], mode
    rows = torch.cat(list(x))
    *parameters, per_token = lists
    tokens = torch.cat([tensor.reshape(-1) for tensor in per_token]) if per_token else None
    groups = group_count(weight)
    sizes = [len(each) for each in x]
    if group_list is not None:
        sizes = group_sizes(group_list, rows.shape[0], group_list_type, groups)
    stacked = weight[0].dim() == 3
    value, error = torch.zeros(shapes[0], dtype=torch.float64), torch.zeros(shapes[0], dtype=torch.float64)
    first = 0
    for group, size in enumerate(sizes):
        part = slice(first, first + size)
        first += size
        own = [
            None if not t else t[group] if not stacked else t[0] if t[0].dim() == 1 else t[0][group] for t in parameters
        ]
        matrix = weight[0][group] if stacked else weight[group]
        value[part], error[part] = _value(rows[part], matrix, [*own, None if tokens is None else tokens[part]], mode)
    return [value], [error], mode


def _value(x: torch.Tensor, weight: torch.Tensor, parameters: list, mode: Mode) -> tuple[torch.Tensor, torch.Tensor]:
    """One group before its rounding, and the error of a float32 kernel.

    float: ``x @ w + bias``; antiquant: ``x @ ((w + offset) * scale) + bias``;
    int8: ``(x @ w + int32 bias) * scale * per_token_scale + float bias``;
    int4: ``(sum_g (acc_g - 8 * sum_k w) * scale_g + bias) * per_token_scale``.
    """
    bias, scale, antiquant_scale, antiquant_offset, per_token_scale = parameters
    k = x.shape[-1]
    w = integers(weight, k) if mode.name != "float" else weight.double()
    x = x.double()
    if mode.name == "antiquant":
        w = _dequantised(w, antiquant_scale, antiquant_offset)
    if mode.name in ("float", "antiquant"):
        addend = torch.zeros(()).double() if bias is None else bias.double()
        error = (2 * k + 8) * _FLOAT32_ROUNDING * (x.abs() @ w.abs() + addend.abs())
        error = error + 2 * _FLOAT32_ROUNDING * x.abs().amax(-1, keepdim=True) * w.abs().sum(0)
        return x @ w + addend, error
    factor = 1.0 if per_token_scale is None else per_token_scale.double().reshape(-1, 1)
    if mode.name == "int4":
        return _int4_value(x, w, scale, bias, factor)
    sums = x @ w
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias.double()
    if scale is None:
        return sums, torch.zeros_like(sums)
    scales, offset = (part.reshape(-1) for part in scale_values(scale))  # the offset of an int64 word is for int8
    value = sums * scales * factor + offset
    magnitude = value.abs() + offset.abs()
    if bias is not None and bias.dtype != torch.int32:
        value, magnitude = value + bias.double(), magnitude + bias.double().abs()
    return value, 10 * _FLOAT32_ROUNDING * magnitude


def _dequantised(w: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    groups = scale.shape[0] if scale.dim() == 2 else 1
    size = w.shape[0] // groups

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double().reshape(groups, -1).repeat_interleave(size, 0)

    return (w if offset is None else w + spread(offset)) * spread(scale)


def _int4_value(x, w, scale, bias, factor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = scale.shape[0]
    size = w.shape[0] // groups
    value = torch.zeros(x.shape[0], w.shape[1], dtype=torch.float64)
    magnitude = torch.zeros_like(value)
    for group, factors in enumerate(decoded_scale(scale)):
        members = slice(group * size, (group + 1) * size)
        term = (x[:, members] @ w[members] - 8 * w[members].sum(0)) * factors
        value, magnitude = value + term, magnitude + term.abs()
    if bias is not None:
        value, magnitude = value + bias.double(), magnitude + bias.double().abs()
    error = (2 * groups + 8) * _FLOAT32_ROUNDING * magnitude
    return value * factor, error * torch.as_tensor(factor).abs()
