# SPDX-License-Identifier: Apache-2.0
"""``torch_npu._inductor``: imported to let Inductor compile for npu. It does here, for the real device, without it."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
