# SPDX-License-Identifier: Apache-2.0
"""The operators of a linear layer of int8 activations, in one native call where nobody could tell."""

from __future__ import annotations

from typing import NamedTuple

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of, with_tensors
from anynpu._repeat import Plan, PlannedKernel, RepeatedOperator
from anynpu.ops.compressed_matmul import compressed_matmul
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.quant_matmul import quant_matmul
from anynpu.ops.quantize import quantize

_call = _native.Call("int8_linear", tensors=8, scalars="q2i")
_MOST_VALUES = 1 << 16  # of x in one call: more take so long that another call is nothing, and memory for their codes


class _Arguments(NamedTuple):
    x: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    input_scale: torch.Tensor | None
    input_offset: torch.Tensor | None
    index: torch.Tensor | None
    n: int
    group_size: int


@takes(_Arguments)
def _operators(a: _Arguments) -> torch.Tensor:
    rows = a.x.reshape(-1, a.x.shape[-1])
    codes, row_scale = _quantised(rows, a.input_scale, a.input_offset)
    rest = {"pertoken_scale": row_scale, "output_dtype": a.x.dtype, "n": a.n}
    if a.index is not None:
        y = compressed_matmul(codes, a.weight, a.index, a.bias, a.scale, **rest)
    else:
        y = quant_matmul(codes, a.weight, a.scale, bias=a.bias, group_size=a.group_size, **rest)
    return y.reshape(*a.x.shape[:-1], a.n)


def _quantised(
    rows: torch.Tensor, input_scale: torch.Tensor | None, input_offset: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes, and a scale for each row unless that of the weight has it as a factor."""
    if input_scale is None:
        return dynamic_quant(rows)
    codes = quantize(rows, input_scale, input_offset, torch.int8, -1)
    return codes, input_scale.expand(rows.shape[0]) if input_offset is None else None


@takes(_Arguments)
def _plan(a: _Arguments) -> Plan:
    if not 2 <= a.x.dim() <= _native.MAX_DIMS or a.x.numel() > _MOST_VALUES:
        call = with_tensors(a)
        return lambda *tensors: _operators(*call(*tensors))
    scalars = (a.group_size, 1, 0)  # 1: y is dropped on an error
    return _call.plan(tensors_of(a), [((*a.x.shape[:-1], a.n), a.x.dtype)], scalars)


_linear = RepeatedOperator(_operators, PlannedKernel(_plan))


def reads_prepacked() -> bool:
    """Whether prepacked int8 weights are the fastest form here: AVX2 has kernels for few rows times plain ones only."""
    return _native.isa() not in ("avx2", "portable")


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    n: int,
    *,
    input_scale: torch.Tensor | None = None,
    input_offset: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    group_size: int = 0,
) -> torch.Tensor:
    """The rows of x quantised and multiplied, bit for bit what the operators give one after the other.

    The codes and the scales of the rows are those of ``dynamic_quant``; with an ``input_scale`` the codes are those of
    ``quantize``, and it is the scale of all rows; with an ``input_offset`` too, ``scale`` has that factor already.

    Args:
        x: float16, bfloat16 or float32 ``[..., K]``.
        weight: an x2 of :func:`anynpu.quant_matmul`; with ``index`` the stream of :func:`anynpu.compressed_matmul`.
        scale, bias, group_size: as these operators take them.
        n: N.
        input_scale, input_offset: float32 ``[1]``, or None.
        index: of a compressed weight, or None.

    Returns:
        ``[..., N]`` in the dtype of x.
    """
    return _linear(x, weight, scale, bias, input_scale, input_offset, index, n, group_size)
