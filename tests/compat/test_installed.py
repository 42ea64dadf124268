# SPDX-License-Identifier: Apache-2.0
"""Runs the folder ``installed`` under the pytest plugin, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_anynpu

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "installed"
PACKAGES = str(Path(pytest_anynpu.__file__).parents[1])  # src, or site-packages


def test_with_npu_installed():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANYNPU_S")}
    environment |= {"PYTHONPATH": PACKAGES, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "pytest_anynpu", "--anynpu", "-p", "no:cacheprovider", str(FOLDER)]
    command += ["-o", "addopts=--import-mode=importlib"]  # without -q, for the header
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "npu stands for cpu, reported as Ascend910B" in done.stdout
    assert " passed" in done.stdout


def test_the_plugin_alone_imports_neither_torch_nor_anynpu():
    code = "import sys, pytest_anynpu; assert not {'torch', 'anynpu'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": PACKAGES}, check=True)


def test_a_wrong_option_is_the_users_to_fix(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "pytest_anynpu", "--anynpu", "--anynpu-soc", "H100", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": PACKAGES, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert outcome.returncode == pytest.ExitCode.USAGE_ERROR
    assert outcome.stderr.startswith("ERROR: --anynpu: install: soc must be a chip name")
