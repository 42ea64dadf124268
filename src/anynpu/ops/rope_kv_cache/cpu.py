# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of rope_kv_cache."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel, increment_version
from anynpu._strict import check_rope_kv_cache_index_limits, strict_soc
from anynpu.ops.rope_kv_cache.spec import CACHE_MODES, Arguments, check

_call = _native.Call("rope_kv_cache", tensors=16, scalars="3q2i")
_CACHES, _INDICES = slice(3, 5), 5  # among the tensors of a call


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    sizes, dtype = check(a), a.cos.dtype
    kv = (sizes.kv_shape, dtype) if a.kv_output else None
    outputs = [(sizes.q_shape, dtype), kv, kv]
    run = _call.plan(tensors_of(a), outputs, (*a.size_splits, CACHE_MODES[a.cache_mode], 0))
    kv_output = a.kv_output  # a plan keeps no tensors

    def plan(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = run(*tensors)
        increment_version(tensors[_CACHES])
        if kv_output:
            return results
        return results, _native.allocate((0,), (1,), dtype), _native.allocate((0,), (1,), dtype)

    return _with_limits(plan, a.cache_mode)


def _with_limits(run: Plan, cache_mode: str) -> Plan:
    """In strict mode, in which plans are not kept, the values of the indices count too."""
    if strict_soc() is None:
        return run

    def plan(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        check_rope_kv_cache_index_limits(tensors[_INDICES], cache_mode)
        return run(*tensors)

    return plan


rope_kv_cache = PlannedKernel(_plan)
