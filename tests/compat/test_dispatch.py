# SPDX-License-Identifier: Apache-2.0
"""Experts across ranks as written for Ascend: each program runs as so many processes, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"


def run(program, processes):
    launch = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        str(PROGRAMS / program),
    )
    outcome = subprocess.run(
        [sys.executable, "-m", "anynpu", "run", *launch], capture_output=True, text=True, timeout=600
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_dispatch_and_combine(processes):
    run("dispatch.py", processes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_layer_of_a_serving_engine(processes):
    run("mc2_layer.py", processes)
