# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of dynamic_quant."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu.ops.dynamic_quant.spec import MODES, output_shapes

_call = _native.Call("dynamic_quant", tensors=5, scalars="2i")


def dynamic_quant(
    x: torch.Tensor,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    quant_mode: str = "pertoken",
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``anynpu.dynamic_quant``."""
    shape, scale_shape = output_shapes(x, smooth_scales, group_index, dtype, quant_mode)
    y = torch.empty(shape, dtype=dtype)
    scale = torch.empty(scale_shape, dtype=torch.float32)
    _call(x, smooth_scales, group_index, y, scale, scalars=(MODES.index(quant_mode), 0))
    return y, scale
