# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of rope_kv_cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu import _native
from anynpu._strict import check_rope_kv_cache_index_limits
from anynpu.ops.rope_kv_cache.spec import CACHE_MODES, check

_call = _native.Call("rope_kv_cache", tensors=16, scalars="3q2i")


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
    inputs = (x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v)
    options = (offset_k, offset_v, weight_scale, activation_scale, bias)
    sizes = check(*inputs, size_splits, *options, kv_output, cache_mode)
    check_rope_kv_cache_index_limits(indices, cache_mode)
    kv_shape = sizes.kv_shape if kv_output else 0
    q, k, v = (torch.empty(shape, dtype=cos.dtype) for shape in (sizes.q_shape, kv_shape, kv_shape))
    outputs = (q, k, v) if kv_output else (q, None, None)
    _call(*inputs, *options, *outputs, scalars=(*size_splits, CACHE_MODES[cache_mode], 0))
    return q, k, v
