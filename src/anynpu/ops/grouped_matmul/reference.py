# SPDX-License-Identifier: Apache-2.0
"""Oracle of grouped_matmul: exact integer sums, float64, one rounding; and how far from it a result may be."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.grouped_matmul.spec import Arguments, Group, Mode, group_sizes, results
from anynpu.ops.quant_matmul.reference import round_once, scale_values
from anynpu.ops.weight_quant_matmul.reference import decoded_scale, integers

_FLOAT32_ROUNDING = 2.0**-24  # relative error of one float32 operation


@takes(Arguments)
def grouped_matmul(a: Arguments) -> list[torch.Tensor]:
    """The product of each group of rows with its weight, see ``_value``; rows behind the last group are zero."""
    values, _, mode = _unrounded(a)
    return [_rounded(value, mode.dtype) for value in values]


@takes(Arguments)
def error_bound(a: Arguments) -> tuple[torch.Tensor, ...]:
    """How far each element of the results may be from the reference, in float64.

    Integer sums are exact; int32 results are equal. Every other value goes through at most c float32 roundings, each by
    2^-24 of at most the magnitudes of its terms: c = 2 K + 8 where float32 products are summed (and a kernel that holds
    x in fixed point of 24 bits adds 2^-23 of the largest |x| times the sum of the |weights| of a row), c = 2 G + 8
    where G scaled integer sums are. The last rounding may then fall the other way: the results of value - error and
    value + error bound it.
    """
    values, errors, mode = _unrounded(a)
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


def _unrounded(a: Arguments) -> tuple[list[torch.Tensor], list[torch.Tensor], Mode]:
    """The results before they are rounded, and the errors of a float32 kernel."""
    shapes, mode = results(a)
    if a.split_item in (0, 1):
        tokens = a.per_token_scale or [None] * len(a.x)
        pairs = [_value(_group(a, i, *rows), mode) for i, rows in enumerate(zip(a.x, tokens, strict=True))]
        return [value for value, _ in pairs], [error for _, error in pairs], mode
    rows = torch.cat(list(a.x))
    tokens = torch.cat([tensor.reshape(-1) for tensor in a.per_token_scale]) if a.per_token_scale else None
    value, error = torch.zeros(shapes[0], dtype=torch.float64), torch.zeros(shapes[0], dtype=torch.float64)
    first = 0
    for group, size in enumerate([len(each) for each in a.x] if a.group_list is None else group_sizes(a)):
        part = slice(first, first + size)
        first += size
        own = _group(a, group, rows[part], None if tokens is None else tokens[part])
        value[part], error[part] = _value(own, mode)
    return [value], [error], mode


def _group(a: Arguments, group: int, rows: torch.Tensor, tokens: torch.Tensor | None) -> Group:
    """Rows of x with their per_token_scale, and what belongs to their weight; one tensor of it is for all groups."""
    stacked = a.weight[0].dim() == 3

    def own(tensors: list[torch.Tensor] | None) -> torch.Tensor | None:
        if not tensors:
            return None
        if not stacked:
            return tensors[group]
        return tensors[0] if tensors[0].dim() == 1 else tensors[0][group]

    names = ("weight", "bias", "scale", "antiquant_scale", "antiquant_offset")
    return Group(rows, per_token_scale=tokens, **{name: own(getattr(a, name)) for name in names})


def _value(group: Group, mode: Mode) -> tuple[torch.Tensor, torch.Tensor]:
    """One group before its rounding, and the error of a float32 kernel.

    float: ``x @ w + bias``; antiquant: ``x @ ((w + offset) * scale) + bias``;
    int8: ``(x @ w + int32 bias) * scale * per_token_scale + float bias``;
    int4: ``(sum_g (acc_g - 8 * sum_k w) * scale_g + bias) * per_token_scale``.
    """
    bias, k = group.bias, group.x.shape[-1]
    w = integers(group.weight, k) if mode.name != "float" else group.weight.double()
    x = group.x.double()
    if mode.name == "antiquant":
        w = _dequantised(w, group.antiquant_scale, group.antiquant_offset)
    if mode.name in ("float", "antiquant"):
        addend = torch.zeros(()).double() if bias is None else bias.double()
        error = (2 * k + 8) * _FLOAT32_ROUNDING * (x.abs() @ w.abs() + addend.abs())
        error = error + 2 * _FLOAT32_ROUNDING * x.abs().amax(-1, keepdim=True) * w.abs().sum(0)
        return x @ w + addend, error
    factor = 1.0 if group.per_token_scale is None else group.per_token_scale.double().reshape(-1, 1)
    if mode.name == "int4":
        return _int4_value(x, w, group.scale, bias, factor)
    sums = x @ w
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias.double()
    if group.scale is None:
        return sums, torch.zeros_like(sums)
    scales, offset = (part.reshape(-1) for part in scale_values(group.scale))  # the offset of an int64 word is for int8
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
