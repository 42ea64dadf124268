# SPDX-License-Identifier: Apache-2.0
"""Compiles and runs small C and C++ programs against the toolkit, plainly or under sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from anynpu import _native
from anynpu.cli.toolkit import LIBRARIES

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "capi" / "programs"
SEEDS = ROOT.parent / "shared" / "seeds"

FINDINGS_STATUS = 86  # the exit status of a checked program that is fine but for its findings

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    "OMP_NUM_THREADS": "1",  # the sanitizers cannot see into libgomp
}


class Compiler:
    """Builds programs against one toolkit folder."""

    def __init__(self, toolkit: Path, output: Path, flags: tuple[str, ...] = ()) -> None:
        self.toolkit = toolkit
        self.output = output
        self.flags = flags

    def __call__(self, source: Path, *flags: str | Path) -> Path:
        if compiler_for(source) is None:
            pytest.skip("needs a C++ compiler")
        program = self.output / source.stem
        libraries = self.toolkit / "lib64"
        subprocess.run(
            [
                compiler_for(source),
                *("-std=c99" if source.suffix == ".c" else "-std=c++11", "-g", "-Wall", "-Wextra", "-pthread"),
                *self.flags,
                f"-I{self.toolkit / 'include'}",
                f"-I{PROGRAMS}",
                *flags,
                source,
                "-o",
                program,
                *(libraries / f"lib{name}.so" for name in LIBRARIES),
                f"-Wl,-rpath,{libraries}",
            ],
            check=True,
        )
        return program


def compiler_for(source: Path) -> str | None:
    return shutil.which("gcc" if source.suffix == ".c" else "g++") or shutil.which(
        "cc" if source.suffix == ".c" else "c++"
    )


def run_program(program: Path, *arguments: str, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess:
    """Runs with a clean set of ANYNPU_ switches and returns the outcome, whatever it is."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANYNPU_")}
    return subprocess.run(
        [program, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def sanitized(name: str, sanitizers: str, folder: Path) -> Compiler:
    """The front end built with sanitizers (the kernels are not: they have their own tests).

    The variable ANYNPU_SANITIZED_BUILDS names a folder that keeps the builds for the next run.
    """
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("needs cmake and g++")
    flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0"
    if "undefined" in sanitizers:
        flags += " -fno-sanitize=enum"  # a C caller may pass any int, and GCC gives our enums all its values
    build = Path(os.environ.get("ANYNPU_SANITIZED_BUILDS", folder)) / name
    build.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", ROOT / "csrc" / "acl", "-B", build, f"-DCMAKE_CXX_FLAGS={flags}"]
    configure += [f"-DCMAKE_SHARED_LINKER_FLAGS=-fsanitize={sanitizers}"]
    configure += [f"-DANYNPU_LIBRARY={_native.library_path().resolve()}"]
    jobs = str(os.cpu_count() or 1)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of tests may want the same build
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True, stdout=subprocess.DEVNULL)
    programs = build / "programs"
    programs.mkdir(exist_ok=True)
    return Compiler(build / "toolkit", programs, tuple(flags.split()))
