# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.amp``: automatic mixed precision on the device that npu stands for."""

from __future__ import annotations

from typing import Any

import torch

from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr


class autocast(torch.amp.autocast_mode.autocast):
    """``torch.autocast("npu")``; float16 unless told otherwise."""

    def __init__(
        self, enabled: bool = True, dtype: torch.dtype = torch.float16, cache_enabled: bool | None = None
    ) -> None:
        super().__init__("npu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """``torch.amp.GradScaler`` for npu."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(_target().type, *args, **kwargs)


def get_amp_supported_dtype() -> list[torch.dtype]:
    """What autocast may compute in."""
    return [torch.float16, torch.bfloat16]


__getattr__ = module_getattr(__name__, globals())
