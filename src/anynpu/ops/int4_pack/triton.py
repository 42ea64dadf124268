# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of int4_pack and int4_unpack."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import ceil_divide, launch, report
from anynpu.ops.int4_pack.spec import VALUES_PER_ELEMENT, pack_shape, unpack_shape

_RANGE = _device_errors.new_rule("int4_pack", "weight", "must be in [-8, 7]")
_BLOCK = 512  # elements of the packed tensor


@triton.jit
def _pack_kernel(weight_ptr, packed_ptr, error_ptr, count, RULE: tl.constexpr, PER: tl.constexpr, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    nibble = tl.arange(0, PER)
    place = element[:, None] * PER + nibble[None, :]
    value = tl.load(weight_ptr + place, mask=element[:, None] < count, other=0)
    report(error_ptr, RULE, (value < -8) | (value > 7), place)
    packed = tl.sum((value & 15) << (4 * nibble)[None, :], axis=1)
    tl.store(packed_ptr + element, packed.to(packed_ptr.dtype.element_ty), mask=element < count)


@triton.jit
def _unpack_kernel(packed_ptr, weight_ptr, count, PER: tl.constexpr, BLOCK: tl.constexpr):
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    nibble = tl.arange(0, PER)
    inside = element < count
    packed = tl.load(packed_ptr + element, mask=inside, other=0).to(tl.int32)
    value = (((packed[:, None] >> (4 * nibble)[None, :]) & 15) ^ 8) - 8
    place = element[:, None] * PER + nibble[None, :]
    tl.store(weight_ptr + place, value.to(weight_ptr.dtype.element_ty), mask=inside[:, None])


def int4_pack(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """See ``anynpu.int4_pack``; a value outside [-8, 7] is told by ``anynpu.check_device_errors``."""
    packed = weight.new_empty(pack_shape(weight, dtype), dtype=dtype)
    error = _device_errors.word(weight.device)
    count, per = packed.numel(), VALUES_PER_ELEMENT[dtype]
    launch(_pack_kernel, ceil_divide(count, _BLOCK), weight, packed, error, count, RULE=_RANGE, PER=per, BLOCK=_BLOCK)
    return packed


def int4_unpack(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """See ``anynpu.int4_unpack``."""
    weight = packed.new_empty(unpack_shape(packed, dtype), dtype=dtype)
    count, per = packed.numel(), VALUES_PER_ELEMENT[packed.dtype]
    launch(_unpack_kernel, ceil_divide(count, _BLOCK), packed, weight, count, PER=per, BLOCK=_BLOCK)
    return weight
