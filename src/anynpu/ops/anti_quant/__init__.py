# SPDX-License-Identifier: Apache-2.0
"""From int8 or packed int4 codes back to floats."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.anti_quant import composite, cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=composite.__name__))


def anti_quant(
    x: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> torch.Tensor:
    """Dequantises codes: ``y = (x + offset) * scale``, computed in float32.

    The offset is *added*, before scaling.

    Args:
        x: int8 ``[..., N]``, or int32 ``[..., N / 8]`` of :func:`int4_pack`; one to eight axes.
        scale: ``[1]`` or ``[N]`` float32, bfloat16 or float16.
        offset: shape and dtype as scale allows; None: 0.
        dtype: of the result, float16 or bfloat16; what is too large for float16 becomes infinite.

    Returns:
        ``[..., N]`` in ``dtype``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, or no codes at all.

    Source: torch_npu.npu_anti_quant.

    >>> import torch, anynpu
    >>> anynpu.anti_quant(torch.tensor([[-3, 5]], dtype=torch.int8), torch.tensor([0.5]), torch.tensor([3.0]))
    tensor([[0., 4.]], dtype=torch.float16)
    """
    return _op(x, scale, offset, dtype)
