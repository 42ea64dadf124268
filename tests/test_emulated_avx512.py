# SPDX-License-Identifier: Apache-2.0
"""The tiers above AVX2 that the CPU lacks pass their tests in emulation (csrc/simd/emulated_*.h)."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anynpu import _native

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "tests" / "native"
FLAGS = (
    "-mavx2 -mbmi2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni "
    "-mavx512vbmi -mavx512bitalg -mgfni"
)
AVXVNNI_FLAGS = "-mavx2 -mavxvnni"
AMX_FLAGS = "-mavx2 -mfma -mamx-tile -mamx-int8 -mamx-bf16"
TESTS = (
    "tests/ops",
    "tests/nn",
    "tests/formats",
    "tests/test_flat_abi.py",
    "tests/test_kv_cache.py",
    "tests/test_native_programs.py",
    "tests/test_random_calls.py",
)

lacking = [tier for tier in _native.ISA_TIERS if tier not in {"avx2", "neon", "portable"} and _native.isa_refusal(tier)]
needs_gcc = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() not in {"x86_64", "AMD64"}, reason="needs g++ on x86-64"
)


def emulated_library():
    """Built from the objects of the editable install; where it cannot be (another compiler, its Ninja gone), anew."""
    folder = ROOT / "build" / "py3-none-linux_x86_64"
    if build(folder).returncode != 0:
        folder = ROOT / "build" / "emulated"
        configure = ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_CXX_COMPILER=g++"]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        build(folder).check_returncode()
    return folder / "csrc" / "simd" / "libanynpu.so"


def build(folder):
    jobs = str(os.cpu_count() or 1)
    command = ["cmake", "--build", folder, "--target", "anynpu_emulated", "--parallel", jobs]
    return subprocess.run(command)


@needs_gcc
@pytest.mark.skipif(not lacking, reason="the CPU has every tier")
@pytest.mark.skipif(_native.isa_refusal("avx2") is not None, reason="emulation needs AVX2")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
def test_tiers_pass_their_tests_in_emulation():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-k", " or ".join(lacking), *TESTS],
        cwd=ROOT,
        env={**os.environ, "ANYNPU_LIBRARY": str(emulated_library())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    for tier in lacking:
        assert f"{tier}: " not in done.stdout, "a tier was skipped"


@needs_gcc
@pytest.mark.parametrize(
    ("name", "tier", "flags"),
    [
        ("emulated_avx512", "avx512vbmi", FLAGS),
        ("emulated_avxvnni", "avxvnni", AVXVNNI_FLAGS),
        ("emulated_amx", "amx", AMX_FLAGS),
    ],
)
def test_emulation_equals_the_cpu(name, tier, flags, tmp_path):
    if tier in lacking:
        pytest.skip(f"{tier}: {_native.isa_refusal(tier)}")
    program = tmp_path / name
    source = NATIVE / f"{name}.cc"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-w", *flags.split(), f"-I{ROOT / 'csrc'}", source, "-o", program], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_intrinsic_of_the_kernels_is_compared():
    kernels = [path for path in (ROOT / "csrc").rglob("*a[mv]x*") if not path.name.startswith("emulated_")]
    used = {name for path in kernels for name in re.findall(r"_mm512_\w+|_mm(?:256)?_maskz?_\w+", path.read_text())}
    text = (NATIVE / "avx512_calls.inc").read_text()
    named = set(re.findall(r"_mm\w+", text))
    for macro, made in (
        ("BINARY", ("{}", "mask_{}", "maskz_{}")),
        ("COMPARISONS", ("cmpeq_{}_mask", "cmpgt_{}_mask", "cmplt_{}_mask")),
        ("MASKS", ("test_{}_mask", "mask_mov_{}", "maskz_mov_{}", "mask_blend_{}", "movm_{}")),
        ("PERMUTES", ("permutexvar_{}", "maskz_permutexvar_{}", "permutex2var_{}")),
    ):
        for argument in re.findall(rf"^  {macro}\((\w+)", text, re.MULTILINE):
            named.update("_mm512_" + name.format(argument) for name in made)
    assert used, "no kernels"
    # vdpbf16ps takes subnormals as zero, the emulation does not: the kernel keeps away from them.
    assert used - named <= {"_mm512_dpbf16_ps"}


def test_every_tile_intrinsic_of_the_kernels_is_compared():
    kernels = [path for path in (ROOT / "csrc").rglob("*amx*") if path.name != "emulated_amx.h"]
    used = {name for path in kernels for name in re.findall(r"_tile_\w+", path.read_text())}
    assert used, "no kernels"
    assert used <= set(re.findall(r"_tile_\w+", (NATIVE / "amx_calls.inc").read_text()))


def test_every_intrinsic_of_avxvnni_is_compared():
    products = (ROOT / "csrc" / "simd" / "products_avxvnni.h").read_text()
    used = set(re.findall(r"_mm256_\w+_avx_epi32", products))
    assert used, "no products"
    assert used <= set(re.findall(r"_mm256_\w+_avx_epi32", (NATIVE / "emulated_avxvnni.cc").read_text()))
