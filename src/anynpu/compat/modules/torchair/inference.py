# SPDX-License-Identifier: Apache-2.0
"""``torchair.inference``: graph caches and shape gears of the vendor's engine. They can be imported, not used."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr, not_implemented

cache_compile = not_implemented("torchair.inference.cache_compile")
readable_cache = not_implemented("torchair.inference.readable_cache")
set_dim_gears = not_implemented("torchair.inference.set_dim_gears")

__getattr__ = module_getattr(__name__, globals())
