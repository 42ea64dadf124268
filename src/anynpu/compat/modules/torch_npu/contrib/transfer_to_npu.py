# SPDX-License-Identifier: Apache-2.0
"""Importing this lets scripts written for CUDA run on npu: ``torch.cuda`` becomes ``torch.npu``, ``"cuda"`` ``"npu"``.

Nothing happens when npu stands for CUDA: such scripts run as they are.
"""

from __future__ import annotations

import sys

import torch

from anynpu.compat.device import adopt_cuda_names, lend, target

_cuda_is_available = torch.cuda.is_available


@torch.compiler.assume_constant_result
def _is_available() -> bool:
    # Inductor must not look for the properties of a GPU.
    for_inductor = sys._getframe(1).f_globals.get("__name__", "").startswith("torch._inductor")
    return _cuda_is_available() if for_inductor else True


if target().type == "cpu":
    adopt_cuda_names()
    lend(vars(torch.npu), torch.cuda)
    torch.cuda.Stream, torch.cuda.Event, torch.cuda.device = torch.npu.Stream, torch.npu.Event, torch.npu.device
    torch.cuda.is_available = _is_available
