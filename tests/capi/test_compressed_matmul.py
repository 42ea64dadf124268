# SPDX-License-Identifier: Apache-2.0
"""aclnnMatmulCompressDequant over the case table, and the flow of its document."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import c_front_end
import case_table
import pytest
import torch

import anynpu
from anynpu.formats import compress_weight

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = case_table.load("compressed_matmul", "c")
VALID = [case for case in CASES if case.error is None and "scale_19_bits" not in case.args]
INVALID = [case for case in CASES if case.error is not None]


def words(scale):
    return scale.view(torch.int32).to(torch.int64) if scale.dtype == torch.float32 else scale


def run(args, info=None, offset_x=0, offset_w=None, scale=None, out_dtype=torch.float16):
    """Outcome of the two stages, and y when they succeed."""
    x, weight = args["x"], args["weight"]
    scale = words(args["scale"]).view(torch.uint64) if scale is None else scale
    compressed = compress_weight(weight)
    n = args.get("n") or max(scale.shape[-1], 0 if args.get("bias") is None else args["bias"].shape[-1])
    shape = [x.shape[0], n]
    with c_front_end.session() as make:
        y = make.output(shape, out_dtype)
        outcome = c_front_end.call(
            "aclnnMatmulCompressDequant",
            make.tensor(x),
            make.tensor(compressed.stream),
            make.tensor(compressed.index),
            make.tensor(args.get("bias")),
            make.tensor(scale),
            make.tensor(offset_w),
            ctypes.c_int(offset_x),
            make.ints(info or [8, 8, x.shape[-1], n, 1]),
            y.handle,
        )
        if outcome.status != 0:
            assert y.is_untouched()
            return outcome, None
        return outcome, y.tensor(shape, torch.float16)


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_valid_call_equals_the_python_front_end(case):
    outcome, y = run(case.args)
    assert outcome.status == 0, outcome
    compressed = compress_weight(case.args["weight"])
    scale, bias = words(case.args["scale"]), case.args.get("bias")
    expected = anynpu.compressed_matmul(
        case.args["x"], compressed.stream, compressed.index, bias, scale, n=case.args.get("n")
    )
    assert torch.equal(y, expected)


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_call_gives_its_status_and_leaves_outputs_untouched(case):
    outcome, _ = run(case.args)
    assert outcome.status == case.error["status"], outcome
    assert re.search(case.error["match"], outcome.sentence), outcome


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scale": torch.ones(1, 8)}, "deqScale must be uint64, got float32"),
        ({"out_dtype": torch.bfloat16}, "out must be float16, got bfloat16"),
        ({"offset_x": 1}, "offsetX must be 0, got 1"),
        ({"offset_w": torch.zeros(4, dtype=torch.int8)}, "offsetW must be null"),
        ({"info": [8, 8, 8, 64, 1]}, r"compressInfo must be \[8, 8, k, n, 1\] with k = 64 of x1 and n = 8 of out"),
        ({"info": [16, 8, 64, 8, 1]}, "got tilingK 16, tilingN 8, flag 1"),
        ({"info": [8, 8, 64, 7, 1]}, r"with k = 64 of x1 and n = 8 of out, got k 64, n 7"),
        ({"info": [8, 16, 64, 8, 1]}, "got tilingK 8, tilingN 16, flag 1"),
        ({"info": [8, 8, 64, 8, 0]}, "got tilingK 8, tilingN 8, flag 0"),
        ({"info": [8, 8, 64, 8]}, "compressInfo"),
        ({"bias": torch.ones(8)}, "bias must be int32, got float32"),
    ],
)
def test_rules_of_the_document(options, match):
    options = dict(options)
    args = {
        "x": torch.ones(2, 64, dtype=torch.int8),
        "weight": torch.ones(8, 64, dtype=torch.int8),
        "scale": torch.ones(1, 8),
        "bias": options.pop("bias", None),
    }
    outcome, _ = run(args, **options)
    assert outcome.status == 161002, outcome
    assert re.search(match, outcome.sentence), outcome


def run_program(*command, **environment):
    outcome = subprocess.run([*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True)
    return outcome.returncode, outcome.stdout + outcome.stderr


def test_the_flow_of_the_document(tmp_path):
    """Data, compression, conversion of the scales, and the two-stage call; both programs compare with quant_matmul."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    anynpu_command = (sys.executable, "-m", "anynpu")
    script, program, data = EXAMPLES / "python/torch_npu_compressed_matmul.py", tmp_path / "program", tmp_path / "data"
    status, output = run_program(*anynpu_command, "run", script, data)
    assert status == 0 and "equal to the uncompressed product, bit for bit: True" in output, output
    status, output = run_program(
        *anynpu_command, "cc", EXAMPLES / "c/compressed_matmul.cpp", "-O2", "-Wall", "-o", program
    )
    assert (status, output) == (0, "")
    status, output = run_program(program, data, ANYNPU_CHECK="1")
    assert status == 0 and "(512, 1024) x (1024, 1024): weight 1048576 bytes" in output, output
    assert "bit for bit: yes" in output and "0 findings" in output
    status, output = run_program(program, data, ANYNPU_STRICT="Ascend910B")
    assert status == 1 and "Ascend910B (Atlas A2) lacks this operator" in output
    damaged = bytearray((data / "x2.bin").read_bytes())
    damaged[1000] ^= 1
    (data / "x2.bin").write_bytes(damaged)
    status, output = run_program(program, data)
    assert status == 1 and "block 0 of the compressed weight" in output
