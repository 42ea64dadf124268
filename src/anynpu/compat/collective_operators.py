# SPDX-License-Identifier: Apache-2.0
"""The published operator of tensor-parallel layers: a product, then an all-reduce over the ranks."""

from __future__ import annotations

import torch

import anynpu
from anynpu._check import dtype_name, require, require_dtype
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype

_OP = "npu_mm_all_reduce_base"


@published(
    "npu_mm_all_reduce_base(Tensor x1, Tensor x2, str hcom, *, str reduce_op='sum', Tensor? bias=None, "
    "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? x3=None, Tensor? dequant_scale=None, "
    "Tensor? pertoken_scale=None, Tensor? comm_quant_scale_1=None, Tensor? comm_quant_scale_2=None, "
    "int antiquant_group_size=0, int comm_turn=0, int[]? group_sizes=None, int? y_dtype=None, int? x1_dtype=None, "
    "int? x2_dtype=None, int? dequant_scale_dtype=None, int? pertoken_scale_dtype=None, int comm_quant_mode=0) "
    "-> Tensor",
    "aclnnMatmulAllReduce",
)
def npu_mm_all_reduce_base(
    x1: torch.Tensor,
    x2: torch.Tensor,
    hcom: str,
    *,
    reduce_op: str = "sum",
    bias: torch.Tensor | None = None,
    antiquant_scale: torch.Tensor | None = None,
    antiquant_offset: torch.Tensor | None = None,
    x3: torch.Tensor | None = None,
    dequant_scale: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    comm_quant_scale_1: torch.Tensor | None = None,
    comm_quant_scale_2: torch.Tensor | None = None,
    antiquant_group_size: int = 0,
    comm_turn: int = 0,
    group_sizes: list[int] | None = None,
    y_dtype: Dtype | None = None,
    x1_dtype: Dtype | None = None,
    x2_dtype: Dtype | None = None,
    dequant_scale_dtype: Dtype | None = None,
    pertoken_scale_dtype: Dtype | None = None,
    comm_quant_mode: int = 0,
) -> torch.Tensor:
    """The sum over the ranks of ``hcom`` of ``x1 @ x2 + bias``, rounded on each: float, with ``antiquant_scale`` as
    ``npu_weight_quant_batchmatmul``, with ``dequant_scale`` as ``npu_quant_matmul``.

    ``hcom`` is what ``get_hccl_comm_name`` of the backend of a group said. ``comm_turn`` has no effect.
    """
    require(_OP, reduce_op == "sum", f"reduce_op must be 'sum', got {reduce_op!r}")
    require_absent(
        x3=x3, comm_quant_scale_1=comm_quant_scale_1, comm_quant_scale_2=comm_quant_scale_2, group_sizes=group_sizes,
        x1_dtype=x1_dtype, x2_dtype=x2_dtype, dequant_scale_dtype=dequant_scale_dtype,
        pertoken_scale_dtype=pertoken_scale_dtype, comm_quant_mode=comm_quant_mode or None,
    )  # fmt: skip
    if dequant_scale is not None:
        require_absent(antiquant_scale=antiquant_scale, antiquant_offset=antiquant_offset)
        default = torch.bfloat16 if dequant_scale.dtype == torch.bfloat16 else torch.float16
        dtype = default if y_dtype is None else torch_dtype("y_dtype", y_dtype)
        y = anynpu.quant_matmul(x1, x2, dequant_scale, pertoken_scale=pertoken_scale, bias=bias, output_dtype=dtype)
    else:
        require_absent(pertoken_scale=pertoken_scale, y_dtype=y_dtype)
        y = _float_product(x1, x2, bias, antiquant_scale, antiquant_offset, antiquant_group_size)
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.all_reduce(y.contiguous(), "sum", hcom))


def _float_product(
    x1: torch.Tensor,
    x2: torch.Tensor,
    bias: torch.Tensor | None,
    antiquant_scale: torch.Tensor | None,
    antiquant_offset: torch.Tensor | None,
    group_size: int,
) -> torch.Tensor:
    require_dtype(_OP, "x1", x1, (torch.float16, torch.bfloat16, torch.float32))
    if antiquant_scale is not None:
        return anynpu.weight_quant_matmul(x1, x2, antiquant_scale, antiquant_offset, bias, None, None, group_size)
    require_absent(antiquant_offset=antiquant_offset)
    require(_OP, x1.dtype == x2.dtype, f"x2 must be {dtype_name(x1.dtype)}, as x1, got {dtype_name(x2.dtype)}")
    fits = x1.dim() in (2, 3) and x2.dim() == 2 and x1.shape[-1] == x2.shape[0]
    shapes = tuple(x1.shape), tuple(x2.shape)
    require(
        _OP, fits, f"x1 and x2 must have shapes (..., K) of 2 or 3 axes and (K, N), got {shapes[0]} and {shapes[1]}"
    )
    y = x1.float() @ x2.float()
    return (y if bias is None else y + bias.float()).to(x1.dtype)
