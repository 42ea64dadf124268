# SPDX-License-Identifier: Apache-2.0
"""Programs of others' libraries on npu, as ``docs/programs.md`` shows them: the examples learn what they are given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def printed_by(*arguments: str) -> str:
    command = [sys.executable, "-m", "anynpu", "run", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_two_processes_train_one_model():
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = printed_by(*launch, str(EXAMPLES / "npu_ddp.py"))
    first, last = map(float, re.findall(r"loss ([\d.]+)", printed))
    assert last < first
    assert "the processes have the same weights: True" in printed


def test_the_trainer_of_transformers():
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    printed = printed_by(str(EXAMPLES / "npu_trainer.py"))
    assert "device: npu:0" in printed
    assert "counted: 3 4 5 6 7 8 9 10 3" in printed
