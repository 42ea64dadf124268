# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.random``: the generators of the device that npu stands for."""

from __future__ import annotations

from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr

if _target().type == "cpu":
    from torch_npu.npu import _host as _runtime
else:
    from torch_npu.npu import _cuda as _runtime

_FUNCTIONS = ("manual_seed", "manual_seed_all", "seed", "seed_all", "initial_seed")
_STATES = ("get_rng_state", "set_rng_state", "get_rng_state_all", "set_rng_state_all")
globals().update({name: getattr(_runtime, name) for name in _FUNCTIONS + _STATES})

__getattr__ = module_getattr(__name__, globals())
