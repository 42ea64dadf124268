# SPDX-License-Identifier: Apache-2.0
"""Static quantisation with given scales and zero points."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.quantize import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def quantize(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: torch.dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """Quantises ``x`` with one scale, or one for each index of an axis::

        div_mode=True    y = saturate(rint(x / scales) + zero_points)
        div_mode=False   y = saturate(rint(x * scales + zero_points))

    In float32, half to even; the sum of ``div_mode`` is exact, and a fraction of a zero point is rounded with it. NaN
    gives 0.

    Args:
        x: float32, float16 or bfloat16 of 1 to 8 axes, any strides.
        scales: float32, float16 or bfloat16 ``[1]``, ``[x.shape[axis]]``, or of ``x``'s rank with every other axis 1.
        zero_points: None (0) or shaped by the same rule; a float dtype, with ``div_mode`` also int8, uint8 or int32.
        dtype: with ``div_mode`` int8, uint8, int32 or their names qint8, quint8, qint32; without it int8, qint8 or
            quint4x2: int32 words of eight int4 along the last axis, which must be a multiple of 8.
        axis: the axis that the scales run along. **Without** ``div_mode`` every axis above -2 means the last one. With
            a single scale it has no effect.
        div_mode: divide by the scales, or multiply.

    Returns:
        An ordinary int8, uint8 or int32 tensor of ``x``'s shape; ``[..., N / 8]`` int32 for quint4x2.

    Raises:
        TypeError: dtypes.
        ValueError: shapes, or an axis that ``x`` does not have.

    Source: torch_npu.npu_quantize, aclnnAscendQuantV3.

    >>> import torch, anynpu
    >>> x = torch.tensor([[0.5, 1.5], [-70.0, 300.0]])
    >>> anynpu.quantize(x, torch.tensor([1.0, 2.0]), torch.tensor([0.0, 10.0]), torch.int8).tolist()
    [[0, 11], [-70, 127]]
    """
    return _op(x, scales, zero_points, dtype, axis, div_mode)
