# SPDX-License-Identifier: Apache-2.0
"""swiglu of CUDA tensors out of torch operators; models that quantise what follows use dequant_swiglu_quant."""

from __future__ import annotations

import torch

from anynpu.ops.swiglu.spec import output_shape


def swiglu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """See ``anynpu.swiglu``."""
    output_shape(x, dim)
    first, second = x.float().chunk(2, dim)
    return (torch.nn.functional.silu(first) * second).to(x.dtype, memory_format=torch.contiguous_format)
