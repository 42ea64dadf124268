# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of weight_quant_matmul and weight_quant_prepack."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anynpu import _native
from anynpu._strict import strict_soc
from anynpu.ops.weight_quant_matmul.spec import matmul_result, prepacked_size

_matmul = _native.Call("weight_quant_matmul", tensors=8, scalars="q2i")
_prepack = _native.Call("weight_quant_prepack", tensors=2)

# Checking takes longer than a small product, and calls alike in everything but data get the same answer.
_MAX_CHECKED = 4096
_checked: dict[tuple, tuple[list[int], torch.dtype, Callable[..., None]]] = {}


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
    signature = [strict_soc(), group_size, inner_precise, n]
    present = []
    for tensor in tensors:  # one plain loop: comprehensions would add a microsecond
        if tensor is None:
            signature.append(None)
        else:
            signature += (tensor.dtype, tensor.shape, tensor.stride())
            present.append(tensor)
    key = tuple(signature)
    shape, dtype, run = _checked.get(key) or _check(key, tensors, (group_size, inner_precise, n))
    y = torch.empty(shape, dtype=dtype)
    run(*present, y)
    return y


def _check(key: tuple, tensors: tuple, scalars: tuple) -> tuple[list[int], torch.dtype, Callable[..., None]]:
    shape, dtype = matmul_result(*tensors, *scalars)
    run = _matmul.bind(*tensors, torch.empty(shape, dtype=dtype), scalars=(*scalars[:2], 0))
    if len(_checked) >= _MAX_CHECKED:
        _checked.clear()
    _checked[key] = shape, dtype, run
    return _checked[key]


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """See ``anynpu.weight_quant_prepack``."""
    packed = torch.empty(prepacked_size(weight), dtype=torch.uint8)
    _prepack(weight, packed)
    return packed
