# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.op_plugin``: where the vendor's package keeps its operators."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
