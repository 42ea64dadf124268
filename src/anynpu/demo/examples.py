# SPDX-License-Identifier: Apache-2.0
"""The torch_npu examples that the demonstration runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anynpu

NAMES = ("torch_npu_int4_linear.py", "torch_npu_graph.py")  # single operators, and graph mode through torchair


def locate(name: str) -> Path:
    """``examples/python/<name>`` of the source tree, or its copy in an installed wheel."""
    package = Path(anynpu.__file__).parent
    for folder in (package.parents[1] / "examples" / "python", package / "examples"):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"the example {name} is missing from the installation; reinstall anynpu")


def run(name: str) -> str:
    """Runs it as ``anynpu run`` does, in a process of its own, and returns what it printed."""
    command = [sys.executable, "-m", "anynpu", "run", str(locate(name))]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
