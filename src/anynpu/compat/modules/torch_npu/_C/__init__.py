# SPDX-License-Identifier: Apache-2.0
"""``torch_npu._C``: the few names of the vendor's native module that serving programs use."""

from __future__ import annotations

import torch

from anynpu.compat.errors import module_getattr

_NPUTaskGroupHandle = list  # what torch.npu.graph_task_group_end returns


def _weak_ref_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same memory, which it keeps here: a program that holds it too long does not read freed memory."""
    return tensor.detach()


__getattr__ = module_getattr(__name__, globals())
