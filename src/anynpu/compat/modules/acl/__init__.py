# SPDX-License-Identifier: Apache-2.0
"""``acl``, the vendor's binding of AscendCL to Python: start and end, ``acl.rt`` and ``acl.util``.

Functions of C with results give them before the status, in one tuple; others give the status alone.
"""

from __future__ import annotations

from acl import rt as rt
from acl import util as util
from acl._library import function, library
from anynpu.compat.errors import module_getattr

ACL_MEMCPY_HOST_TO_HOST = 0
ACL_MEMCPY_HOST_TO_DEVICE = 1
ACL_MEMCPY_DEVICE_TO_HOST = 2
ACL_MEMCPY_DEVICE_TO_DEVICE = 3

finalize = function("aclFinalize")


def init(config_path: str | None = None) -> int:
    """Starts AscendCL. ``config_path`` has no effect."""
    return library.aclInit(None if config_path is None else config_path.encode())


def get_soc_name() -> str:
    """The chip of ``ANYNPU_SOC``."""
    return library.aclrtGetSocName().decode()


def get_recent_err_msg() -> str:
    """What the last call of this thread that failed had to say."""
    return library.aclGetRecentErrMsg().decode()


__getattr__ = module_getattr(__name__, globals())
