# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.op_plugin.atb``: the operators of the vendor's transformer library, here ``torch_npu._npu_...``."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
