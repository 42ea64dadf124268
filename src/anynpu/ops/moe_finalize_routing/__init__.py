# SPDX-License-Identifier: Apache-2.0
"""Brings the rows that experts computed back to their tokens and adds them up."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.moe_finalize_routing import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def moe_finalize_routing(
    expanded_rows: torch.Tensor,
    skip1: torch.Tensor | None,
    skip2: torch.Tensor | None,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    row_idx: torch.Tensor,
    expert_idx: torch.Tensor | None = None,
    drop_pad_mode: int = 0,
    k: int = 1,
) -> torch.Tensor:
    """``out[n] = skip1[n] + skip2[n] + sum_j scales[n, j] * (row(v) + bias[expert_idx[n, j]])``.

    Computed in float32, the skips first, then j ascending; one rounding at the end.

    Args:
        expanded_rows: float32, float16 or bfloat16 ``[rows, H]`` or ``[E, C, H]``, whose first axes count as one.
        skip1, skip2: ``[N, H]`` of the same dtype, or None: 0.
        bias: ``[E, H]`` of the same dtype, or None: 0; it counts where there is no row too.
        scales: ``[N, K]`` float, or None: 1, with ``K = k``.
        row_idx: int32 ``[N * K]``, the row v of each choice; -1: a row of zeros.
        expert_idx: int32 ``[N, K]``, needed with bias.
        drop_pad_mode: 0, 1: choice j of token n is at ``row_idx[j * N + n]``; 2, 3: at ``row_idx[n * K + j]``, as
            :func:`anynpu.moe_init_routing` with row_idx_type 0 returns it.
        k: K where there are no scales.

    Returns:
        ``[N, H]`` in the dtype of the rows.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, modes, or indices of rows or experts that do not exist.

    Source: torch_npu.npu_moe_finalize_routing.

    >>> import torch, anynpu
    >>> rows, index = torch.tensor([[1.0], [2.0], [4.0], [8.0]]), torch.tensor([3, 0, -1, 2], dtype=torch.int32)
    >>> scales = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    >>> anynpu.moe_finalize_routing(rows, None, None, None, scales, index, drop_pad_mode=2).flatten().tolist()
    [8.5, 2.0]
    """
    return _op(expanded_rows, skip1, skip2, bias, scales, row_idx, expert_idx, drop_pad_mode, k)
