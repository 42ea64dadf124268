# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of cast."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.cast.spec import check

_call = _native.Call("cast", tensors=2)


def _plan(x: torch.Tensor, dtype: torch.dtype) -> Plan:
    check(x, dtype)
    return _call.plan([x], [(x.shape, dtype)])


cast = PlannedKernel(_plan)
