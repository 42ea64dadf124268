# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of rope_kv_cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from anynpu import _native
from anynpu._strict import check_rope_kv_cache_index_limits, strict_soc
from anynpu.ops.rope_kv_cache.spec import CACHE_MODES, check

_call = _native.Call("rope_kv_cache", tensors=16, scalars="3q2i")


class _Checked(NamedTuple):
    """What holds for all calls that differ in nothing but data."""

    q_shape: tuple[int, ...]
    kv_shape: tuple[int, ...]
    run: Callable[..., None]


_MAX_CHECKED = 4096
_checked: dict[tuple, _Checked] = {}


def rope_kv_cache(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    size_splits: Sequence[int],
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``anynpu.rope_kv_cache``; returns q, k, v."""
    soc = strict_soc()
    signature = [soc, kv_output, cache_mode, *size_splits]
    present = []
    for tensor in (x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, offset_k, offset_v, weight_scale,
                   activation_scale, bias):  # fmt: skip
        if tensor is None:
            signature.append(None)
        else:
            signature += (tensor.dtype, tensor.shape, tensor.stride())
            present.append(tensor)
    key = tuple(signature)
    checked = _checked.get(key)
    if checked is None:
        inputs = (x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v)
        checked = _check(key, inputs, size_splits, (offset_k, offset_v, weight_scale, activation_scale, bias),
                         kv_output, cache_mode)  # fmt: skip
    if soc is not None:
        check_rope_kv_cache_index_limits(indices, cache_mode)
    dtype = cos.dtype
    q = torch.empty(checked.q_shape, dtype=dtype)
    k, v = torch.empty(checked.kv_shape, dtype=dtype), torch.empty(checked.kv_shape, dtype=dtype)
    if kv_output:
        checked.run(*present, q, k, v)
    else:
        checked.run(*present, q)
    return q, k, v


def _check(
    key: tuple, inputs: tuple, size_splits: Sequence[int], options: tuple, kv_output: bool, cache_mode: str
) -> _Checked:
    sizes = check(*inputs, size_splits, *options, kv_output, cache_mode)
    dtype = inputs[1].dtype
    outputs = [torch.empty(shape, dtype=dtype) for shape in (sizes.q_shape, sizes.kv_shape, sizes.kv_shape)]
    if not kv_output:
        outputs[1:] = [None, None]
    run = _call.bind(*inputs, *options, *outputs, scalars=(*size_splits, CACHE_MODES[cache_mode], 0))
    if len(_checked) >= _MAX_CHECKED:
        _checked.clear()
    _checked[key] = _Checked(sizes.q_shape, sizes.kv_shape if kv_output else (0,), run)
    return _checked[key]
