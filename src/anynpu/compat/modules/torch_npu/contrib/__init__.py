# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.contrib``: scripts written for CUDA, see ``transfer_to_npu``."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
