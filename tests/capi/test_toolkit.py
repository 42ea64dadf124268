# SPDX-License-Identifier: Apache-2.0
"""The toolkit folder, the ways to build against it, and the examples built in each of them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from c_programs import ROOT, run_program
from typer.testing import CliRunner

from anynpu.cli import app

EXAMPLES = ROOT / "examples" / "c"
CAST_LINES = [
    "-1.7 -> -1",
    "-0.5 -> 0",
    "0 -> 0",
    "0.5 -> 0",
    "1.7 -> 1",
    "2 -> 2",
    "300 -> 300",
    "1e+20 -> 2147483647",
]


def assert_cast_works(program, **environment):
    outcome = run_program(program, **environment)
    assert (outcome.returncode, outcome.stdout.splitlines()) == (0, CAST_LINES), outcome.stderr


def assert_matmul_works(program, **environment):
    outcome = run_program(program, **environment)
    assert outcome.returncode == 0, outcome.stderr
    first, second = outcome.stdout.splitlines()
    assert first == "weights: 65536 bytes as float32, 8192 as int4"
    # Rounding uniform weights in [-1, 1) to steps of s = 1/7: (s / sqrt(12)) / (1 / sqrt(3)) = 1/14 of their size.
    assert float(second.removeprefix("relative error of the product: ")) == pytest.approx(1 / 14, rel=0.15)


def test_folder_has_the_layout_that_programs_expect(toolkit):
    for path in (
        "include/acl/acl.h",
        "include/acl/acl_rt.h",
        "include/acl/acl_base.h",
        "include/aclnn/acl_meta.h",
        "include/aclnn/aclnn_base.h",
        "include/aclnnop/aclnn_cast.h",
        "lib64/libascendcl.so",
        "lib64/libnnopbase.so",
        "lib64/libopapi.so",
        "lib64/pkgconfig/ascendcl.pc",
        "lib64/cmake/AscendCL/AscendCLConfig.cmake",
    ):
        assert (toolkit / path).exists(), path


def command(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_toolkit_command_prints_the_folder(toolkit):
    assert command("toolkit").output == f"{toolkit}\n"


def test_cc_builds_c_and_cpp(tmp_path):
    if shutil.which("c++") is None or shutil.which("cc") is None:
        pytest.skip("needs a C and a C++ compiler")
    for name in ("cast.c", "int4_matmul.cpp"):
        outcome = command("cc", str(EXAMPLES / name), "-o", str(tmp_path / name.split(".")[0]), "-O2", "-Wall", "-lm")
        assert outcome.exit_code == 0
    assert_cast_works(tmp_path / "cast")
    assert_matmul_works(tmp_path / "int4_matmul")
    # The examples are clean programs.
    assert_cast_works(tmp_path / "cast", ANYNPU_CHECK="1")
    assert_matmul_works(tmp_path / "int4_matmul", ANYNPU_CHECK="1")


def test_cc_returns_the_compilers_status(tmp_path):
    (tmp_path / "broken.cpp").write_text("int main() { return nothing; }\n")
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    assert command("cc", str(tmp_path / "broken.cpp"), "-o", str(tmp_path / "broken")).exit_code == 1


def test_a_missing_compiler_or_program_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for arguments, name in ((("cc", "x.cpp"), "no-such-compiler"), (("check", "no-such-program"), "no-such-program")):
        outcome = command(*arguments)
        assert (outcome.exit_code, outcome.stderr) == (1, f"error: {name}: No such file or directory\n")


def test_cmake_package(toolkit, tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    prefix = f"-DCMAKE_PREFIX_PATH={toolkit / 'lib64' / 'cmake'}"
    subprocess.run(["cmake", "-S", EXAMPLES, "-B", tmp_path, prefix], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", tmp_path], check=True, stdout=subprocess.DEVNULL)
    assert_cast_works(tmp_path / "cast")
    assert_matmul_works(tmp_path / "int4_matmul")


def test_pkg_config(toolkit, tmp_path):
    tool = shutil.which("pkg-config") or shutil.which("pkgconf")
    if tool is None or shutil.which("gcc") is None:
        pytest.skip("needs pkg-config and gcc")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(toolkit / "lib64" / "pkgconfig")}
    flags = subprocess.run(
        [tool, "--cflags", "--libs", "ascendcl"], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    subprocess.run(["gcc", "-std=c99", EXAMPLES / "cast.c", "-o", tmp_path / "cast", *flags], check=True)
    assert_cast_works(tmp_path / "cast")
