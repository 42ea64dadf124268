# SPDX-License-Identifier: Apache-2.0
"""The int4 forms of quant_matmul out of other operators: unpacked to int8, and products of groups of k one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anynpu._check import dtype_name, require, require_dtype
from anynpu.ops.int4_pack import int4_unpack
from anynpu.ops.quant_matmul.spec import OP
from anynpu.ops.weight_quant_matmul.spec import is_transposed, matrix_shape

GROUP = 256  # the one documented size of a group of k
OUTPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def applies(x1: torch.Tensor, x2: torch.Tensor, group_size: int) -> bool:
    """Whether a call is more than the operator knows."""
    return bool(group_size) or any(isinstance(x, torch.Tensor) and x.dtype == torch.int32 for x in (x1, x2))


def require_int4_rules(x1: torch.Tensor, x2: torch.Tensor, output_dtype: torch.dtype | None, group_size: int) -> None:
    """What the documents say of int4 beyond the rules of int8."""
    if group_size and (x1.dtype, x2.dtype) != (torch.int8, torch.int32):
        raise NotImplementedError(
            f"{OP}: groups are implemented for int8 x1 and int4 (int32) x2, got {dtype_name(x1.dtype)} and "
            f"{dtype_name(x2.dtype)}; what is published of other groups contradicts itself"
        )
    require_dtype(OP, "x1", x1, (torch.int8, torch.int32))
    require_dtype(OP, "x2", x2, (torch.int32,))
    require(OP, x2.dim() == 2, f"an int4 x2 must have 2 axes, got {x2.dim()}")
    require(OP, 2 <= x1.dim() <= 6, f"x1 dim num should be 2 ~ 6, please check x1 dim num, got {x1.dim()}")
    if output_dtype not in OUTPUT_DTYPES:
        expected, got = "float16, bfloat16 or float32", dtype_name(output_dtype or torch.int8)
        raise TypeError(f"{OP}: When input's dtype is int32, output_dtype must be {expected}, but it is {got}")


def unpacked(x1: torch.Tensor, x2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as int8; words of x1 hold eight k, words of x2 eight n, or of a transposed view eight k."""
    if x1.dtype == torch.int32:
        require(OP, x1.is_contiguous(), f"an int4 x1 must be contiguous, got strides {x1.stride()}")
        x1 = _unpacked_rows(x1)
    k = x1.shape[-1]
    matrix_shape(OP, x2, k)
    return x1, _unpacked_rows(x2.t()).t() if is_transposed(x2, k) else _unpacked_rows(x2)


def _unpacked_rows(words: torch.Tensor) -> torch.Tensor:
    shape = (*words.shape[:-1], words.shape[-1] * 8)
    if words.numel() == 0:
        return words.new_empty(shape, dtype=torch.int8)
    return int4_unpack(words.reshape(-1, words.shape[-1]).contiguous(), torch.int8).reshape(shape)


def sum_groups(
    product: Callable[..., torch.Tensor],
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_dtype: torch.dtype,
    group_size: int,
) -> torch.Tensor:
    """(sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale of unpacked operands; ``product`` is quant_matmul."""
    require_group_rules(x1, x2, scale, offset, pertoken_scale, bias, group_size)
    factors = scale.contiguous().view(torch.int32)[:, ::2].contiguous().view(torch.float32)  # low halves of the words
    total = torch.zeros((*x1.shape[:-1], x2.shape[-1]), device=x1.device)
    for group, factor in enumerate(factors):
        part = slice(group * GROUP, (group + 1) * GROUP)
        total += product(x1[..., part], x2[part], factor, None, None, None, torch.int32) * factor
    if offset is not None:
        total += offset
    if pertoken_scale is not None:
        total *= pertoken_scale.reshape(-1, 1)
    return total.to(output_dtype)


def require_group_rules(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    group_size: int,
) -> None:
    """The rules of groups, for unpacked operands."""
    (m, k), n = x1.shape[-2:], x2.shape[-1]
    require(OP, group_size == GROUP, f"group_size must be 0 or {GROUP}, got {group_size}")
    require(OP, k > 0 and k % GROUP == 0, f"K must be a multiple of group_size = {GROUP}, got {k}")
    require(
        OP, x2.shape[0] == k, f"k dim of x1 and x2 need be same, please check k dim of x1 and x2: {k}, {x2.shape[0]}"
    )
    require(OP, bias is None, "bias must be None with groups, offset takes its place")
    require_dtype(OP, "scale", scale, (torch.int64, torch.uint64))
    shape, expected = tuple(scale.shape), (k // GROUP, n)
    require(OP, shape == expected, f"scale must have shape (K / {GROUP}, N) = {expected}, got {shape}")
    if offset is not None:
        require_dtype(OP, "offset", offset, (torch.float32,))
        require(OP, tuple(offset.shape) == (n,), f"offset must have shape (N,) = ({n},), got {tuple(offset.shape)}")
    if pertoken_scale is not None:
        require_dtype(OP, "pertoken_scale", pertoken_scale, (torch.float32,))
        shape = tuple(pertoken_scale.shape)
        require(OP, shape in ((m,), (m, 1)), f"pertoken_scale must have shape (M,) or (M, 1), M = {m}, got {shape}")
