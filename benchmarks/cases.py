# SPDX-License-Identifier: Apache-2.0
"""What is measured of each operator: its problems, anynpu's own variants, and the machine's limits that bound it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import compressed_matmul
import int4_linear
import kv_cache
import moe
import moe_layer
import moe_tokens
import prompt_attention
import quant_matmul
import torch
from measure import Variant, copies_for
from problems import MatmulProblem, PackProblem

import anynpu

_SHAPES = [(4096, 4096), (4096, 14336), (14336, 4096)]  # (K, N)
_ROWS = (1, 4, 16, 64, 256, 1024)
_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """The benchmark of one operator."""

    problems: Callable[[bool], Iterator[Any]]  # argument: only the quick ones
    variants: Callable[[Any], Iterator[Variant]]
    limits: tuple[str, ...]  # of benchmarks/roofs.py


def _pack_problems(quick: bool) -> Iterator[PackProblem]:
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        yield PackProblem(k, n)


def _pack_variants(problem: PackProblem) -> Iterator[Variant]:
    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: anynpu.int4_pack(weight)

    yield Variant(
        name="anynpu",
        arithmetic="int4",
        calls=[call_with(problem.weight.clone()) for _ in range(copies_for(problem.weight.nbytes))],
        expected=lambda: anynpu.reference.int4_pack(problem.weight),
        tolerance=0,
        bytes=problem.bytes,
    )


def _matmul_problems(quick: bool) -> Iterator[MatmulProblem]:
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        for m in (1, 256) if quick else _ROWS:
            yield MatmulProblem(m, k, n, group_size=128, bits=4)
    k, n = _SHAPES[0]
    for m in (1,) if quick else (1, 16, 256):
        yield MatmulProblem(m, k, n, group_size=0, bits=8)


def _matmul_variants(problem: MatmulProblem) -> Iterator[Variant]:
    for dtype in _SHORT:
        yield _matmul(problem, dtype, prepacked=True)
    yield _matmul(problem, torch.bfloat16, prepacked=False)


def _matmul(problem: MatmulProblem, dtype: torch.dtype, prepacked: bool) -> Variant:
    weight = anynpu.int4_pack(problem.weight) if problem.bits == 4 else problem.weight.to(torch.int8)
    if prepacked:
        weight = anynpu.weight_quant_prepack(weight)
    x = problem.x.to(dtype)
    scale = problem.scale.to(dtype)
    columns = problem.n if prepacked else None

    def call_with(weight: torch.Tensor, scale: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: anynpu.weight_quant_matmul(x, weight, scale, group_size=problem.group_size, n=columns)

    bytes_of_weight = weight.nbytes + scale.nbytes
    return Variant(
        name=f"anynpu {_SHORT[dtype]} {'prepacked' if prepacked else 'plain layout'}",
        arithmetic=f"W{problem.bits}A{8 * dtype.itemsize}",
        calls=[call_with(weight.clone(), scale.clone()) for _ in range(copies_for(bytes_of_weight))],
        expected=lambda: problem.expected(dtype),
        tolerance=_ROUNDING[dtype],
        bytes=bytes_of_weight + x.nbytes + problem.m * problem.n * dtype.itemsize,
    )


CASES = {
    "compressed_matmul": Case(compressed_matmul.problems, compressed_matmul.variants, ("read", "int8")),
    "rope_kv_cache": Case(kv_cache.rope_problems, kv_cache.rope_variants, ("read",)),
    "kv_cache_attention": Case(kv_cache.attention_problems, kv_cache.attention_variants, ("read", "fp32")),
    "fused_attention": Case(prompt_attention.problems, prompt_attention.variants, ("fp32", "bf16")),
    "int4_pack": Case(_pack_problems, _pack_variants, ("read",)),
    "grouped_matmul_combine": Case(moe.problems, moe.variants, ("read", "int4")),
    "grouped_matmul": Case(moe.sums_problems, moe.sums_variants, ("read", "int8")),
    "quant_moe": Case(moe_layer.problems, moe_layer.variants, ("read",)),
    "moe_init_routing": Case(moe_tokens.routing_problems, moe_tokens.routing_variants, ("read",)),
    "dequant_swiglu_quant": Case(moe_tokens.activation_problems, moe_tokens.activation_variants, ("read",)),
    "swiglu": Case(moe_tokens.swiglu_problems, moe_tokens.call_variants, ("read",)),
    "moe_gating_topk_softmax": Case(moe_tokens.gating_problems, moe_tokens.call_variants, ("read",)),
    "moe_finalize_routing": Case(moe_tokens.finalize_problems, moe_tokens.call_variants, ("read",)),
    "weight_quant_matmul": Case(_matmul_problems, _matmul_variants, ("read", "fp32", "int8", "bf16")),
    "int4_linear": Case(int4_linear.problems, int4_linear.variants, ("read", "int8")),
    "quant_matmul": Case(quant_matmul.problems, quant_matmul.variants, ("read", "int8")),
}
