# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of weight_quant_matmul and weight_quant_prepack."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._strict import strict_soc
from anynpu.ops.weight_quant_matmul.spec import matmul_result, prepacked_size

_matmul = _native.Call("weight_quant_matmul", tensors=8, scalars="q2i")
_prepack = _native.Call("weight_quant_prepack", tensors=2)

_MAX_CHECKED = 4096
_checked: dict[tuple, tuple[list[int], torch.dtype]] = {}


def weight_quant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_size: int = 0,
    inner_precise: int = 0,
    n: int | None = None,
) -> torch.Tensor:
    """See ``anynpu.weight_quant_matmul``."""
    tensors = (x, weight, scale, offset, bias, quant_scale, quant_offset)
    shape, dtype = _check_once(tensors, (group_size, inner_precise, n))
    y = torch.empty(shape, dtype=dtype)
    _matmul(*tensors, y, scalars=(group_size, inner_precise, 0))
    return y


def _check_once(tensors: tuple, scalars: tuple) -> tuple[list[int], torch.dtype]:
    # Checking takes longer than a small product, and calls alike in everything but data give the same answer.
    key = (
        strict_soc(),
        scalars,
        *[None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors],
    )
    result = _checked.get(key)
    if result is None:
        result = matmul_result(*tensors, *scalars)
        if len(_checked) >= _MAX_CHECKED:
            _checked.clear()
        _checked[key] = result
    return result


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """See ``anynpu.weight_quant_prepack``."""
    packed = torch.empty(prepacked_size(weight), dtype=torch.uint8)
    _prepack(weight, packed)
    return packed
