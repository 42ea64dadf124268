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
kernel[(1,)](x, y, 6)  # the part that sticks out of the row has no value
assert y[:4].tolist() == [66, 1, 76, 3] and y[4].isnan() and y[6].isnan()
for first, rule in ((8, "the part must lie inside of axis 0, of 8, got offset 8, size 4, stride 1"), (-1, "offset -1")):
    try:
        kernel[(1,)](x, y, first)
    except Exception as error:
        assert rule in str(error) + str(error.__cause__)
    else:
        raise AssertionError("accepted")
if len(sys.argv) == 1:  # a process that it starts finds npu when it imports torch, and Triton the backend
    subprocess.run([sys.executable, __file__, "child"], check=True)
"""


LANGUAGE = """
import torch
import triton
import triton.language as tl


@triton.jit
def kernel(x, y, sums, N: tl.constexpr):
    place = tl.arange(0, N)
    row = tl.load(x + place)
    tl.store(y + place, row * 1.5 - row * row)
    tl.store(y + N + place, tl.where(row < 0, -row, 1 / (row + 3)))
    tl.store(y + 2 * N + place, tl.sigmoid(row))
    tl.store(sums, tl.sum(row))
    tl.store(sums + 1, tl.min(row, 0))


@triton.jit
def cast(x, rounded, codes, N: tl.constexpr):
    row = tl.load(x + tl.arange(0, N))
    tl.store(rounded + tl.arange(0, N), row)
    tl.store(codes + tl.arange(0, N), row.cast(tl.int8, overflow_mode="saturate"))


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = (torch.arange(-12, 12) / 8).to(dtype).npu()
    y, sums = torch.zeros(3, 24, dtype=dtype).npu(), torch.zeros(2, dtype=dtype).npu()
    kernel[(1,)](x, y, sums, 24)
    assert torch.equal(y[0], x * 1.5 - x * x) and torch.equal(y[1], torch.where(x < 0, -x, 1 / (x + 3)))
    # The sum and the quotient are rounded by eps / 2, and exp, whose share is less than 1; float32's is off by 2.6 ulp.
    rounds = 3.6 if dtype == torch.float32 else 1.6
    torch.testing.assert_close(y[2].double(), x.double().sigmoid(), rtol=rounds * torch.finfo(dtype).eps, atol=0)
    assert sums.tolist() == [x.double().sum(), -1.5]

x = torch.cat([torch.tensor([float("nan"), float("inf"), -float("inf"), 300, -300, 1.9, -1.9]), torch.randn(41) * 30])
rounded, codes = torch.zeros(48, dtype=torch.bfloat16).npu(), torch.zeros(48, dtype=torch.int8).npu()
cast[(1,)](x.npu(), rounded, codes, 48)
torch.testing.assert_close(rounded, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
assert codes[:7].tolist() == [0, 127, -128, 127, -128, 1, -1]
assert torch.equal(codes[7:].double(), x[7:].clamp(-128, 127).trunc().double())
"""


@pytest.mark.parametrize("program", [PARTS, LANGUAGE], ids=["parts", "language"])
def test_what_programs_for_triton_ascend_ask_of_triton(program, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "kernels.py").write_text(program)
    command = [sys.executable, "-m", "anynpu", "run", str(tmp_path / "kernels.py")]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
