# SPDX-License-Identifier: Apache-2.0
"""A few cases of the native test programs, on every tier; run them by hand for more."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from anynpu import _native

ROOT = Path(__file__).parents[1]
PROGRAMS = ("kv_cache_test", "quant_matmul_test", "weight_quant_matmul_test")


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("needs a C++ compiler")
    built = tmp_path_factory.mktemp("native") / request.param
    source, library = ROOT / "tests" / "native" / f"{request.param}.cc", _native.library_path().resolve()
    flags = ["-std=c++17", "-O1", "-fopenmp", f"-I{ROOT / 'include'}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, *flags, source, library, "-o", built], check=True)
    return built


def test_program_passes(program, isa):
    done = subprocess.run([program, "20", "1", isa], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if isa not in done.stdout:
        pytest.skip(f"{program.name} has no kernels of {isa}")
