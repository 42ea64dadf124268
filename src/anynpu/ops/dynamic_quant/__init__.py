# SPDX-License-Identifier: Apache-2.0
"""Symmetric quantisation of activations with scales found at run time."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.dynamic_quant import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def dynamic_quant(
    x: torch.Tensor,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    quant_mode: str = "pertoken",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises so that the largest magnitude becomes 127 (int4: 7).

    ``v = x * smooth_scales``, ``scale = max |v| / 127``, ``y = rint(v / scale)``, all in float32. A zero scale and NaN
    give code 0; NaN does not count for the largest magnitude.

    Args:
        x: float16, bfloat16 or float32 ``[..., M, K]``.
        smooth_scales: of x's dtype, ``(K,)``; ``(G, K)`` with ``group_index``; per channel ``(M,)``.
        group_index: int32 ``(G,)``: rows below ``group_index[0]`` use the first smooth scales, and so on; cumulative,
            the last value is the number of rows.
        dtype: int8, or int32 for eight int4 in a word (``K`` a multiple of 8).
        quant_mode: ``"pertoken"`` (a scale for each row), ``"perchannel"`` (for each column) or ``"pertensor"``.

    Returns:
        The codes, ``[..., M, K]`` or ``[..., M, K / 8]``, and float32 scales ``[..., M]``, ``[..., K]`` or ``[1]``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, an unknown mode, or a group_index that does not fit.

    Source: torch_npu.npu_dynamic_quant.

    >>> import torch, anynpu
    >>> codes, scale = anynpu.dynamic_quant(torch.tensor([[1.0, -2.0, 0.5]]))
    >>> codes.tolist()
    [[64, -127, 32]]
    """
    return _op(x, smooth_scales, group_index, dtype, quant_mode)
