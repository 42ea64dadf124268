# SPDX-License-Identifier: Apache-2.0
"""The torch_npu example that the demonstration runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anynpu

_NAME = "torch_npu_quickstart.py"


def locate() -> Path:
    """``examples/python/torch_npu_quickstart.py`` of the source tree, or its copy in an installed wheel."""
    package = Path(anynpu.__file__).parent
    for folder in (package.parents[1] / "examples" / "python", package / "examples"):
        if (folder / _NAME).exists():
            return folder / _NAME
    raise FileNotFoundError(f"the example {_NAME} is missing from the installation; reinstall anynpu")


def run() -> str:
    """Runs it as ``anynpu run`` does, in a process of its own, and returns what it printed."""
    command = [sys.executable, "-m", "anynpu", "run", str(locate())]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
