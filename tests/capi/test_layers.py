# SPDX-License-Identifier: Apache-2.0
"""The layers among the examples compare themselves with plain loops; checking mode finds nothing wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["decoder_layer", "moe_layer"])
def test_a_layer(build, name):
    program = build(Path(__file__).parents[2] / "examples" / "c" / f"{name}.cpp", "-O2")
    command = [sys.executable, "-m", "anynpu", "check", str(program)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to the plain loop: yes" in done.stdout
    assert "0 findings" in done.stdout + done.stderr
