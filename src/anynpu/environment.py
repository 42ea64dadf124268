# SPDX-License-Identifier: Apache-2.0
"""What this process runs on: CPU, instruction set tier, OpenMP, threads, devices."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from anynpu import _native, _openmp
from anynpu._version import __version__


def cpu_model() -> str:
    """The CPU's marketing name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _tiers() -> list[dict[str, str | bool | None]]:
    used = _native.isa()
    return [{"name": name, "used": name == used, "refusal": _native.isa_refusal(name)} for name in _native.ISA_TIERS]


def _devices() -> list[str]:
    cuda = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda]


def _warnings(runtimes: list[str]) -> list[str]:
    warnings = []
    if len(runtimes) > 1:
        warnings.append(
            f"{len(runtimes)} OpenMP runtimes are loaded, their threads slow each other down; expected one, torch's"
        )
    cap = os.environ.get("ANYNPU_MAX_ISA")
    if cap and cap not in _native.ISA_TIERS:
        tiers = ", ".join(_native.ISA_TIERS)
        warnings.append(f"ANYNPU_MAX_ISA has no effect: it must name a tier, {tiers}, got {cap!r}")
    return warnings


def collect() -> dict[str, Any]:
    """All of it, as plain JSON values."""
    runtimes = _openmp.used(_openmp.loaded())
    return {
        "anynpu": __version__,
        "library": {"path": str(_native.library_path()), "abi_version": _native.ABI_VERSION},
        "cpu": {"model": cpu_model(), "logical_cpus": os.cpu_count()},
        "isa": {"used": _native.isa(), "tiers": _tiers()},
        "threads": torch.get_num_threads(),
        "openmp_runtimes": runtimes,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "devices": _devices(),
        "warnings": _warnings(runtimes),
    }
