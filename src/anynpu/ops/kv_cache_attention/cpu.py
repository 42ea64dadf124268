# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of kv_cache_attention."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anynpu import _native
from anynpu.ops.kv_cache_attention.spec import check

_call = _native.Call("kv_cache_attention", tensors=11, scalars="fi")

_MAX_CHECKED = 4096
_checked: dict[tuple, Callable[..., None]] = {}  # by what calls that differ in nothing but data have in common


def kv_cache_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """See ``anynpu.kv_cache_attention``."""
    signature = [softmax_scale, causal]
    present = []
    inputs = (q, k_cache, v_cache, lengths, scale_k, scale_v, offset_k, offset_v, block_table, starts)
    for tensor in inputs:
        if tensor is None:
            signature.append(None)
        else:
            signature += (tensor.dtype, tensor.shape, tensor.stride())
            present.append(tensor)
    key = tuple(signature)
    run = _checked.get(key) or _check(key, inputs, softmax_scale, causal)
    out = torch.empty(q.shape, dtype=q.dtype)
    run(*present, out)
    return out


def _check(key: tuple, inputs: tuple, softmax_scale: float | None, causal: bool) -> Callable[..., None]:
    check(*inputs)
    q = inputs[0]
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if len(_checked) >= _MAX_CHECKED:
        _checked.clear()
    _checked[key] = _call.bind(*inputs, torch.empty(q.shape, dtype=q.dtype), scalars=(scale, causal))
    return _checked[key]
