# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.testing``: what test files written for torch_npu import."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr

__getattr__ = module_getattr(__name__, globals())
