# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from anynpu.cli import app

SCRIPT = """
import json, sys
import torch, torch_npu
print(json.dumps([sys.argv[1:], __name__, torch.ones(2, device="npu").sum().item(), torch.npu.get_device_name()]))
if "raise" in sys.argv:
    raise KeyError("what the script raised")
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(*args, cwd=None):
    return subprocess.run([sys.executable, "-m", "anynpu", "run", *args], capture_output=True, text=True, cwd=cwd)


def test_arguments_pass_untouched_and_the_exit_code_comes_back(script):
    arguments = ["--help", "--device", "cuda", "-m", "--", "-x=1", ""]
    result = run("--soc", "Ascend310P3", str(script), *arguments)
    assert json.loads(result.stdout) == [arguments, "__main__", 2.0, "Ascend310P3"]
    assert result.returncode == 7, result.stderr


def test_module(script):
    result = run("-m", "script", "one", cwd=script.parent)
    assert json.loads(result.stdout)[0] == ["one"]
    assert result.returncode == 7, result.stderr


def test_an_exception_shows_the_frames_of_the_script_only(script):
    result = run(str(script), "raise")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{script}", line 6, in <module>'
    assert lines[-1] == "KeyError: 'what the script raised'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "error: no such script: missing.py"),
        (["--soc", "Pentium", "{script}"], "error: install: soc must be a chip name"),
        (["--device", "tpu", "{script}"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["--unknown", "{script}"], "No such option: --unknown"),
        ([], "Missing argument 'script'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(script, arguments, message):
    result = CliRunner().invoke(app, ["run", *[argument.format(script=script) for argument in arguments]])
    assert result.exit_code == 2
    assert message.lower() in result.stderr.lower()
    assert "Traceback" not in result.stderr
