# SPDX-License-Identifier: Apache-2.0
"""Matrix products of groups of rows with a weight each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._register import Operator, register
from anynpu.ops.grouped_matmul import composite, reference, spec

_op = register(Operator.of(spec, composite, reference, cuda=f"{__name__}.triton"))


def grouped_matmul(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    group_list: torch.Tensor | None = None,
    *,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    antiquant_scale: Sequence[torch.Tensor] | None = None,
    antiquant_offset: Sequence[torch.Tensor] | None = None,
    per_token_scale: Sequence[torch.Tensor] | None = None,
    split_item: int = 0,
    group_type: int = -1,
    group_list_type: int = 0,
    output_dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """Multiplies groups of rows by their own weights.

    Of each group, with integer sums in int32 and everything else in float32, rounded once,

    - float x and weight: ``x @ w + bias``,
    - float16 or bfloat16 x, int8 or int4 weight: ``x @ ((w + antiquant_offset) * antiquant_scale) + bias``,
    - int8 x and weight: ``(x @ w + int32 bias) * scale * per_token_scale + float bias``; without scale int32 sums,
    - int8 x, int4 weight: ``(sum_g (acc_g - 8 * sum_k w) * scale_g + bias) * per_token_scale``, as
      :func:`grouped_matmul_combine` has it: with the bias of :func:`make_w4a8_bias` the plain product.

    Args:
        x: one tensor ``[M, K]`` whose rows are cut into groups, or one for each group.
        weight: one tensor ``[E, K, N]``, or one ``[K, N]`` for each group; int4 as int32 ``[.., K, N / 8]`` of
            :func:`int4_pack`. Transposed views of the last two axes are read as they lie.
        group_list: int64, for one x: running sums of the rows of each group, or by group_list_type their counts (1) or
            pairs (group, count) in ascending order (2). Rows behind the last group give zeros.
        bias: one tensor for each of weight, ``[E, N]`` or ``[N]``: float16 or float32 for float16 results, float32 for
            bfloat16 and float32 ones, int32 for int8 x (or float32), float32 for int4 weights with int8 x.
        scale: likewise ``[E, N]`` or ``[N]``, float32 or bfloat16, or int64 of ``trans_quant_param`` (int8 results);
            int64 ``[E, G, N]`` or ``[G, N]`` of :func:`pack_scale` for int4 weights.
        antiquant_scale, antiquant_offset: likewise, in the dtype of x; for int4 weights also ``[E, G, N]`` or
            ``[G, N]``, where K / G is a multiple of 32.
        per_token_scale: one tensor for each of x, float32 ``[M]`` or ``[M, 1]``.
        split_item: 2 or 3: one result; 0 or 1: one for each x and weight, without group_list.
        group_type: 0: groups of rows, -1: none (with split_item 0 or 1).
        group_list_type: 0, 1 or 2, see group_list.
        output_dtype: None for float x and for int32 and int8 results; float16 or bfloat16 otherwise.

    Returns:
        A list of one ``[M, N]``, or with split_item 0 and 1 of one ``[..., N]`` for each x.

    Raises:
        TypeError: a dtype, or a combination of dtypes, outside these.
        ValueError: shapes, list lengths or groups that do not fit.
        NotImplementedError: int4 x, groups along K, one x with many results.

    Source: torch_npu.npu_grouped_matmul.

    >>> import torch, anynpu
    >>> x = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int8)
    >>> weight = torch.tensor([[[1], [1]], [[10], [1]]], dtype=torch.int8)
    >>> [y] = anynpu.grouped_matmul([x], [weight], torch.tensor([1, 3]), split_item=2, group_type=0)
    >>> y.flatten().tolist()
    [3, 34, 56]
    """
    return _op(
        x, weight, group_list, bias, scale, antiquant_scale, antiquant_offset, per_token_scale, split_item, group_type,
        group_list_type, output_dtype,
    )  # fmt: skip
