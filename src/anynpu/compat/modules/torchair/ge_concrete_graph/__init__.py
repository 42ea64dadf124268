# SPDX-License-Identifier: Apache-2.0
"""``torchair.ge_concrete_graph``: where the documents' samples import ``ge_apis`` from, which they do not use."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr
from torchair.ge_concrete_graph import ge_apis

__all__ = ["ge_apis"]

__getattr__ = module_getattr(__name__, globals())
