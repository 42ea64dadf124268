# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of trans_quant_param."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu.ops.trans_quant_param.spec import param_shape

_encode = _native.Call("trans_quant_param", tensors=3, scalars="2i")


def trans_quant_param(scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int = 0) -> torch.Tensor:
    """See ``anynpu.trans_quant_param``."""
    param = torch.empty(param_shape(scale, offset, round_mode), dtype=torch.int64)
    _encode(scale, offset, param, scalars=(round_mode, 0))
    return param
