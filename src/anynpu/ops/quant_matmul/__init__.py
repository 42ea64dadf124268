# SPDX-License-Identifier: Apache-2.0
"""INT8 x INT8 matrix product with dequantisation (W8A8)."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.quant_matmul import cpu, reference, spec
from anynpu.ops.quant_matmul.int4 import unpacked_x1

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


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
    n: int | None = None,
) -> torch.Tensor:
    """Multiplies int8 (or packed int4) matrices and scales the int32 sums.

    ``y = (x1 @ x2 + int32 bias) * scale * pertoken_scale + float bias + offset``; int32 output: ``x1 @ x2 + bias``,
    without the scale.

    Of an int4 x2 (a float output, 2-D x2) the sums are exact up to K = 16384; beyond, those of 256 k are added up in
    float32. With ``group_size`` every so many k have scales of their own: ``y = (sum_g (x1_g @ x2_g) * scale[g] +
    offset) * pertoken_scale + float bias``. Those of at most 256 k of a group are exact, scaled and added up in float32
    in the order of k. An int4 x1 is unpacked to int8 first.

    Args:
        x1: int8 ``[..., M, K]``, 2 to 6 axes, any strides, ``K`` at most 131071 (so that sums fit int32); int32
            ``[..., M, K / 8]``, contiguous: int4.
        x2: int8 ``[..., K, N]``; a transposed view of ``[..., N, K]`` is read as it lies. Batch axes broadcast. int32
            ``(K, N / 8)``, or a transposed view of ``(N, K / 8)``: int4; uint8 of :func:`weight_quant_prepack`: int4
            or int8 as kernels read it fastest, then ``n`` must be given.
        scale: ``(1,)`` or ``(N,)``, float32, bfloat16, or int64/uint64 words of ``trans_quant_param``; with groups
            ``(ceil(K / group_size), N)``.
        offset: float32 ``(1,)`` or ``(N,)``, for int8 output or with groups; replaces the offset in a word.
        pertoken_scale: float32 ``(M,)``; with groups also ``(M, 1)``.
        bias: ``(N,)``, or ``(batch, 1, N)`` for 3-D results; int32 joins the sums, but not with groups; a float bias is
            added after scaling.
        output_dtype: int8 (the default: half to even, saturated), float16, bfloat16, float32 or int32.
        group_size: 0, or for int8 x1 and int4 x2 a multiple of 32; documented is 256. The last group may be shorter.
        n: N, for a prepacked x2.

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
    if isinstance(x1, torch.Tensor) and x1.dtype == torch.int32:
        spec.require_int4_rules(spec.Arguments(x1, x2, scale, output_dtype=output_dtype, group_size=group_size, n=n))
        x1 = unpacked_x1(x1)
    return _op(x1, x2, scale, offset, pertoken_scale, bias, output_dtype, group_size, n)
