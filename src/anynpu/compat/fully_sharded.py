# SPDX-License-Identifier: Apache-2.0
"""``FullyShardedDataParallel`` where npu stands for the CPU: it computes where the tensors are.

Its module takes seconds to import, so that it is changed when a program imports it.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from anynpu._after_import import change_when_imported
from anynpu.compat.device import names_npu, real_device, target


def _change(module: ModuleType) -> None:
    choose = module._get_device_from_device_id

    @functools.wraps(choose)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        device = choose(*args, **kwargs)
        return real_device(device) if names_npu(device) else device

    module._get_device_from_device_id = mapped
    module._get_compute_device = lambda *args, **kwargs: target()


def provide() -> None:
    """Has the module changed."""
    change_when_imported("torch.distributed.fsdp._init_utils", _change)
