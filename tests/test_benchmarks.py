# SPDX-License-Identifier: Apache-2.0
"""The benchmark driver on tiny problems: it must refuse wrong results and report consistent figures."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The modules of benchmarks/ by name, with copies of weights that fill next to nothing."""
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("benchmarks need a C compiler")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    loaded = {name: importlib.import_module(name) for name in ("measure", "problems", "cases", "peers", "report")}
    monkeypatch.setattr(loaded["measure"], "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(loaded["measure"], "_GROUP_SECONDS", 1e-4)
    return loaded


def compared(modules, operator, problem):
    case = modules["cases"].CASES[operator]
    variants = [*case.variants(problem), *modules["peers"].torch_cpu.__dict__[operator](problem)]
    comparison = modules["measure"].compare(variants, case.limits, threads=1, rounds=3)
    return modules["report"].rows(operator, problem, comparison)


def test_rows_of_int4_pack(modules):
    problem = modules["problems"].PackProblem(64, 128)
    rows = compared(modules, "int4_pack", problem)
    assert [row["variant"] for row in rows] == ["anynpu", "torch tensor operations"]
    for row in rows:
        assert row["relative_error"] == 0
        assert row["gigabytes_per_second"] * row["microseconds"] == pytest.approx(64 * 128 * 4.5 / 1e3)
        assert row["percent_of_limit"]["read"] == pytest.approx(
            100 * row["gigabytes_per_second"] / row["limits"]["read"]
        )
    assert rows[0]["times_as_long"][rows[1]["variant"]] == pytest.approx(
        rows[0]["microseconds"] / rows[1]["microseconds"]
    )
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 0)])
def test_every_variant_of_weight_quant_matmul_is_correct(modules, bits, group_size):
    problem = modules["problems"].MatmulProblem(3, 128, 64, group_size, bits)
    rows = compared(modules, "weight_quant_matmul", problem)
    assert {"anynpu bf16 prepacked", "anynpu fp16 prepacked", "anynpu fp32 prepacked"} < {
        row["variant"] for row in rows
    }
    table = modules["report"].markdown(rows)
    assert all(row["variant"] in table for row in rows)


def test_a_wrong_result_is_not_timed(modules):
    problem = modules["problems"].PackProblem(8, 16)
    variant = next(modules["cases"].CASES["int4_pack"].variants(problem))
    wrong = dataclasses.replace(variant, calls=[lambda: torch.zeros(8, 2, dtype=torch.int32)])
    with pytest.raises(RuntimeError, match="anynpu: relative error 1, allowed 0; not timed"):
        modules["measure"].compare([wrong], ["read"], threads=1, rounds=1)


@pytest.mark.parametrize("group_size", [0, 32])
def test_every_variant_of_grouped_matmul_combine_is_correct(modules, group_size):
    moe = importlib.import_module("moe")
    problem = moe.MoeProblem(4, 2, 3, 64, 128, group_size)
    peers = modules["peers"].torch_moe.grouped_matmul_combine(problem)
    variants = [*modules["cases"].CASES["grouped_matmul_combine"].variants(problem), *peers]
    comparison = modules["measure"].compare(variants, ("read", "int4"), threads=1, rounds=3)
    rows = modules["report"].rows("grouped_matmul_combine", problem, comparison)
    names = ["anynpu", "torch dequantise, matmul", *(["torch int4pack bf16, a loop"] if group_size else [])]
    assert [row["variant"] for row in rows] == names
    assert rows[0]["giga_operations_per_second"] * rows[0]["microseconds"] == pytest.approx(2 * 3 * 2 * 64 * 128 / 1e3)
