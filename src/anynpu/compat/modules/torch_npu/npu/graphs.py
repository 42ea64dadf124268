# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.graphs``: the graphs of the device under their module's name."""

from __future__ import annotations

from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr
from torch_npu import npu as _npu

_NAMES = ("NPUGraph", "graph", "graph_pool_handle", "is_current_stream_capturing", "make_graphed_callables")
_OF_THE_HOST = ("graph_task_group_begin", "graph_task_group_end", "graph_task_update_begin", "graph_task_update_end")
globals().update({name: getattr(_npu, name) for name in (_NAMES + _OF_THE_HOST if _target().type == "cpu" else _NAMES)})

__getattr__ = module_getattr(__name__, globals())
