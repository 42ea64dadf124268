# SPDX-License-Identifier: Apache-2.0
"""Oracle of grouped_matmul_combine: exact integer sums, float64, one rounding; and how far from it a kernel may be."""

from __future__ import annotations

import torch

from anynpu.ops.grouped_matmul_combine.spec import COUNTS, OP, output_shape
from anynpu.ops.weight_quant_matmul.reference import decoded_scale, integers

_FLOAT32_ROUNDING = 2.0**-24  # relative error of one float32 operation


def grouped_matmul_combine(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    group_list: torch.Tensor,
    row_index: torch.Tensor,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
    shared_input: torch.Tensor | None = None,
    shared_input_weight: float = 1.0,
    shared_input_offset: int = 0,
    output_bs: int = 0,
    group_list_type: int = COUNTS,
) -> torch.Tensor:
    """``y[row_index[r]] += value(r) * pertoken_scale[r] * logit[r]``, then the rows of shared_input, see ``_value``."""
    arguments = (x, weight, scale, group_list, row_index, bias, offset, pertoken_scale, logit, shared_input)
    rest = (shared_input_weight, shared_input_offset, output_bs, group_list_type)
    return _combined(*arguments, *rest, with_bound=False)[0].float()


def error_bound(*arguments, **options) -> torch.Tensor:
    """How far each element of a result may be from the reference, in float64.

    A float32 kernel rounds, for one row of x, each of the G converted sums, their products with the scale, and the
    G + 1 additions with bias and ``rowsum * offset`` (itself a conversion and a product): at most 2 G + 4 roundings on
    the way of any term, then two products with the factors of the row. Each is by 2^-24 of at most the magnitudes of
    the terms together. Adding R rows and the product of the shared row takes R + 2 more. With c the number of
    roundings on the longest way, |error| <= 1.01 c 2^-24 * magnitudes; c < 2^17 keeps (1 + 2^-24)^c below
    1 + 1.01 c 2^-24. The reference is rounded once more.
    """
    return _combined(*arguments, **options, with_bound=True)[1]


def _combined(
    x,
    weight,
    scale,
    group_list,
    row_index,
    bias=None,
    offset=None,
    pertoken_scale=None,
    logit=None,
    shared_input=None,
    shared_input_weight=1.0,
    shared_input_offset=0,
    output_bs=0,
    group_list_type=COUNTS,
    *,
    with_bound,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = output_shape(
        x, weight, scale, group_list, row_index, bias, offset, pertoken_scale, logit, shared_input,
        shared_input_weight, shared_input_offset, output_bs, group_list_type,
    )  # fmt: skip
    sizes = group_sizes(group_list, x.shape[0], group_list_type)
    target = _rows_of_y(row_index[: sum(sizes)], shape[0])
    y, magnitude = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    first = 0
    for expert, size in enumerate(sizes):
        rows = slice(first, first + size)
        first += size
        value, largest = _value(x[rows], weight, scale, bias, offset, expert)
        factor = torch.ones(size, 1, dtype=torch.float64)
        for factors in (pertoken_scale, logit):
            if factors is not None:
                factor = factor * factors[rows].double().unsqueeze(1)
        y.index_add_(0, target[rows], value * factor)
        magnitude.index_add_(0, target[rows], largest * factor.abs())
    if shared_input is not None:
        rows = slice(shared_input_offset, shared_input_offset + shared_input.shape[0])
        weighted = shared_input.double() * torch.tensor(shared_input_weight, dtype=torch.float32).double()
        y[rows] += weighted
        magnitude[rows] += weighted.abs()
    if not with_bound:
        return y, magnitude
    most_rows = torch.bincount(target, minlength=1).max() if target.numel() else 0
    roundings = 2 * scale.shape[1] + 4 + 2 + most_rows + 3 if scale.dim() == 3 else 2 + 2 + most_rows + 3
    return y, 1.01 * roundings * _FLOAT32_ROUNDING * magnitude


def group_sizes(group_list: torch.Tensor, m: int, group_list_type: int) -> list[int]:
    """How many rows of x each group has."""
    sizes, end = [], 0
    for index, entry in enumerate(group_list.tolist()):
        counts = group_list_type == COUNTS
        least, most = (0, m - end) if counts else (end, m)
        if not least <= entry <= most:
            raise ValueError(
                f"{OP}: group_list[{index}] must be in [{least}, {most}] ({'counts' if counts else 'running sums'}, "
                f"x has {m} rows), got {entry}"
            )
        sizes.append(entry if counts else entry - end)
        end += sizes[-1]
    return sizes


def _rows_of_y(row_index: torch.Tensor, batch: int) -> torch.Tensor:
    for index, row in enumerate(row_index.tolist()):
        if not (0 <= row < batch and row == int(row)):
            raise ValueError(f"{OP}: row_index[{index}] must be a row of y, in [0, {batch}), got {row:.17g}")
    return row_index.long()


def _value(x, weight, scale, bias, offset, expert) -> tuple[torch.Tensor, torch.Tensor]:
    """What an expert makes of its rows, and the sum of the magnitudes of the terms.

    int8 weights: ``acc * scale``. int4 weights: ``sum_g (acc_g - 8 * sum_{k in g} W) * scale_g + bias + rowsum(x) *
    offset``: with the documented bias, ``8 * sum_k W * scale``, that is ``sum_g acc_g * scale_g + rowsum(x) * offset``.
    """
    w = integers(weight[expert], x.shape[1])  # [K, N]
    x = x.double()
    if weight.dtype == torch.int8:
        value = (x @ w) * scale[expert].double()
        return value, value.abs()
    groups, k = scale.shape[1], x.shape[1]
    size = k // groups
    value = torch.zeros(x.shape[0], w.shape[1], dtype=torch.float64)
    magnitude = torch.zeros_like(value)
    for group, factors in enumerate(decoded_scale(scale.view(torch.int64)[expert])):
        members = slice(group * size, (group + 1) * size)
        term = (x[:, members] @ w[members] - 8 * w[members].sum(0)) * factors
        value += term
        magnitude += term.abs()
    for term in (
        None if bias is None else bias[expert].double(),
        None if offset is None else x.sum(1, keepdim=True) * offset[expert].double(),
    ):
        if term is not None:
            value += term
            magnitude += term.abs()
    return value, magnitude
