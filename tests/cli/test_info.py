# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

import torch
from typer.testing import CliRunner

import anynpu
from anynpu import _native, _openmp
from anynpu.cli import app

MAPS = """\
7f00-7f01 r-xp 00000000 fe:00 1 /env/lib/python3.11/site-packages/torch/lib/libgomp.so.1
7f01-7f02 r--p 00000000 fe:00 1 /env/lib/python3.11/site-packages/torch/lib/libgomp.so.1
7f02-7f03 r-xp 00000000 fe:00 2 /usr/lib/my folder/libiomp5.so
7f03-7f04 r-xp 00000000 fe:00 3 /usr/lib/llvm-14/lib/libomp.so.5
7f04-7f05 r-xp 00000000 fe:00 4 /usr/lib/libcompel.so.1
7f05-7f06 rw-p 00000000 00:00 0
7ffc-7ffd rw-p 00000000 00:00 0 [stack]
"""


def facts() -> dict:
    result = CliRunner().invoke(app, ["info", "--json"])
    assert result.exit_code == 0
    return json.loads(result.output)


def test_json_tells_what_is_used():
    told = facts()
    assert told["isa"]["used"] == _native.isa()
    assert [tier["name"] for tier in told["isa"]["tiers"]] == list(_native.ISA_TIERS)
    for tier in told["isa"]["tiers"]:
        assert tier["refusal"] == _native.isa_refusal(tier["name"])
    assert told["library"] == {"path": str(_native.library_path()), "abi_version": _native.ABI_VERSION}
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
    assert told["devices"][0] == "cpu"


def test_table_gives_the_reason_of_each_refused_tier():
    _native.set_max_isa("portable")
    try:
        output = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["info"]).output
    finally:
        _native.set_max_isa(None)
    assert "capped by ANYNPU_MAX_ISA or anynpu_set_max_isa" in output
    assert str(_native.library_path()) in output


def test_openmp_runtimes_are_found_once_each():
    assert _openmp.named_in(MAPS) == [
        "/env/lib/python3.11/site-packages/torch/lib/libgomp.so.1",
        "/usr/lib/llvm-14/lib/libomp.so.5",
        "/usr/lib/my folder/libiomp5.so",
    ]


def test_two_openmp_runtimes_are_warned_of(monkeypatch):
    monkeypatch.setattr(_openmp, "loaded", lambda: _openmp.named_in(MAPS))
    assert facts()["warnings"] == [
        "3 OpenMP runtimes are loaded, their threads slow each other down; expected one, torch's"
    ]


def test_the_runtime_that_a_shared_one_replaces_is_not_counted():
    torch_s = "/env/lib/python3.11/site-packages/torch.libs/libgomp-a49a47f9.so.1.0.0"
    others = ["/env/lib/python3.11/site-packages/scikit_learn.libs/libgomp-a49a47f9.so.1.0.0"]
    assert _openmp.used(["/usr/lib/libgomp.so.1.0.0", torch_s]) == [torch_s]
    assert _openmp.used(["/usr/lib/libgomp.so.1.0.0", *others]) == ["/usr/lib/libgomp.so.1.0.0", *others]


def test_a_cap_that_names_no_tier_is_warned_of(monkeypatch):
    monkeypatch.setenv("ANYNPU_MAX_ISA", "avx3")
    (warning,) = facts()["warnings"]
    assert warning.startswith("ANYNPU_MAX_ISA has no effect: it must name a tier, ") and warning.endswith("got 'avx3'")


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"anynpu {anynpu.__version__}\n")


def test_the_library_shares_the_runtime_of_torch():
    code = "from anynpu import environment; print(len(environment.collect()['openmp_runtimes']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


def test_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "anynpu", "info", "--json"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["isa"]["used"]
