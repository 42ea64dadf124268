# SPDX-License-Identifier: Apache-2.0
"""What programs for triton-ascend ask of Triton: a backend ``npu``, which runs kernels in Triton's interpreter.

The entry point in ``modules/anynpu_shim.egg-info`` names it to Triton. ``cann`` holds ``triton.language.extra.cann``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from anynpu._after_import import change_when_imported


def _extend(interpreter: ModuleType) -> None:
    importlib.import_module("anynpu.compat.triton_ascend.language").extend(interpreter)


def provide() -> None:
    """Has the interpreter accept what triton-ascend does. It cannot be undone."""
    change_when_imported("triton.runtime.interpreter", _extend)
