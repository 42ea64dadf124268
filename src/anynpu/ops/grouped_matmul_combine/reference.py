# SPDX-License-Identifier: Apache-2.0
"""Oracle of grouped_matmul_combine: exact integer sums, float64, one rounding; and how far from it a kernel may be."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.grouped_matmul_combine.spec import COUNTS, OP, Arguments, output_shape
from anynpu.ops.weight_quant_matmul.reference import decoded_scale, integers

_FLOAT32_ROUNDING = 2.0**-24  # relative error of one float32 operation


@takes(Arguments)
def grouped_matmul_combine(a: Arguments) -> torch.Tensor:
    """``y[row_index[r]] += value(r) * pertoken_scale[r] * logit[r]``, then the rows of shared_input, see ``_value``."""
    y, _, _ = _combined(a)
    return y.float()


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """How far each element of a result may be from the reference, in float64.

    A float32 kernel rounds, for one row of x, each of the G converted sums, their products with the scale, and the
    G + 1 additions with bias and ``rowsum * offset`` (itself a conversion and a product): at most 2 G + 4 roundings on
    the way of any term, then two products with the factors of the row. Each is by 2^-24 of at most the magnitudes of
    the terms together. Adding R rows and the product of the shared row takes R + 2 more. With c the number of
    roundings on the longest way, |error| <= 1.01 c 2^-24 * magnitudes; c < 2^17 keeps (1 + 2^-24)^c below
    1 + 1.01 c 2^-24. The reference is rounded once more.
    """
    _, magnitude, most_rows = _combined(a)
    roundings = 2 * a.scale.shape[1] + 4 + 2 + most_rows + 3 if a.scale.dim() == 3 else 2 + 2 + most_rows + 3
    return 1.01 * roundings * _FLOAT32_ROUNDING * magnitude


def _combined(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, int]:
    """y, the sums of the magnitudes of its terms, and how many rows are added to one of its rows at most."""
    shape = output_shape(a)
    sizes = _group_sizes(a.group_list, a.x.shape[0], a.group_list_type)
    target = _rows_of_y(a.row_index[: sum(sizes)], shape[0])
    y, magnitude = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    first = 0
    for expert, size in enumerate(sizes):
        rows = slice(first, first + size)
        first += size
        value, largest = _value(a, rows, expert)
        factor = torch.ones(size, 1, dtype=torch.float64)
        for factors in (a.pertoken_scale, a.logit):
            if factors is not None:
                factor = factor * factors[rows].double().unsqueeze(1)
        y.index_add_(0, target[rows], value * factor)
        magnitude.index_add_(0, target[rows], largest * factor.abs())
    if a.shared_input is not None:
        rows = slice(a.shared_input_offset, a.shared_input_offset + a.shared_input.shape[0])
        weighted = a.shared_input.double() * torch.tensor(a.shared_input_weight, dtype=torch.float32).double()
        y[rows] += weighted
        magnitude[rows] += weighted.abs()
    most_rows = int(torch.bincount(target).max()) if target.numel() else 0
    return y, magnitude, most_rows


def _group_sizes(group_list: torch.Tensor, m: int, group_list_type: int) -> list[int]:
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


def _value(a: Arguments, rows: slice, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What an expert makes of its rows, and the sum of the magnitudes of the terms.

    int8 weights: ``acc * scale``. int4 weights: ``sum_g (acc_g - 8 * sum_{k in g} W) * scale_g + bias + rowsum(x) *
    offset``: with the documented bias, ``8 * sum_k W * scale``, that is ``sum_g acc_g * scale_g + rowsum(x) * offset``.
    """
    w, x = integers(a.weight[expert], a.x.shape[1]), a.x[rows].double()  # [K, N] and [rows, K]
    if a.weight.dtype == torch.int8:
        value = (x @ w) * a.scale[expert].double()
        return value, value.abs()
    size = x.shape[1] // a.scale.shape[1]  # of a scale group
    value = torch.zeros(x.shape[0], w.shape[1], dtype=torch.float64)
    magnitude = torch.zeros_like(value)
    for group, factors in enumerate(decoded_scale(a.scale.view(torch.int64)[expert])):
        members = slice(group * size, (group + 1) * size)
        term = (x[:, members] @ w[members] - 8 * w[members].sum(0)) * factors
        value += term
        magnitude += term.abs()
    for term in (
        None if a.bias is None else a.bias[expert].double(),
        None if a.offset is None else x.sum(1, keepdim=True) * a.offset[expert].double(),
    ):
        if term is not None:
            value += term
            magnitude += term.abs()
    return value, magnitude
