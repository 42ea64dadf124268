# SPDX-License-Identifier: Apache-2.0
"""What programs for triton-ascend ask of Triton: a driver for npu, and the vendor's additions to the language."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARTS = """
import subprocess, sys
import torch
import triton
import triton.language as tl
from triton.language.extra.cann.extension import extract_slice, get_element, insert_slice

assert triton.runtime.driver.active.get_current_target().backend == "npu"
assert triton.runtime.driver.active.utils.get_device_properties(0)["num_vectorcore"] > 0


@triton.autotune(configs=[triton.Config({"N": 8}), triton.Config({"N": 8}, num_warps=2)], key=["first"])
@triton.jit
def kernel(x, y, first, N: tl.constexpr):
    row = tl.load(x + tl.arange(0, N))
    part = extract_slice(row, (first,), (4,), (1,)) * 10 + get_element(row, (first,))
    tl.store(y + tl.arange(0, N), insert_slice(row, part, (0,), (4,), (2,)))


x, y = torch.arange(8.0).npu(), torch.zeros(8).npu()
kernel[(1,)](x, y, 3)
assert y.tolist() == [33, 1, 43, 3, 53, 5, 63, 7]
for first, rule in ((5, "the part must lie inside of axis 0, of 8, got offset 5, size 4, stride 1"), (-1, "offset -1")):
    try:
        kernel[(1,)](x, y, first)
    except Exception as error:
        assert rule in str(error) + str(error.__cause__)
    else:
        raise AssertionError("accepted")
if len(sys.argv) == 1:  # a process that it starts finds npu when it imports torch, and Triton the backend
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


def test_what_programs_for_triton_ascend_ask_of_triton(tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "kernels.py").write_text(PARTS)
    command = [sys.executable, "-m", "anynpu", "run", str(tmp_path / "kernels.py")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
