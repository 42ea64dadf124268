# SPDX-License-Identifier: Apache-2.0
"""The machine's limits, measured by roofs.c, which is compiled for this machine on first use."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("roofs.c")
UNITS = {"read": "GB/s", "int8": "Gop/s", "int4": "Gop/s", "fp32": "Gflop/s", "bf16": "Gflop/s"}
_PROBE_ITERATIONS = 200_000  # about 2 ms a thread
_TURNS = 5_000  # likewise


@cache
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("benchmarks need a C compiler for roofs.c: install gcc or clang, or set CC")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "roofs.so"
        native = ["-march=native", "-mprefer-vector-width=512"] if platform.machine() == "x86_64" else ["-mcpu=native"]
        flags = ["-O3", *native, "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(target)], check=True)
        library = ctypes.CDLL(str(target))
    for name in UNITS:
        function = getattr(library, f"anynpu_roof_{name}")
        function.restype = ctypes.c_double
        function.argtypes = [ctypes.c_int, ctypes.c_long]
    library.anynpu_handover.restype = ctypes.c_double
    library.anynpu_handover.argtypes = [ctypes.c_long]
    return library


def handover() -> float:
    """Nanoseconds until one CPU sees what another one has written; 0 where there is only one.

    Virtual CPUs move: on the same core complex they share a cache, on two of them they have more bandwidth.
    """
    return _library().anynpu_handover(_TURNS)


def probe(name: str, threads: int, iterations: int = _PROBE_ITERATIONS) -> float:
    """One short measurement of roof ``name``, in its unit; 0 where the CPU lacks the instruction."""
    return getattr(_library(), f"anynpu_roof_{name}")(threads, iterations)
