# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of rope_kv_cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu._strict import check_rope_kv_cache_index_limits, strict_soc
from anynpu.ops.rope_kv_cache.spec import CACHE_MODES, check

_call = _native.Call("rope_kv_cache", tensors=16, scalars="3q2i")
_INDICES = 5  # among the tensors of a call


def _plan(
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
) -> Plan:
    first = (x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v)
    rest = (offset_k, offset_v, weight_scale, activation_scale, bias)
    sizes = check(*first, size_splits, *rest, kv_output, cache_mode)
    kv = (sizes.kv_shape, cos.dtype) if kv_output else None
    outputs = [(sizes.q_shape, cos.dtype), kv, kv]
    run = _call.plan([*first, *rest], outputs, (*size_splits, CACHE_MODES[cache_mode], 0))
    return _with_limits(run if kv_output else _with_empty_kv(run, cos.dtype), cache_mode)


def _with_empty_kv(run: Plan, dtype: torch.dtype) -> Plan:
    def plan(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run(*tensors), _native.allocate((0,), (1,), dtype), _native.allocate((0,), (1,), dtype)

    return plan


def _with_limits(run: Plan, cache_mode: str) -> Plan:
    """In strict mode, in which plans are not kept, the values of the indices count too."""
    if strict_soc() is None:
        return run

    def plan(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        check_rope_kv_cache_index_limits(tensors[_INDICES], cache_mode)
        return run(*tensors)

    return plan


rope_kv_cache = PlannedKernel(_plan)
