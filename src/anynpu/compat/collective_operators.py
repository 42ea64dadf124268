# SPDX-License-Identifier: Apache-2.0
"""The published operators of tensor-parallel layers: a product and what travels between the ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

import anynpu
from anynpu._check import dtype_name, require, require_dtype
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype

_OP = "npu_mm_all_reduce_base"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


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
        require_dtype(_OP, "x1", x1, _FLOATS)
        if antiquant_scale is None:
            require_absent(antiquant_offset=antiquant_offset)
            y = _float_product(_OP, x1, x2, bias)
        else:
            y = anynpu.weight_quant_matmul(
                x1, x2, antiquant_scale, antiquant_offset, bias, None, None, antiquant_group_size
            )
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.all_reduce(y.contiguous(), "sum", hcom))


def _float_product(op: str, x1: torch.Tensor, x2: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    require_dtype(op, "x1", x1, _FLOATS)
    require(op, x1.dtype == x2.dtype, f"x2 must be {dtype_name(x1.dtype)}, as x1, got {dtype_name(x2.dtype)}")
    fits = x1.dim() in (2, 3) and x2.dim() == 2 and x1.shape[-1] == x2.shape[0]
    shapes = tuple(x1.shape), tuple(x2.shape)
    require(op, fits, f"x1 and x2 must have shapes (..., K) of 2 or 3 axes and (K, N), got {shapes[0]} and {shapes[1]}")
    y = x1.float() @ x2.float()
    return (y if bias is None else y + bias.float()).to(x1.dtype)


def _require_matrices(op: str, hcom: str, world_size: int, comm_turn: int, **matrices: torch.Tensor) -> None:
    for name, tensor in matrices.items():
        require(op, tensor.dim() == 2, f"{name} must have 2 axes, got {tensor.dim()}")
    size = dist.distributed_c10d._resolve_process_group(hcom).size()
    require(op, world_size == size, f"world_size must be that of hcom, {size}, got {world_size}")
    require(op, comm_turn == 0, f"comm_turn must be 0, got {comm_turn}")


def _require_scale(op: str, name: str, scale: torch.Tensor, shape: tuple[int, int]) -> None:
    flat, got = (max(shape),), tuple(scale.shape)
    require(op, got in (shape, flat), f"{name} must have shape {shape} or {flat}, got {got}")


def _product(
    op: str,
    x1: torch.Tensor,
    x2: torch.Tensor,
    bias: torch.Tensor | None,
    x1_scale: torch.Tensor | None,
    x2_scale: torch.Tensor | None,
    output_dtype: Dtype | None,
) -> torch.Tensor:
    """Float, or int8 with scales of columns, and of tokens, or with words of npu_trans_quant_param."""
    if x2_scale is None:
        require_absent(x1_scale=x1_scale, output_dtype=output_dtype)
        return _float_product(op, x1, x2, bias)
    require_absent(bias=bias)
    require_dtype(op, "x2_scale", x2_scale, (torch.float32, torch.int64))
    words = x2_scale.dtype == torch.int64
    require(op, not (words and x1_scale is not None), "x1_scale is for float32 x2_scale")
    _require_scale(op, "x2_scale", x2_scale, (1, x2.shape[1]))
    if x1_scale is not None:
        _require_scale(op, "x1_scale", x1_scale, (x1.shape[0], 1))
    default = torch.float16 if words else torch.bfloat16
    dtype = default if output_dtype is None else torch_dtype("output_dtype", output_dtype)
    per_token = None if x1_scale is None else x1_scale.flatten()
    return anynpu.quant_matmul(x1, x2, x2_scale.flatten(), pertoken_scale=per_token, output_dtype=dtype)


@published(
    "npu_mm_reduce_scatter_base(Tensor self, Tensor x2, str hcom, int world_size, *, str reduce_op='sum', "
    "Tensor? bias=None, Tensor? x1_scale=None, Tensor? x2_scale=None, int comm_turn=0, int? output_dtype=None, "
    "str? comm_mode=None) -> Tensor",
    "aclnnMatmulReduceScatter",
)
def npu_mm_reduce_scatter_base(
    self: torch.Tensor,
    x2: torch.Tensor,
    hcom: str,
    world_size: int,
    *,
    reduce_op: str = "sum",
    bias: torch.Tensor | None = None,
    x1_scale: torch.Tensor | None = None,
    x2_scale: torch.Tensor | None = None,
    comm_turn: int = 0,
    output_dtype: Dtype | None = None,
    comm_mode: str | None = None,
) -> torch.Tensor:
    """``[m / world_size, n]``: this rank's rows of the sum over the ranks of ``self @ x2``, rounded on each.

    ``comm_mode`` has no effect.
    """
    op = "npu_mm_reduce_scatter_base"
    _require_matrices(op, hcom, world_size, comm_turn, self=self, x2=x2)
    require(op, reduce_op == "sum", f"reduce_op must be 'sum', got {reduce_op!r}")
    require_absent(bias=bias)
    rows = self.shape[0]
    require(op, rows % world_size == 0, f"world_size {world_size} must divide the rows of self, got {rows}")
    y = _product(op, self, x2, None, x1_scale, x2_scale, output_dtype)
    collectives = torch.ops._c10d_functional
    return collectives.wait_tensor(collectives.reduce_scatter_tensor(y.contiguous(), "sum", world_size, hcom))


@published(
    "npu_all_gather_base_mm(Tensor self, Tensor x2, str hcom, int world_size, *, Tensor? bias=None, "
    "Tensor? x1_scale=None, Tensor? x2_scale=None, int gather_index=0, bool gather_output=True, int comm_turn=0, "
    "int? output_dtype=None, str? comm_mode=None) -> (Tensor, Tensor)",
    "aclnnAllGatherMatmul",
)
def npu_all_gather_base_mm(
    self: torch.Tensor,
    x2: torch.Tensor,
    hcom: str,
    world_size: int,
    *,
    bias: torch.Tensor | None = None,
    x1_scale: torch.Tensor | None = None,
    x2_scale: torch.Tensor | None = None,
    gather_index: int = 0,
    gather_output: bool = True,
    comm_turn: int = 0,
    output_dtype: Dtype | None = None,
    comm_mode: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[m * world_size, n]`` and ``[m * world_size, k]``: the rows of all ranks times ``x2``, plus bias, and the rows.

    Without ``gather_output`` the second is empty. ``comm_mode`` has no effect.
    """
    op = "npu_all_gather_base_mm"
    _require_matrices(op, hcom, world_size, comm_turn, self=self, x2=x2)
    require_absent(gather_index=gather_index or None)
    collectives = torch.ops._c10d_functional

    def of_all(rows: torch.Tensor) -> torch.Tensor:
        return collectives.wait_tensor(collectives.all_gather_into_tensor(rows.contiguous(), world_size, hcom))

    rows = of_all(self)
    y = _product(op, rows, x2, bias, None if x1_scale is None else of_all(x1_scale), x2_scale, output_dtype)
    return y, rows if gather_output else self.new_empty(0)
