# SPDX-License-Identifier: Apache-2.0
"""INT8 matrix product with a losslessly compressed weight."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.compressed_matmul import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def compressed_matmul(
    x: torch.Tensor,
    stream: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    *,
    n: int | None = None,
    scale_19_bits: bool = False,
    pertoken_scale: torch.Tensor | None = None,
    output_dtype: torch.dtype = torch.float16,
) -> torch.Tensor:
    """Multiplies by a weight that stays compressed in memory: blocks are decoded where the product needs them.

    ``y = (x @ W.T + int32 bias) * scale * pertoken_scale + float bias`` with exact int32 sums: the bits of
    ``quant_matmul``.

    Args:
        x: int8 ``(M, K)``, any strides, ``K`` at most 131071.
        stream: int8, the compressed weight ``W (N, K)`` of ``anynpu.formats.compress_weight``.
        index: int8 ``[ceil(K / 256) * ceil(N / 128) * 8]``.
        bias: int32 or float32 ``(N,)`` or ``(1, N)``, or None; int32 joins the sums, float32 is added after scaling.
        scale: ``(N,)``, ``(1, N)``, ``(1,)`` or ``(1, 1)``: float32, or int64 or uint64 with a float32 in the low 32
            bits, as ``scale.view(int32).to(int64)`` and ``trans_quant_param`` both make them.
        n: N, needed when there is no bias and the scale is a single one.
        scale_19_bits: cut the scales to the 19 bits that the hardware uses.
        pertoken_scale: float32 ``(M,)``.
        output_dtype: float16, bfloat16 or float32.

    Returns:
        ``(M, N)``. With nothing but a scale and an int32 bias a 16-bit result is the exact value rounded once.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, or a compressed weight that is damaged, foreign or of another shape.

    Source: aclnnMatmulCompressDequant, torch_npu.npu_matmul_compress_dequant.

    >>> import torch, anynpu
    >>> weight = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int8)
    >>> packed = anynpu.formats.compress_weight(weight)
    >>> scale = torch.tensor([[0.5, 2.0]]).view(torch.int32).to(torch.int64)
    >>> x = torch.tensor([[1, 1, 1]], dtype=torch.int8)
    >>> anynpu.compressed_matmul(x, packed.stream, packed.index, None, scale)
    tensor([[ 3., 30.]], dtype=torch.float16)
    """
    return _op(x, stream, index, bias, scale, n, scale_19_bits, pertoken_scale, output_dtype)
