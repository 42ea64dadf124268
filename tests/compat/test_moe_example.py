# SPDX-License-Identifier: Apache-2.0
"""The mixture of experts as written for Ascend runs unmodified."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "python" / "torch_npu_moe.py"


def test_runs_and_is_near_the_float_layer():
    command = [sys.executable, "-m", "anynpu", "run", str(EXAMPLE)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    errors = {name: float(error) for name, error in re.findall(r"(\w+): relative error ([\d.]+)", printed)}
    # Steps of 1/127 and 1/7 of a row's or group's largest value, which normal values of these sizes exceed 3 to 4
    # sigma at: rounding adds a relative error of about 3.5 / limit / sqrt(12) in each of the four operands.
    assert errors.keys() == {"w8a8", "w4a8"}
    assert errors["w8a8"] < 2 * 4**0.5 * 3.5 / 127 / 12**0.5
    assert errors["w4a8"] < 2 * 2**0.5 * 3.5 / 7 / 12**0.5
