# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.op_plugin.atb._atb_ops``: what loads the operators of the vendor's transformer library."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr


def _register_atb_extensions() -> None:
    """Does nothing: the operators are there once torch_npu is imported."""


__getattr__ = module_getattr(__name__, globals())
