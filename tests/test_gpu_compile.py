# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel compiles to machine code of an H100 or H200 that fits one, without a GPU."""

from __future__ import annotations

import pytest
import torch

from anynpu._register import operators

triton = pytest.importorskip("triton")
import gpu_compile  # noqa: E402

HALF, BF16, FP32, INT8, INT32 = torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.int32


def meta(*shape: int, dtype: torch.dtype = HALF) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Operator, arguments, and an instruction that its main kernel has to contain.
CALLS = {
    "int4_pack": ("int4_pack", (meta(4096, 14336, dtype=INT32),), {}, "min.s64"),
    "int4_pack to bytes": ("int4_pack", (meta(4096, 14336, dtype=INT32), torch.uint8), {}, "min.s64"),
    "int4_unpack": ("int4_unpack", (meta(4096, 1792, dtype=INT32), INT8), {}, "st.global"),
    "dynamic_quant": ("dynamic_quant", (meta(512, 4096),), {}, "div.rn.f32"),
    "dynamic_quant int4 groups": (
        "dynamic_quant", (meta(512, 4096, dtype=BF16), meta(8, 4096, dtype=BF16), meta(8, dtype=INT32), INT32), {},
        "div.rn.f32",
    ),
    "dynamic_quant channels": ("dynamic_quant", (meta(512, 4096), None, None, INT8, "perchannel"), {}, "div.rn.f32"),
    "dynamic_quant tensor": ("dynamic_quant", (meta(512, 4096), None, None, INT8, "pertensor"), {}, "atom"),
    "quant_matmul": (
        "quant_matmul", (meta(4096, 4096, dtype=INT8), meta(14336, 4096, dtype=INT8).t(), meta(14336, dtype=FP32)),
        {"pertoken_scale": meta(4096, dtype=FP32), "output_dtype": BF16}, "wgmma",
    ),
    "quant_matmul of few rows": (
        "quant_matmul", (meta(4, 4096, dtype=INT8), meta(14336, 4096, dtype=INT8).t(), meta(14336, dtype=torch.int64)),
        {"bias": meta(14336, dtype=INT32), "output_dtype": HALF}, "mma",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_compiles(call, monkeypatch):
    operator, args, kwargs, instruction = CALLS[call]
    kernel = operators[operator].cuda_kernel
    found = gpu_compile.compiled_by(monkeypatch, lambda: kernel(*args, **kwargs))
    assert any(instruction in kernel.ptx for kernel in found)
    for kernel in found:
        print(f"{kernel.name}: {kernel.programs} programs, {kernel.registers} registers, {kernel.stack_bytes} spilled, "
              f"{kernel.shared_bytes} bytes shared")  # fmt: skip
        assert kernel.cubin
        assert kernel.shared_bytes <= gpu_compile.MOST_SHARED_BYTES
        assert kernel.stack_bytes == 0, f"{kernel.name} keeps {kernel.stack_bytes} bytes outside registers"
