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


class Plan(NamedTuple):
    """What holds for all calls that differ in nothing but data."""

    q_shape: tuple[int, ...]
    kv_shape: tuple[int, ...]
    kv_output: bool
    strict: bool
    run: Callable[..., None]

    def call(self, present: list[torch.Tensor], cache_mode: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs on the tensors that are not None, in the order of the operator's arguments."""
        if self.strict:
            check_rope_kv_cache_index_limits(present[5], cache_mode)
        dtype = present[1].dtype
        q = torch.empty(self.q_shape, dtype=dtype)
        if not self.kv_output:
            self.run(*present, q)
            return q, torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)
        k, v = torch.empty(self.kv_shape, dtype=dtype), torch.empty(self.kv_shape, dtype=dtype)
        self.run(*present, q, k, v)
        return q, k, v


_MAX_CHECKED = 4096
_checked: dict[tuple, Plan] = {}


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
    tensors = (x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, offset_k, offset_v, weight_scale,
               activation_scale, bias)  # fmt: skip
    present = [tensor for tensor in tensors if tensor is not None]
    return plan(tensors, size_splits, kv_output, cache_mode).call(present, cache_mode)


def plan(tensors: tuple, size_splits: Sequence[int], kv_output: bool, cache_mode: str) -> Plan:
    """Checks everything but data, once for all calls that are alike; ``tensors`` are all of the operator's, or None."""
    signature = [strict_soc(), kv_output, cache_mode, *size_splits]
    for tensor in tensors:  # a plain loop: a comprehension would add a microsecond
        if tensor is None:
            signature.append(None)
        else:
            signature += (tensor.dtype, tensor.shape, tensor.stride())
    key = tuple(signature)
    return _checked.get(key) or _check(key, tensors, size_splits, kv_output, cache_mode)


def _check(key: tuple, tensors: tuple, size_splits: Sequence[int], kv_output: bool, cache_mode: str) -> Plan:
    sizes = check(*tensors[:8], size_splits, *tensors[8:], kv_output, cache_mode)
    kv_shape = sizes.kv_shape if kv_output else (0,)
    outputs = [torch.empty(shape, dtype=tensors[1].dtype) for shape in (sizes.q_shape, kv_shape, kv_shape)]
    if not kv_output:
        outputs[1:] = [None, None]
    run = _call.bind(*tensors, *outputs, scalars=(*size_splits, CACHE_MODES[cache_mode], 0))
    if len(_checked) >= _MAX_CHECKED:
        _checked.clear()
    _checked[key] = Plan(sizes.q_shape, kv_shape, kv_output, key[0] is not None, run)
    return _checked[key]
