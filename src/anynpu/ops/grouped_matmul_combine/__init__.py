# SPDX-License-Identifier: Apache-2.0
"""Matrix products of the experts of a mixture, fused with the sum of each token's results."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.grouped_matmul_combine import cpu, reference, spec
from anynpu.ops.grouped_matmul_combine.weights import make_w4a8_bias, pack_scale

__all__ = ["grouped_matmul_combine", "make_w4a8_bias", "pack_scale"]

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


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
    group_list_type: int = 1,
) -> torch.Tensor:
    """Multiplies the int8 rows of each expert by its weight and adds the results to the rows of their tokens.

    ``y = 0; y[row_index[r]] += value(r) * pertoken_scale[r] * logit[r]`` for r in ascending order, then
    ``y[shared_input_offset + i] += shared_input[i] * shared_input_weight``, in float32 and with the same bits for any
    number of threads. With ``acc_g`` the int32 sums of ``x * W`` over the k of scale group g,

    - int8 weights (W8A8): ``value = acc * scale``,
    - int4 weights (W4A8): ``value = sum_g (acc_g - 8 * sum_{k in g} W) * scale_g + bias + rowsum(x) * offset``. With
      the bias of :func:`make_w4a8_bias` that is ``sum_g acc_g * scale_g + rowsum(x) * offset``; another bias, or none,
      is taken as it stands.

    Args:
        x: int8 ``[M, K]``, the rows of the first expert first. Any strides.
        weight: int8 ``[E, K, N]``, or int32 ``[E, K, N / 8]`` of :func:`int4_pack`; a transposed view of its last two
            axes is read as it lies. K at most 131071.
        scale: float32 or bfloat16 ``[E, N]`` for int8 weights; int64 ``[E, G, N]`` of :func:`pack_scale` for int4,
            where G (1: per channel) divides K.
        group_list: int64 ``[E]``, the number of rows of each expert, or with ``group_list_type=0`` their running sums.
            Rows of x behind the last group contribute nothing, and their row_index is not read.
        row_index: int64, int32 or float32 ``[M]``, the row of y that each row of x is added to. Rows of y may occur
            any number of times, also never.
        bias: float32 ``[E, N]``, for int4 weights.
        offset: float32 ``[E, 1, N]``, for int4 weights: asymmetric weights ``W * scale + offset``.
        pertoken_scale: float32 ``[M]``.
        logit: float32 ``[M]``, the router's weight of each row.
        shared_input: bfloat16 ``[S, N]``, the shared expert's results for S consecutive rows of y.
        shared_input_weight: their factor.
        shared_input_offset: the first of these rows.
        output_bs: rows of y; 0 stands for M.
        group_list_type: 0 or 1, see group_list.

    Returns:
        float32 ``[output_bs, N]``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes that do not fit, groups beyond M or out of order, or a row_index outside y.

    Source: aclnnGroupedMatmulFinalizeRouting, torch_npu.npu_grouped_matmul_finalize_routing.

    >>> import torch, anynpu
    >>> x = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int8)  # token 0 to both experts, token 1 to the second
    >>> weight = torch.tensor([[[1], [1]], [[10], [1]]], dtype=torch.int8)
    >>> anynpu.grouped_matmul_combine(
    ...     x, weight, torch.ones(2, 1), torch.tensor([1, 2]), torch.tensor([0, 0, 1]),
    ...     logit=torch.tensor([1.0, 0.5, 1.0]), output_bs=2)
    tensor([[20.],
            [56.]])
    """
    return _op(
        x, weight, scale, group_list, row_index, bias, offset, pertoken_scale, logit, shared_input,
        shared_input_weight, shared_input_offset, output_bs, group_list_type,
    )  # fmt: skip
