# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.npu.utils``: whether numbers overflowed. Results hold inf and nan as on Atlas A2; no flag is set."""

from __future__ import annotations

import math
import warnings

import torch

from anynpu.compat.errors import module_getattr


def is_support_inf_nan() -> bool:
    """Always: results that overflow are inf or nan."""
    return True


def npu_check_overflow(grad: float | torch.Tensor) -> bool:
    """Whether a number, or the sum of a tensor in float32, is inf or nan."""
    if not isinstance(grad, float | torch.Tensor):
        raise RuntimeError(f"npu_check_overflow: grad must be a float or a tensor, got {type(grad).__name__}")
    return not math.isfinite(grad if isinstance(grad, float) else grad.float().sum())


def get_npu_overflow_flag() -> bool:
    """Raises a RuntimeError, as on chips whose results hold inf and nan."""
    raise RuntimeError("get_npu_overflow_flag: results hold inf and nan, and no flag is set; use npu_check_overflow")


def clear_npu_overflow_flag() -> None:
    """Warns that there is no flag, as on chips whose results hold inf and nan."""
    warnings.warn("clear_npu_overflow_flag: results hold inf and nan, and no flag is set", stacklevel=2)


__getattr__ = module_getattr(__name__, globals())
