# SPDX-License-Identifier: Apache-2.0
"""Gradients of published operators: those of anynpu have none, what torch's operators make of them has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import is_fake

from anynpu._device_errors import check_device_errors


def with_gradients(operator: Callable[..., Any], composite: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``operator``, or where a gradient is wanted ``composite``, which computes the same."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return operator(*args, **kwargs)
    results = composite(*args, **kwargs)
    device = tensors[0].device
    if device.type == "cpu" and not any(map(is_fake, tensors)):  # a GPU would have to be waited for
        check_device_errors(device)
    return results
