# SPDX-License-Identifier: Apache-2.0
"""``torch_npu._C._distributed_c10d``: the process group behind ``hccl``, which is Gloo's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Backend

from anynpu.compat.collectives import BACKEND
from anynpu.compat.errors import module_getattr

__all__ = ["ProcessGroupHCCL"]


class _Options(Backend.Options):
    """Options of a group. Its timeout counts; the rest, which steers the vendor's library, is kept and not used."""

    def __init__(self, is_high_priority_stream: bool = False) -> None:
        super().__init__(BACKEND)
        self.is_high_priority_stream = is_high_priority_stream
        self.global_ranks_in_group: list[int] = []
        self.group_id = ""
        self.hccl_config: dict[str, Any] = {}


class ProcessGroupHCCL(dist.ProcessGroupGloo):
    """A group of ``size`` processes that meet at ``store``."""

    Options = _Options

    def __init__(self, store: Any, rank: int, size: int, options: _Options | timedelta | None = None) -> None:
        options = ProcessGroupHCCL.Options() if options is None else options
        super().__init__(store, rank, size, timeout=getattr(options, "_timeout", options))


__getattr__ = module_getattr(__name__, globals())
