# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own CPU kernels: the int4 weight-only matmul behind torchao, and dense linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from measure import Variant, copies_for
from problems import MatmulProblem, PackProblem

import anynpu

NAME = "torch"


def unavailable() -> str | None:
    """Never: anynpu itself needs torch."""
    return None


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """int4 weights in bfloat16 (its other dtypes take a path 50 times slower), and dense weights."""
    if problem.bits == 4 and problem.group_size in (32, 64, 128, 256):
        yield _int4pack(problem)
    yield _linear(problem, torch.bfloat16, tolerance=2.0**-8)
    yield _linear(problem, torch.float32, tolerance=1e-5)


def _int4pack(problem: MatmulProblem) -> Variant:
    unsigned = (problem.weight.t() + 8).contiguous()  # [N, K]; its zero is 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1)
    scale_and_zero = torch.stack([problem.scale, torch.zeros_like(problem.scale)], -1).bfloat16().contiguous()
    x = problem.x.bfloat16()
    bytes_of_weight = packed.nbytes + scale_and_zero.nbytes

    def call_with(weight: torch.Tensor, parameters: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, problem.group_size, parameters)

    calls = [call_with(packed.clone(), scale_and_zero.clone()) for _ in range(copies_for(bytes_of_weight))]
    return Variant(
        name="torch int4pack bf16",
        arithmetic="W4A16",
        calls=calls,
        expected=lambda: problem.expected(torch.bfloat16),
        tolerance=2.0**-8,
        bytes=bytes_of_weight + x.nbytes + problem.m * problem.n * 2,
    )


def _linear(problem: MatmulProblem, dtype: torch.dtype, tolerance: float) -> Variant:
    weight = problem.dense().t().to(dtype).contiguous()  # [N, K]
    x = problem.x.to(dtype)

    def call_with(copy: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.nn.functional.linear(x, copy)

    short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return Variant(
        name=f"torch linear {short}",
        arithmetic=f"dense {short}",
        calls=[call_with(weight.clone()) for _ in range(copies_for(weight.nbytes))],
        expected=lambda: x.float() @ weight.t().float(),
        tolerance=tolerance,
        bytes=weight.nbytes + x.nbytes + problem.m * problem.n * dtype.itemsize,
    )


def int4_pack(problem: PackProblem) -> Iterator[Variant]:
    """The same packing written with tensor operations; unlike anynpu's it does not check the values."""
    shifts = 4 * torch.arange(8, dtype=torch.int32)

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: ((weight.unflatten(-1, (-1, 8)) & 15) << shifts).sum(-1, dtype=torch.int32)

    yield Variant(
        name="torch tensor operations",
        arithmetic="int4",
        calls=[call_with(problem.weight.clone()) for _ in range(copies_for(problem.weight.nbytes))],
        expected=lambda: anynpu.reference.int4_pack(problem.weight),
        tolerance=0,
        bytes=problem.bytes,
    )
