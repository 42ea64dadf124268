# SPDX-License-Identifier: Apache-2.0
"""dynamic_quant and quant_matmul, the arithmetic of a linear layer, in one native call where nobody could tell."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel, RepeatedOperator
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.quant_matmul import quant_matmul

_call = _native.Call("dynamic_quant_matmul", tensors=5, scalars="q")
_MOST_VALUES = 1 << 16  # of x in one call: more take so long that another call is nothing, and memory for their codes


def _operators(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, group_size: int, n: int
) -> torch.Tensor:
    codes, row_scale = dynamic_quant(x.reshape(-1, x.shape[-1]))
    y = quant_matmul(
        codes,
        _as_x2(weight),
        scale,
        pertoken_scale=row_scale,
        bias=bias,
        output_dtype=x.dtype,
        group_size=group_size,
        n=n,
    )
    return y.reshape(*x.shape[:-1], n)


def _as_x2(weight: torch.Tensor) -> torch.Tensor:
    return weight.t() if weight.dtype == torch.int8 else weight


def _plan(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, group_size: int, n: int
) -> Plan:
    if not 2 <= x.dim() <= _native.MAX_DIMS or x.numel() > _MOST_VALUES:
        return lambda x, weight, scale, bias=None: _operators(x, weight, scale, bias, group_size, n)
    return _call.plan([x, _as_x2(weight), scale, bias], [((*x.shape[:-1], n), x.dtype)], (group_size,))


_matmul = RepeatedOperator(_operators, PlannedKernel(_plan))


def dynamic_quant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    group_size: int = 0,
) -> torch.Tensor:
    """``quant_matmul`` of the codes and scales that ``dynamic_quant`` makes of the rows of x, bit for bit.

    Args:
        x: float16, bfloat16 or float32 ``[..., K]``.
        weight: int8 ``[N, K]``, as ``torch.nn.Linear`` keeps it, or an int4 x2 of :func:`anynpu.quant_matmul`.
        scale, bias, group_size: as :func:`anynpu.quant_matmul` takes them.
        n: N.

    Returns:
        ``[..., N]`` in the dtype of x.
    """
    return _matmul(x, weight, scale, bias, group_size, n)
