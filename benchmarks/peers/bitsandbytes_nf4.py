# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes: 4-bit weights of its own NF4 code, the same number of bits as int4, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
from measure import Variant, copies_for
from problems import MatmulProblem

NAME = "bitsandbytes"


def unavailable() -> str | None:
    """Whether the package is there."""
    return None if importlib.util.find_spec(NAME) else "pip install --no-deps bitsandbytes"


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """NF4 with bfloat16 activations, packed for its CPU kernel where the CPU has AVX512-BF16."""
    if problem.bits == 4 and problem.group_size:
        yield _nf4(problem)


def _nf4(problem: MatmulProblem) -> Variant:
    import bitsandbytes as bnb
    import bitsandbytes.functional as functional

    codes, state = functional.quantize_4bit(
        problem.dense().t().contiguous(), blocksize=problem.group_size, quant_type="nf4"
    )
    state.dtype = torch.bfloat16
    dense = functional.dequantize_4bit(codes, state).float()  # [N, K]
    x = problem.x.bfloat16()
    fused = functional.has_avx512bf16() and problem.n % 32 == 0
    if fused:
        codes, state = functional._convert_weight_packed_for_cpu(codes, state)

    def call_with(copy: torch.Tensor) -> Callable[[], torch.Tensor]:
        if fused:
            gemv = torch.ops.bitsandbytes.gemv_4bit
            return lambda: gemv(x, copy, state.shape, state.absmax, state.code, problem.group_size)
        return lambda: bnb.matmul_4bit(x, copy, state)

    bytes_of_weight = codes.nbytes + state.absmax.nbytes
    return Variant(
        name="bitsandbytes nf4 bf16" + ("" if fused else " (dequantise, then dense)"),
        arithmetic="W4A16",
        calls=[call_with(codes.clone()) for _ in range(copies_for(bytes_of_weight))],
        expected=lambda: x.float() @ dense.t(),
        tolerance=2.0**-7,  # weights and result are rounded to bfloat16
        bytes=bytes_of_weight + x.nbytes + problem.m * problem.n * 2,
    )
