# SPDX-License-Identifier: Apache-2.0
"""Layers as written for Ascend run unmodified, and are near the float layer.

Steps of 1/127 (1/7) of a row's or group's largest value, which normal values of these sizes exceed 3 to 4 sigma at:
rounding adds a relative error of about ``3.5 / limit / sqrt(12)`` in each quantised operand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def errors_of(name):
    command = [sys.executable, "-m", "anynpu", "run", str(EXAMPLES / name)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {case: float(error) for case, error in re.findall(r"([\w ]+): relative error ([\d.]+)", printed)}


def rounding(operands, limit):
    return 2 * operands**0.5 * 3.5 / limit / 12**0.5


def test_mixture_of_experts():
    errors = errors_of("torch_npu_moe.py")
    assert errors.keys() == {"w8a8", "w4a8"}
    assert errors["w8a8"] < rounding(4, 127)
    assert errors["w4a8"] < rounding(2, 7)


def test_decoder_layer():
    errors = errors_of("torch_npu_decoder_layer.py")
    assert errors.keys() == {"prefill", "token 0", "token 1", "token 2"}
    for error in errors.values():
        assert error < rounding(8, 127)  # four products
