# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.atb``: the operators published under this name."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr
from anynpu.compat.paged_operators import npu_paged_cache_load

__all__ = ["npu_paged_cache_load"]

__getattr__ = module_getattr(__name__, globals())
