# SPDX-License-Identifier: Apache-2.0
"""The published names of what torch has under other names: casts, transposes, plain products, and a hint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import dtype_name, require, require_dtype
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@published("npu_dtype_cast(Tensor self, int dtype, int? input_dtype=None) -> Tensor", "aclnnCast")
def npu_dtype_cast(self: torch.Tensor, dtype: Dtype, input_dtype: Dtype | None = None) -> torch.Tensor:
    """``self`` in another dtype."""
    require_absent(input_dtype=input_dtype)
    return self.to(torch_dtype("dtype", dtype))


@published("_npu_dtype_cast(Tensor self, int dtype) -> Tensor", "aclnnCast")
def _npu_dtype_cast(self: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """The same."""
    return self.to(torch_dtype("dtype", dtype))


@published("npu_transpose(Tensor self, int[] perm, bool require_contiguous=True) -> Tensor", "aclnnPermute")
def npu_transpose(self: torch.Tensor, perm: Sequence[int], require_contiguous: bool = True) -> torch.Tensor:
    """``self.permute(perm)``, contiguous. ``require_contiguous``, about the input, has no effect."""
    return self.permute(tuple(perm)).contiguous()


@published(
    "npu_confusion_transpose(Tensor self, int[] perm, SymInt[] shape, bool transpose_first) -> Tensor",
    "aclnnConfusionTranspose",
)
def npu_confusion_transpose(
    self: torch.Tensor, perm: Sequence[int], shape: Sequence[int], transpose_first: bool
) -> torch.Tensor:
    """``permute(perm)`` and ``reshape(shape)``, in this order or the other; contiguous."""
    if transpose_first:
        return self.permute(tuple(perm)).reshape(tuple(shape)).contiguous()
    return self.reshape(tuple(shape)).permute(tuple(perm)).contiguous()


@published("npu_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", "aclnnMatmul")
def npu_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``input @ weight.T + bias`` of 2-D matrices."""
    for name, matrix in (("input", input), ("weight", weight)):
        require_dtype("npu_linear", name, matrix, _FLOATS)
        require("npu_linear", matrix.dim() == 2, f"{name} must have 2 axes, got {matrix.dim()}")
    return torch.nn.functional.linear(input, weight, bias)


@published(
    "npu_transpose_batchmatmul(Tensor input, Tensor weight, *, Tensor? bias=None, Tensor? scale=None, "
    "int[]? perm_x1=None, int[]? perm_x2=None, int[]? perm_y=None, int? batch_split_factor=1) -> Tensor",
    "aclnnTransposeBatchMatMul",
)
def npu_transpose_batchmatmul(
    input: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    perm_x1: Sequence[int] | None = None,
    perm_x2: Sequence[int] | None = None,
    perm_y: Sequence[int] | None = None,
    batch_split_factor: int | None = 1,
) -> torch.Tensor:
    """``(input.permute(perm_x1) @ weight.permute(perm_x2)).permute(perm_y)`` of 3-D tensors, contiguous.

    The defaults are (0, 1, 2) twice and (1, 0, 2): the result is (M, B, N).
    """
    op = "npu_transpose_batchmatmul"
    require_absent(
        bias=bias, scale=scale, batch_split_factor=None if batch_split_factor in (None, 1) else batch_split_factor
    )
    kept = (0, 1, 2)
    orders = {
        "perm_x1": (perm_x1 or kept, (kept, (1, 0, 2))),
        "perm_x2": (perm_x2 or kept, (kept, (0, 2, 1))),
        "perm_y": (perm_y or (1, 0, 2), ((1, 0, 2),)),
    }
    for name, (order, known) in orders.items():
        require(
            op, tuple(order) in known, f"{name} should be {' or '.join(map(str, map(list, known)))}, got {list(order)}"
        )
    for name, tensor in (("input", input), ("weight", weight)):
        require_dtype(op, name, tensor, _FLOATS)
        require(op, tensor.dim() == 3, f"{name} must have 3 axes, got {tensor.dim()}")
    same = input.dtype == weight.dtype
    require(op, same, f"weight must have the dtype of input, {dtype_name(input.dtype)}, got {dtype_name(weight.dtype)}")
    x1, x2 = input.permute(tuple(orders["perm_x1"][0])), weight.permute(tuple(orders["perm_x2"][0]))
    fits = x1.shape[0] == x2.shape[0] and x1.shape[2] == x2.shape[1]
    require(
        op, fits, f"the permuted shapes must be (B, M, K) and (B, K, N), got {tuple(x1.shape)} and {tuple(x2.shape)}"
    )
    return torch.bmm(x1, x2).permute(tuple(orders["perm_y"][0])).contiguous()


@published("npu_prefetch(Tensor self, Tensor? dependency, int max_size, int offset=0) -> ()", "aclrtCmoAsync")
def npu_prefetch(self: torch.Tensor, dependency: torch.Tensor | None, max_size: int, offset: int = 0) -> None:
    """A hint that ``self`` will be read: checked, without effect."""
    require("npu_prefetch", max_size > 0, f"The max_size should be greater than zero, but got {max_size}.")
    require("npu_prefetch", offset >= 0, f"The offset should be nonnegative, but got {offset}.")


@published("_npu_matmul_add_fp32(Tensor x, Tensor weight, Tensor(a!) C) -> ()", "LinearOperation")
def _npu_matmul_add_fp32(x: torch.Tensor, weight: torch.Tensor, C: torch.Tensor) -> None:
    """Adds ``x.T @ weight``, of matrices (k, m) and (k, n), to the float32 matrix ``C`` (m, n)."""
    op = "_npu_matmul_add_fp32"
    for name, matrix, dtypes in (("x", x, _FLOATS), ("weight", weight, _FLOATS), ("C", C, _FLOATS[:1])):
        require_dtype(op, name, matrix, dtypes)
        require(op, matrix.dim() == 2, f"{name} must have 2 axes, got {matrix.dim()}")
    fits = x.shape[0] == weight.shape[0] and C.shape == (x.shape[1], weight.shape[1])
    got = ", ".join(str(tuple(matrix.shape)) for matrix in (x, weight, C))
    require(op, fits, f"the shapes must be (k, m), (k, n), (m, n), got {got}")
    C.addmm_(x.t().float(), weight.float())
