# SPDX-License-Identifier: Apache-2.0
"""``ge_apis``, the operators of the vendor's graphs: none is there."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
