# SPDX-License-Identifier: Apache-2.0
"""Arrows between parts point one way, and kernel units share nothing that the linker could mix up."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "src" / "anynpu"

# What a part of the package must never import.
FORBIDDEN = {
    "ops": ("anynpu.compat", "anynpu.cli", "anynpu.nn", "anynpu.formats", "anynpu.quantization"),
    "formats": ("anynpu.compat", "anynpu.cli", "anynpu.nn", "anynpu.quantization", "anynpu.checkpoints"),
    "nn": ("anynpu.compat", "anynpu.cli", "anynpu.quantization", "anynpu.checkpoints"),
    "quantization": ("anynpu.compat", "anynpu.cli", "anynpu.checkpoints"),
    "checkpoints": ("anynpu.compat", "anynpu.cli"),
    "compat": ("anynpu.cli",),
}
NATIVE_LAYERS = {
    "core": ("core",),
    "simd": ("core", "simd"),
    "gemm": ("core", "simd", "gemm"),
    "codec": ("core", "simd", "codec"),
    "ops": ("core", "simd", "gemm", "codec", "ops"),
    "acl": ("core", "acl"),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("part", FORBIDDEN)
def test_python_imports_point_one_way(part):
    files = list((PYTHON / part).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert not name.startswith(FORBIDDEN[part]), f"{path.relative_to(ROOT)} imports {name}"


def test_only_register_talks_to_torch_library():
    for path in (PYTHON / "ops").rglob("*.py"):
        assert "torch.library" not in path.read_text(), path.relative_to(ROOT)


@pytest.mark.parametrize("layer", NATIVE_LAYERS)
def test_native_includes_point_one_way(layer):
    if not (ROOT / "csrc" / layer).exists():
        pytest.skip(f"no csrc/{layer}")
    for path in (ROOT / "csrc" / layer).rglob("*"):
        if path.suffix not in {".h", ".cc", ".inc"} or path.name.startswith("aclnn"):
            continue
        for target in re.findall(r'#include "(\w+)/', path.read_text()):
            allowed = (*NATIVE_LAYERS[layer], "acl", "aclnn", "aclnnop") if layer == "acl" else NATIVE_LAYERS[layer]
            assert target in allowed, f"{path.relative_to(ROOT)} includes {target}/"


def test_vendor_names_stay_in_their_places():
    for path in [*(ROOT / "csrc" / "core").iterdir(), *(ROOT / "csrc" / "ops").rglob("*")]:
        if path.is_file() and not path.name.startswith("aclnn"):
            assert not re.search(r"\baclnn|\bnpu_", path.read_text()), path.relative_to(ROOT)


def test_kernel_units_define_no_weak_symbols():
    """A weak (inline) symbol of an AVX-512 unit could be kept by the linker for everybody and crash an older CPU."""
    built = list((ROOT / "build").glob("*/CMakeFiles/anynpu.dir"))
    if not built or shutil.which("nm") is None:
        pytest.skip("needs nm and the objects of an editable install under build/")
    for objects in built:
        units = [unit.relative_to(ROOT) for unit in (ROOT / "csrc").rglob("kernel_*.cc")]
        checked = [unit for unit in units if (objects / f"{unit}.o").exists()]
        assert checked
        for unit in checked:
            listing = subprocess.run(["nm", "-C", objects / f"{unit}.o"], check=True, capture_output=True, text=True)
            weak = [line for line in listing.stdout.splitlines() if re.search(r" [WVu] ", line)]
            assert not weak, f"{unit} defines weak symbols: {weak}"
