# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of int4_pack and int4_unpack."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.int4_pack.spec import pack_shape, unpack_shape

_pack = _native.Call("int4_pack", tensors=2, scalars="2i")
_unpack = _native.Call("int4_unpack", tensors=2)
_OUTPUT_IS_SCRATCH = (1, 0)  # on an error the output is dropped, so the library need not restore it


def _plan_pack(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> Plan:
    return _pack.plan([weight], [(pack_shape(weight, dtype), dtype)], _OUTPUT_IS_SCRATCH)


def _plan_unpack(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> Plan:
    return _unpack.plan([packed], [(unpack_shape(packed, dtype), dtype)])


int4_pack = PlannedKernel(_plan_pack)
int4_unpack = PlannedKernel(_plan_unpack)
