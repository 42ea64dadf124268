# SPDX-License-Identifier: Apache-2.0
"""A few seconds of tests/native/codec_fuzz.cc under AddressSanitizer; run it by hand for longer."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from anynpu import _native

ROOT = Path(__file__).parents[2]
FLAGS = {
    "portable": [],
    "avx2": "-mavx2 -mbmi2 -mfma -mf16c".split(),
    "avx512vnni": "-mavx2 -mbmi2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni".split(),
}
FLAGS["avx512vbmi"] = [*FLAGS["avx512vnni"], "-mavx512vbmi", "-mavx512bitalg", "-mgfni"]
EMULATED = [*FLAGS["avx2"], "-include", ROOT / "csrc" / "simd" / "emulated_avx512.h"]


def test_mutated_streams(tmp_path):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("needs a C++ compiler for x86-64")
    base = [compiler, "-std=c++17", "-O1", "-g", "-w", "-fopenmp", "-fsanitize=address,undefined"]
    base += ["-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'include'}"]
    probe = subprocess.run([*base, "-x", "c++", "-", "-o", tmp_path / "probe"], input="int main() {}", text=True)
    if probe.returncode != 0:
        pytest.skip("the compiler has no AddressSanitizer")
    emulate = compiler.endswith("g++") and _native.isa_refusal("avx512vbmi") is not None
    objects = []
    for tier, flags in FLAGS.items():
        if emulate and tier.startswith("avx512"):
            flags = EMULATED
        objects.append(tmp_path / f"{tier}.o")
        source = ROOT / "csrc" / "codec" / f"kernel_{tier}.cc"
        subprocess.run([*base, *flags, "-c", source, "-o", objects[-1]], check=True)
    names = ("tests/native/codec_fuzz.cc", "csrc/codec/encode.cc", "csrc/codec/fit.cc", "csrc/codec/decode.cc")
    names += ("csrc/core/cpu.cc", "csrc/core/status.cc")
    program = tmp_path / "codec_fuzz"
    base += ["-DANYNPU_EMULATE_AVX512"] if emulate else []
    subprocess.run([*base, *(ROOT / name for name in names), *objects, "-o", program], check=True)
    done = subprocess.run([program, "5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutated blocks" in done.stdout
