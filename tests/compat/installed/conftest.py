# SPDX-License-Identifier: Apache-2.0
"""These files run in a process of their own, started by ../test_installed.py: what install() does cannot be undone."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if "torch_npu" in sys.modules else ["test_*.py"]
