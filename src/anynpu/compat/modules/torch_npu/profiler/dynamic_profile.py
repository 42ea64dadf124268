# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.profiler.dynamic_profile``: profiles that a file starts and stops while a program runs.

They are not implemented. ``step``, which programs call whether or not one was asked for, does nothing.
"""

from __future__ import annotations

from anynpu.compat.errors import module_getattr, not_implemented

init = not_implemented("torch_npu.profiler.dynamic_profile.init")
start = not_implemented("torch_npu.profiler.dynamic_profile.start")


def step() -> None:
    """Does nothing, since no profile can have been asked for."""


__getattr__ = module_getattr(__name__, globals())
