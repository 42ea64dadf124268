# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels of weight_quant_matmul share: reading scales, and what follows the sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu._triton import encoded_offset, encoded_scale, half_to_even, rounded

# Two powers of two whose last place is 1, plus 8: four bits put into that place are int4.
MAGIC = {torch.float16: 0x64086408, torch.bfloat16: 0x43084308}


@triton.jit
def factors_of(ptr, group, column, N, group_stride, column_stride):
    """A row of scales or offsets in float32; an int64 scale holds one in its low half."""
    values = tl.load(ptr + group * group_stride + column.to(tl.int64) * column_stride, mask=column < N, other=0)
    return encoded_scale(values) if values.dtype == tl.int64 else values.to(tl.float32)


@triton.jit
def ended(value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride, quant_scale_stride,
          quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr,
          dtype: tl.constexpr):  # fmt: skip
    """Results out of sums: bias added, quantised, rounded. ``column`` and ``inside`` have their shape or broadcast."""
    if BIAS:
        value += tl.load(bias_ptr + column * bias_stride, mask=inside, other=0.0).to(tl.float32)
    if QUANT:
        stored = tl.load(quant_scale_ptr + column * quant_scale_stride, mask=inside, other=0)
        if stored.dtype == tl.int64:
            value = value * encoded_scale(stored) + encoded_offset(stored)
        else:
            value *= (stored.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # its upper 19 bits
        if QUANT_OFFSET:
            offset = tl.load(quant_offset_ptr + column * quant_offset_stride, mask=inside, other=0.0)
            value += half_to_even(tl.minimum(tl.maximum(offset, -256.0), 255.0))
    return rounded(value, dtype)
