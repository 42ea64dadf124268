# SPDX-License-Identifier: Apache-2.0
"""Installs in a process that a script under ``anynpu run`` started: there nobody has called ``anynpu.install``."""

from __future__ import annotations

import os

from anynpu import compat


def installed() -> None:
    """Torch calls this when it is imported there, as it does with the vendor's package."""


if not compat.installed():
    compat.install(os.environ.get("ANYNPU_DEVICE", "cpu"))
