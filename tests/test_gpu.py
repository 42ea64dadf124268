# SPDX-License-Identifier: Apache-2.0
"""Runs the folder ``gpu``: by Triton's interpreter in a process of its own, unless pytest was told `--device cuda`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_kernels_in_the_interpreter(pytestconfig):
    if pytestconfig.getoption("device") == "cuda":
        pytest.skip("the folder gpu runs on the GPU in this process")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton: pip install triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=5", str(ROOT / "tests" / "gpu")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
