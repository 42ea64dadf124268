# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of trans_quant_param."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.trans_quant_param.spec import param_shape

_call = _native.Call("trans_quant_param", tensors=3, scalars="2i")


def _plan(scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int = 0) -> Plan:
    return _call.plan([scale, offset], [(param_shape(scale, offset, round_mode), torch.int64)], (round_mode, 0))


trans_quant_param = PlannedKernel(_plan)
