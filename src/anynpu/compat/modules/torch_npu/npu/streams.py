# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.streams``: the streams and events under their module's name."""

from __future__ import annotations

from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr
from torch_npu import npu as _npu

_NAMES = ("Event", "ExternalStream", "Stream")
_OF_THE_HOST = ("ExternalEvent", "SyncLaunchStream")
globals().update({name: getattr(_npu, name) for name in (_NAMES + _OF_THE_HOST if _target().type == "cpu" else _NAMES)})

__getattr__ = module_getattr(__name__, globals())
