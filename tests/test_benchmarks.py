# SPDX-License-Identifier: Apache-2.0
"""The benchmark driver on tiny problems: it must refuse wrong results and report consistent figures."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import itertools
import json
import shutil
import subprocess
import sys
import time
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
    loaded = {
        name: importlib.import_module(name)
        for name in ("measure", "problems", "cases", "cuda_cases", "cuda_measure", "peers", "report", "quant_matmul")
    }
    monkeypatch.setattr(loaded["measure"], "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(loaded["measure"], "_GROUP_SECONDS", 1e-4)
    return loaded


def compared(modules, operator, problem):
    case = modules["cases"].CASES[operator]
    variants = [*case.variants(problem), *modules["peers"].torch_cpu.__dict__[operator](problem)]
    comparison = modules["measure"].compare(variants, case.limits, threads=1, rounds=3)
    return modules["report"].rows(operator, problem, comparison)


def test_the_share_of_a_limit_is_the_median_of_the_rounds(modules):
    timing = modules["measure"].Timing(None, 0, [1.0, 2.0, 4.0], {"read": [8.0, 2.0, 1.0], "bf16": [0.0] * 3})
    assert 1 / (timing.median * timing.limit("read")) == 1 / 4  # of 1/8, 1/4 and 1/4
    assert timing.limit("bf16") == timing.limit("int8") == 0


def test_int4_linear(modules):
    problem = modules["problems"].MatmulProblem(5, 256, 64, 128, 4)
    variants = [*modules["cases"].CASES["int4_linear"].variants(problem)]
    assert [variant.name for variant in variants] == ["anynpu Int4Linear bf16", "anynpu plain layout bf16"]
    for variant in variants:
        assert modules["measure"].require_correct(variant) > 0


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


def test_every_variant_of_quant_matmul_is_correct(modules):
    problem = modules["quant_matmul"].Int8Problem(20, 64, 48)
    variants = [*modules["cases"].CASES["quant_matmul"].variants(problem), *modules["quant_matmul"].peers(problem)]
    assert len(variants) == 5
    assert all(modules["measure"].require_correct(variant) < 2.0**-11 for variant in variants)


def test_a_wrong_result_is_not_timed(modules):
    problem = modules["problems"].PackProblem(8, 16)
    variant = next(modules["cases"].CASES["int4_pack"].variants(problem))
    wrong = dataclasses.replace(variant, calls=[lambda: torch.zeros(8, 2, dtype=torch.int32)])
    with pytest.raises(RuntimeError, match="anynpu: relative error 1, allowed 0; not timed"):
        modules["measure"].compare([wrong], ["read"], threads=1, rounds=1)


def test_grouped_matmul_is_correct(modules):
    problem = importlib.import_module("moe").MoeProblem(4, 2, 3, 64, 128, 0)
    variants = list(modules["cases"].CASES["grouped_matmul"].variants(problem))
    comparison = modules["measure"].compare(variants, ("read", "int8"), threads=1, rounds=3)
    assert [timing.error for timing in comparison.timings] == [0]


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


@pytest.mark.parametrize(("batch", "length", "unequal"), [(2, 1, False), (5, 1, True), (1, 3, False)])
def test_every_variant_of_kv_cache_attention_is_correct(modules, batch, length, unequal):
    kv_cache = importlib.import_module("kv_cache")
    problem = kv_cache.AttentionProblem(batch, length, (4, 2), 40, unequal)
    assert problem.lengths == ([40, 40, 20, 20, 10] if unequal else [40] * batch)
    variants = [*kv_cache.attention_variants(problem), *kv_cache.attention_peers(problem)]
    assert len(variants) == 5
    assert all(modules["measure"].require_correct(variant) < 0.01 for variant in variants)


def test_every_variant_of_fused_attention_is_correct(modules):
    problem = importlib.import_module("prompt_attention").PromptProblem(2, 40, (4, 2))
    case, peers = modules["cases"].CASES["fused_attention"], modules["peers"].torch_kv_cache.fused_attention
    comparison = modules["measure"].compare(
        [*case.variants(problem), *peers(problem)], case.limits, threads=1, rounds=3
    )
    names = [timing.variant.name for timing in comparison.timings]
    assert names == [f"{name} {dtype}" for name in ("anynpu", "torch SDPA") for dtype in ("bf16", "fp16", "fp32")]
    assert len({problem.name for problem in case.problems(False)}) == 2


@pytest.mark.parametrize("operator", ["moe_init_routing", "dequant_swiglu_quant"])
def test_every_variant_of_the_tokens_operators_is_correct(modules, operator):
    tokens = importlib.import_module("moe_tokens")
    problem = tokens.RoutingProblem(5, 64, 8, 2) if operator == "moe_init_routing" else tokens.ActivationProblem(6, 32)
    case, peers = modules["cases"].CASES[operator], getattr(modules["peers"].torch_moe, operator)
    variants = [*case.variants(problem), *peers(problem)]
    comparison = modules["measure"].compare(variants, case.limits, threads=1, rounds=3)
    rows = modules["report"].rows(operator, problem, comparison)
    assert [row["variant"] for row in rows] == ["anynpu", "torch eager"]
    assert all(hasattr(problem, "name") for problem in case.problems(False))


def test_every_variant_of_calls_made_of_torch_operators_on_cuda_is_correct(modules):
    tokens = importlib.import_module("moe_tokens")
    logits, rows = torch.randn(5, 12), torch.randn(10, 8).bfloat16()
    skips = dict.fromkeys(("skip1", "skip2", "bias"))
    arguments = {
        "swiglu": (rows, {}),
        "moe_gating_topk_softmax": (logits, {"k": 3, "renorm": 1}),
        "moe_finalize_routing": (rows, skips | {"scales": torch.rand(5, 2), "row_idx": torch.arange(10).int()}),
    }
    for operator, made in arguments.items():
        case = modules["cases"].CASES[operator]
        problem = tokens.CallProblem(operator, "small", "fp32", lambda made=made: made)
        variants = [*case.variants(problem), *getattr(modules["peers"].torch_moe, operator)(problem)]
        rows = modules["report"].rows(
            operator, problem, modules["measure"].compare(variants, case.limits, threads=1, rounds=3)
        )
        assert [row["variant"] for row in rows] == ["anynpu", "torch operators"]
        assert len({problem.name for problem in case.problems(False)}) >= 4


def test_every_variant_of_quant_moe_is_correct(modules):
    layer = importlib.import_module("moe_layer")
    problem = layer.LayerProblem(5, 64, 32, 8, 3)
    variants = [*modules["cases"].CASES["quant_moe"].variants(problem), *modules["peers"].torch_moe.quant_moe(problem)]
    comparison = modules["measure"].compare(variants, ("read",), threads=1, rounds=3)
    names = [timing.variant.name for timing in comparison.timings]
    assert {"anynpu W8A8", "anynpu W4A8", "torch bf16, a loop"} < set(names)
    assert sum(name.endswith("grouped_matmul_combine") for name in names) == 4
    assert all(timing.error == 0 for timing in comparison.timings if " layer, " in timing.variant.name)


@pytest.mark.parametrize(
    "peer", ["bitsandbytes_nf4", "onnxruntime_nbits", "openvino_matmul", "vllm_cpu", "zentorch_linear"]
)
def test_every_variant_of_an_installed_peer_is_correct(modules, peer):
    module, moe = getattr(modules["peers"], peer), importlib.import_module("moe")
    if reason := module.unavailable():
        pytest.skip(reason)
    problems = {
        "weight_quant_matmul": [modules["problems"].MatmulProblem(m, 256, 64, 64, 4) for m in (1, 40, 3)],
        "int4_linear": [modules["problems"].MatmulProblem(m, 256, 64, 64, 4) for m in (1, 40, 3)],
        "quant_matmul": [modules["quant_matmul"].Int8Problem(m, 64, 96) for m in (1, 40, 3)],
        "grouped_matmul_combine": [moe.MoeProblem(4, 2, m, 64, 128, size) for m in (3, 20) for size in (0, 32)],
    }
    offered = [operator for operator in problems if hasattr(module, operator)]
    assert offered
    for operator in offered:
        for problem in problems[operator]:
            for variant in getattr(module, operator)(problem):
                errors = [modules["measure"].relative_error(call(), variant.expected()) for call in variant.calls]
                assert max(errors) <= variant.tolerance


def test_a_library_that_cannot_be_loaded_is_reported(modules, tmp_path, monkeypatch):
    why_not_loaded = modules["peers"].vllm_cpu.why_not_loaded
    assert why_not_loaded("absent_peer", "operators.so", "pip install it") == "pip install it"
    (tmp_path / "broken_peer").mkdir()
    for name in ("__init__.py", "operators.so"):
        (tmp_path / "broken_peer" / name).write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert why_not_loaded("broken_peer", "operators.so", "pip install it").startswith("pip install it (")


@pytest.fixture
def pretended_gpu(modules, monkeypatch):
    """The driver for GPUs on tensors of the CPU: calls are made one by one instead of replaying a graph of them."""

    def captured(calls):
        def replay():
            start = time.perf_counter()
            for call in calls:
                call()
            return (time.perf_counter() - start) / len(calls)

        return replay

    monkeypatch.setattr(modules["cuda_measure"], "captured", captured)
    monkeypatch.setattr(modules["cuda_measure"], "_COPIED_BYTES", 1 << 16)
    monkeypatch.setattr(modules["cuda_measure"], "_ROOF_SIZE", 32)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    return modules


@pytest.mark.parametrize("operator", ["int4_pack", "weight_quant_matmul", "quant_matmul", "rope_kv_cache",
                                      "kv_cache_attention", "compressed_matmul", "moe_init_routing",
                                      "dequant_swiglu_quant", "grouped_matmul",
                                      "grouped_matmul_combine"])  # fmt: skip
def test_every_variant_for_gpus_is_correct(operator, pretended_gpu):
    cases, problems = pretended_gpu["cuda_cases"], pretended_gpu["problems"]
    small = {
        "int4_pack": [problems.PackProblem(64, 128)],
        "weight_quant_matmul": [problems.MatmulProblem(3, 128, 64, 32, 4), problems.MatmulProblem(3, 64, 32, 0, 8)],
        "quant_matmul": [cases.Int8Problem(17, 64, 32)],
        "rope_kv_cache": [cases.RopeProblem(5)],
        "kv_cache_attention": [cases.AttentionProblem(2, 1, (4, 2), 40), cases.AttentionProblem(1, 3, (4, 2), 40)],
        "compressed_matmul": [cases.CompressedProblem(1, 64, 32)],
        "moe_init_routing": [cases.RoutingProblem(5, 64, 8, 2)],
        "dequant_swiglu_quant": [cases.ActivationProblem(6, 32)],
        "grouped_matmul": [cases.GroupedProblem(3, 40, 24, 4)],
        "grouped_matmul_combine": [cases.ExpertsProblem(3, 40, 24, 4)],
    }[operator]
    case, cpu = cases.CASES[operator], torch.device("cpu")
    limits = {name: probe for name, probe in pretended_gpu["cuda_measure"].roofs(cpu).items() if name in case.limits}
    for problem in small:
        comparison = pretended_gpu["cuda_measure"].compare(list(case.variants(problem, cpu)), limits, rounds=3)
        rows = pretended_gpu["report"].rows(operator, problem, comparison)
        assert rows[0]["variant"].startswith("anynpu")
        assert set(rows[0]["percent_of_limit"]) == set(case.limits)
        assert all(row["variant"] in pretended_gpu["report"].markdown(rows) for row in rows)
        assert all(row["microseconds"] > 0 for row in rows)
    assert all(hasattr(problem, "name") for problem in case.problems(False))


def test_targets_are_of_cases_that_are_measured_and_judged_by_the_fastest_variant(modules):
    cases, targets = importlib.import_module("cuda_cases"), importlib.import_module("cuda_targets")
    for target in targets.TARGETS:
        names = [problem.name for problem in cases.CASES[target.operator].problems(False)]
        assert fnmatch.filter(names, target.cases)
    rows = [
        {"operator": "weight_quant_matmul", "case": "m16_k8_n8_w4_g8", "variant": variant, "microseconds": microseconds,
         "times_as_long": {"torch linear bf16": microseconds / 5.0}}
        for variant, microseconds in (("anynpu bf16", 4.0), ("anynpu bf16 along K", 1.0), ("torch linear bf16", 5.0))
    ]  # fmt: skip
    line = "| weight_quant_matmul | m16_k8_n8_w4_g8 | anynpu bf16 along K | 2.5 x bf16 matmul | 5.00 | reached |"
    assert line in targets.markdown(rows).splitlines()
    assert "| 1.25 | missed |" in targets.markdown(rows[:1])


def test_a_missing_gpu_is_named(modules):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "--device cuda: torch.cuda.is_available() is False\n"


def test_the_tuner_takes_the_fastest_tile(pretended_gpu, monkeypatch):
    pytest.importorskip("triton")
    tuner = importlib.import_module("tune_cuda")
    for kind, most_m in itertools.product(tuner.KINDS, tuner.ROWS):
        assert 8 <= len(list(tuner.candidates(kind, most_m))) <= 100
    for kind, most_m in itertools.product(tuner.KINDS_OF_FEW_ROWS, tuner.FEW_ROWS):
        assert 8 <= len(list(tuner.candidates_of_few_rows(kind, most_m))) <= 100
    tiles = [{"BM": 16, "BN": width} for width in (32, 64, 128)]
    monkeypatch.setattr(tuner, "candidates", lambda kind, most_m: tiles)
    monkeypatch.setattr(tuner, "candidates_of_few_rows", lambda kind, most_m: tiles)
    monkeypatch.setattr(tuner, "SHAPES", [(128, 64)])
    used = []

    def note_the_tile(*args, **options):
        used.append(tuner.kernels._configuration(1, None, 0, False))

    monkeypatch.setattr(tuner.kernels, "weight_quant_matmul", note_the_tile)

    def captured(calls):
        calls[0]()
        width = used[-1]["BN"]
        if width == 32:
            raise RuntimeError("does not fit")
        return lambda: 1 / width

    monkeypatch.setattr(tuner.cuda_measure, "captured", captured)
    found = tuner.tuned(torch.device("cpu"))
    assert set(found["weight_quant_matmul"]) == {"int4 along N", "int4 along K", "int8"}
    assert set(found["weight_quant_matmul of few rows"]) == set(tuner.KINDS_OF_FEW_ROWS)
    for name, rows in (("weight_quant_matmul", [64, None]), ("weight_quant_matmul of few rows", [8, 16])):
        for entries in found[name].values():
            assert [entry["most_m"] for entry in entries] == rows
            assert all(entry["tile"]["BN"] == 128 for entry in entries)
