# SPDX-License-Identifier: Apache-2.0
"""INT8 x INT8 matrix product with dequantisation (W8A8)."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.quant_matmul import cpu, int4, reference, spec

_op = register(
    Operator(
        spec.OP,
        spec.SCHEMA,
        spec.fake,
        cpu.quant_matmul,
        reference.quant_matmul,
        spec.samples,
        reference.error_bound,
        cuda=f"{__name__}.triton",
    )
)


def quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    group_size: int = 0,
) -> torch.Tensor:
    """Multiplies int8 (or packed int4) matrices and scales the int32 sums.

    ``y = (x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias + offset``; int32 output: ``x1 @ x2 + bias``,
    without the scale.

    int4 (a float output, 2-D x2) is unpacked to int8 first. With ``group_size`` 256, for int8 x1 and int4 x2, every 256
    k have scales of their own: ``y = (sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale``, summed in float32.

    Args:
        x1: int8 ``[..., M, K]``, 2 to 6 axes, any strides, ``K`` at most 131071 (so that sums fit int32); int32
            ``[..., M, K / 8]``, contiguous: int4.
        x2: int8 ``[..., K, N]``; a transposed view of ``[..., N, K]`` is read as it lies. Batch axes broadcast. int32
            ``(K, N / 8)``, or a transposed view of ``(N, K / 8)``: int4.
        scale: ``(1,)`` or ``(N,)``, float32, bfloat16, or int64/uint64 words of ``trans_quant_param``; with groups
            words ``(K / 256, N)``.
        offset: float32 ``(1,)`` or ``(N,)``, for int8 output; replaces the offset in a word. With groups ``(N,)``.
        pertoken_scale: float32 ``(M,)``; with groups also ``(M, 1)``.
        bias: ``(N,)``, or ``(batch, 1, N)`` for 3-D results; int32 joins the sums, a float bias is added after scaling.
        output_dtype: int8 (the default: half to even, saturated), float16, bfloat16, float32 or int32.
        group_size: 0, or 256.

    Returns:
        ``[..., M, N]``. With nothing but a scale a 16-bit result is the exact product rounded once.

    Raises:
        TypeError: a dtype, or a combination of dtypes, outside the documented table.
        ValueError: shapes that do not fit, or an int32 bias that could overflow the sums.
        NotImplementedError: groups of other operands.

    Source: torch_npu.npu_quant_matmul.

    >>> import torch, anynpu
    >>> x, w = torch.tensor([[1, -2]], dtype=torch.int8), torch.tensor([[10], [20]], dtype=torch.int8)
    >>> anynpu.quant_matmul(x, w, torch.tensor([0.5]), output_dtype=torch.float16)
    tensor([[-15.]], dtype=torch.float16)
    """
    if int4.applies(x1, x2, group_size):
        int4.require_int4_rules(x1, x2, output_dtype, group_size)
        x1, x2 = int4.unpacked(x1, x2)
    if group_size:
        return int4.sum_groups(_op, x1, x2, scale, offset, pertoken_scale, bias, output_dtype, group_size)
    return _op(x1, x2, scale, offset, pertoken_scale, bias, output_dtype)
