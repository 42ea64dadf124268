# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel compiles to machine code of an H100 or H200 that fits one, and of lesser GPUs, without a GPU."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from anynpu._register import operators

triton = pytest.importorskip("triton")
import gpu_compile  # noqa: E402

from anynpu._triton import PROCESSORS  # noqa: E402

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
    "quant_matmul of prepacked int4": (
        "quant_matmul", (meta(4, 4096, dtype=INT8), meta(64 + 448 * 1024 * 64, dtype=torch.uint8),
                         meta(14336, dtype=FP32)), {"output_dtype": HALF, "n": 14336}, "mma",
    ),
    "quant_matmul of groups": (
        "quant_matmul", (meta(4, 4096, dtype=INT8), meta(4096, 1792, dtype=INT32), meta(32, 14336, dtype=FP32)),
        {"pertoken_scale": meta(4, dtype=FP32), "output_dtype": BF16, "group_size": 128}, "mma",
    ),
    "quant_matmul of many rows and groups": (
        "quant_matmul", (meta(512, 4096, dtype=INT8), meta(14336, 512, dtype=INT32).t(), meta(64, 14336, dtype=FP32)),
        {"pertoken_scale": meta(512, dtype=FP32), "output_dtype": BF16, "group_size": 64}, "wgmma",
    ),
    "weight_quant_prepack": ("weight_quant_prepack", (meta(4096, 1792, dtype=INT32),), {}, "st.global"),
}  # fmt: skip


def weight_quant_call(m, weight, dtype=BF16, group_size=128, **options):
    """A layer of Llama-3-8B, K = 4096 and N = 14336."""
    scale = meta(32, 14336, dtype=dtype) if group_size else meta(14336, dtype=dtype)
    return "weight_quant_matmul", (meta(m, 4096, dtype=dtype), weight, scale), {"group_size": group_size, **options}


ALONG_N, ALONG_K = meta(4096, 1792, dtype=INT32), meta(14336, 512, dtype=INT32).t()
BYTES, CELLS = meta(4096, 14336, dtype=INT8), meta(64 + 448 * 1024 * 64, dtype=torch.uint8)
for m, int4, int8, along_k in (
    (1, "mma.sync", "mma.sync", "mma.sync"),
    (16, "mma.sync", "mma.sync", "mma.sync"),
    (512, "wgmma", "wgmma", "wgmma"),
):
    CALLS |= {
        f"weight_quant_matmul, m = {m}": (*weight_quant_call(m, ALONG_N), int4),
        f"weight_quant_matmul, m = {m}, along K": (*weight_quant_call(m, ALONG_K, HALF), along_k),
        f"weight_quant_matmul, m = {m}, offset": (
            *weight_quant_call(m, ALONG_N, offset=meta(32, 14336, dtype=BF16)), int4),
        f"weight_quant_matmul, m = {m}, int8": (
            *weight_quant_call(m, BYTES, HALF, 0, quant_scale=meta(14336, dtype=FP32)), int8),
    }  # fmt: skip
CALLS |= {
    "weight_quant_matmul, prepacked": (*weight_quant_call(16, CELLS, n=14336), "mma.sync"),
    "weight_quant_matmul, float32": (*weight_quant_call(16, ALONG_N, FP32), "fma.rn.f32"),
    "weight_quant_matmul, float32, many rows": (*weight_quant_call(512, ALONG_N, FP32), "fma.rn.f32"),
}


def rope_call(tokens, x=BF16, **options):
    """The keys and values of Llama-3-8B: 32 and 8 heads of 128."""
    cache, scale = meta(256, 128, 8, 128, dtype=INT8), meta(8, 128, dtype=FP32)
    angle, indices = meta(tokens, 128, dtype=BF16), meta(tokens, dtype=INT32)
    splits = [4096, 1024, 1024]
    args = (meta(tokens, 6144, dtype=x), angle, angle, cache, cache, indices, scale, scale, splits)
    return "rope_kv_cache", args, {"cache_mode": "page", **options}


def attention_call(batch, length, rows, **options):
    cache, scale = meta(batch, rows, 8, 128, dtype=INT8), meta(8, 128, dtype=FP32)
    args = (meta(batch, length, 32, 128, dtype=BF16), cache, cache, meta(batch, dtype=INT32), scale, scale)
    return "kv_cache_attention", args, options


CALLS |= {
    "rope_kv_cache": (*rope_call(4096), "div.rn.f32"),
    "rope_kv_cache of int32": (
        *rope_call(64, INT32, weight_scale=meta(6144, dtype=FP32), activation_scale=meta(64, dtype=FP32),
                   bias=meta(6144, dtype=INT32), kv_output=True, cache_mode="contiguous"), "div.rn.f32"),
    "kv_cache_attention, decode": (*attention_call(8, 1, 8192), "mma.sync"),
    "kv_cache_attention, prefill": (*attention_call(1, 2048, 2048, offset_v=meta(8, 128, dtype=FP32)), "mma"),
    "kv_cache_attention, paged": (*attention_call(8, 1, 128, block_table=meta(8, 64, dtype=INT32),
                                                  starts=meta(8, dtype=INT32)), "mma.sync"),
}  # fmt: skip


def combine_call(m, weight, scale, **options):
    """64 experts, top 8, K = 2048, N = 7168."""
    lists = (meta(64, dtype=torch.int64), meta(m, dtype=torch.int64))
    factors = {"pertoken_scale": meta(m, dtype=FP32), "logit": meta(m, dtype=FP32)}
    return "grouped_matmul_combine", (meta(m, 2048, dtype=INT8), weight, scale, *lists), {**factors, **options}


EXPERTS8, EXPERTS4 = meta(64, 2048, 7168, dtype=INT8), meta(64, 2048, 896, dtype=INT32)
EXPERTS4_K = meta(64, 7168, 256, dtype=INT32).transpose(1, 2)
EXPERTS8_K = meta(64, 7168, 2048, dtype=INT8).transpose(1, 2)
SCALE8, SCALE4 = meta(64, 7168, dtype=FP32), meta(64, 16, 7168, dtype=torch.int64)
CALLS |= {
    "grouped_matmul_combine, few rows": (*combine_call(512, EXPERTS8, SCALE8), "mma.sync"),
    "grouped_matmul_combine, few rows along K": (*combine_call(512, EXPERTS8_K, SCALE8), "wgmma"),
    "grouped_matmul_combine, few rows of int4": (
        *combine_call(512, EXPERTS4, SCALE4, bias=meta(64, 7168, dtype=FP32)), "mma.sync"),
    "grouped_matmul_combine, many rows": (*combine_call(8192, EXPERTS8, SCALE8), "wgmma"),
    "grouped_matmul_combine, many rows along K": (*combine_call(8192, EXPERTS8_K, SCALE8), "wgmma"),
    "grouped_matmul_combine, many rows of int4": (
        *combine_call(8192, EXPERTS4, SCALE4, offset=meta(64, 1, 7168, dtype=FP32)), "wgmma"),
    "grouped_matmul_combine, few rows of int4 along K": (*combine_call(512, EXPERTS4_K, SCALE4), "wgmma"),
    "grouped_matmul_combine, many rows of int4 along K": (
        *combine_call(8192, EXPERTS4_K, SCALE4[:, :1].contiguous(), bias=meta(64, 7168, dtype=FP32)), "wgmma"),
    "grouped_matmul_combine, groups that cut words": (
        *combine_call(64, meta(64, 7168, 256, dtype=INT32).transpose(1, 2), meta(64, 512, 7168, dtype=torch.int64)),
        "mma.sync"),
}  # fmt: skip


def grouped_call(rows, weight, x=INT8, **options):
    """A tensor [E, K, N] of weights for all rows."""
    group_list = meta(weight.shape[0], dtype=torch.int64)
    lists = ([meta(rows, 2048, dtype=x)], [weight], group_list)
    return "grouped_matmul", lists, {"split_item": 2, "group_type": 0, "group_list_type": 1, **options}


TOKENS = [meta(512, dtype=FP32)]
CALLS |= {
    "grouped_matmul, few rows": (
        *grouped_call(512, EXPERTS8, scale=[SCALE8], per_token_scale=TOKENS, output_dtype=BF16), "mma.sync"),
    "grouped_matmul, many rows": (
        *grouped_call(8192, EXPERTS8.transpose(1, 2).contiguous().transpose(1, 2), scale=[SCALE8],
                      bias=[meta(64, 7168, dtype=INT32)], output_dtype=HALF), "wgmma"),
    "grouped_matmul, int4": (
        *grouped_call(512, EXPERTS4, scale=[SCALE4], per_token_scale=TOKENS, output_dtype=BF16), "mma.sync"),
    "grouped_matmul, int4 weights of halves": (
        *grouped_call(512, EXPERTS4, HALF, antiquant_scale=[meta(64, 16, 7168)],
                      antiquant_offset=[meta(64, 16, 7168)]), "mma.sync"),
    "grouped_matmul, bfloat16": (*grouped_call(8192, meta(64, 2048, 7168, dtype=BF16), BF16), "wgmma"),
    "grouped_matmul, float32": (*grouped_call(512, meta(64, 2048, 7168, dtype=FP32), FP32), "fma.rn.f32"),
    "grouped_matmul, a single row": (*grouped_call(1, EXPERTS8, output_dtype=INT32), "mma.sync"),
    "grouped_matmul, pairs": (
        "grouped_matmul", ([meta(512, 2048, dtype=INT8)], [EXPERTS8], meta(9, 2, dtype=torch.int64)),
        {"split_item": 2, "group_type": 0, "group_list_type": 2}, "mma.sync"),
    "grouped_matmul, lists": (
        "grouped_matmul", ([meta(3, 2048, dtype=INT8)] * 2, [meta(2048, 7168, dtype=INT8)] * 2,
                           meta(2, dtype=torch.int64)), {"split_item": 2, "group_type": 0}, "mma.sync"),
    "dequant_swiglu_quant": (
        "dequant_swiglu_quant", (meta(8192, 4096, dtype=FP32),),
        {"group_index": meta(64, dtype=torch.int64), "activate_left": True, "quant_mode": 1}, "ex2.approx"),
    "dequant_swiglu_quant of int32": (
        "dequant_swiglu_quant", (meta(8192, 28672, dtype=INT32), meta(28672, dtype=FP32), meta(8192, dtype=FP32)),
        {"bias": meta(28672, dtype=INT32), "quant_scale": meta(14336, dtype=FP32), "quant_mode": 1}, "ex2.approx"),
    "moe_init_routing": (
        "moe_init_routing", (meta(1024, 2048, dtype=INT8), meta(1024, 8, dtype=INT32), meta(1024, dtype=FP32)),
        {"expert_num": 64}, "st.global.v4"),
    "moe_init_routing, dynamic and padded": (
        "moe_init_routing", (meta(1024, 7168, dtype=BF16), meta(1024, 8, dtype=INT32), meta(64, 7168, dtype=FP32)),
        {"expert_num": 64, "expert_capacity": 256, "drop_pad_mode": 1, "quant_mode": 1}, "div.rn.f32"),
    "moe_init_routing, static": (
        "moe_init_routing", (meta(1024, 7168), meta(1024, 8, dtype=INT32), meta(1, dtype=FP32), meta(1, dtype=FP32)),
        {"expert_num": 64, "quant_mode": 0}, "cvt"),
}  # fmt: skip

CALLS["compressed_matmul"] = (
    "compressed_matmul",
    (meta(512, 4096, dtype=INT8), meta(1 << 25, dtype=INT8), meta(16 * 112 * 8, dtype=INT8),
     meta(14336, dtype=INT32), meta(14336, dtype=torch.int64)),
    {}, "wgmma",
)  # fmt: skip


# Bytes of a thread: places and sizes of a level, which the loops over its codes do not use.
OUTSIDE_REGISTERS = {"_decode_kernel": 128}


@pytest.mark.parametrize("call", CALLS)
def test_compiles(call, monkeypatch, pytestconfig):
    operator, args, kwargs, instruction = CALLS[call]
    kernel = operators[operator].cuda_kernel
    found = gpu_compile.compiled_by(monkeypatch, lambda: kernel(*args, **kwargs))
    assert any(instruction in kernel.ptx for kernel in found)
    for kernel in found:
        if pytestconfig.getoption("capture") == "no":
            room, (all_, loop) = kernel.at_once(gpu_compile.HOPPER), kernel.instructions()
            print(f"{call}: {kernel.name}: {kernel.programs} programs, {room} a processor, "
                  f"{kernel.registers} registers, {kernel.stack_bytes} spilled, {kernel.shared_bytes} bytes shared, "
                  f"{len(all_)} instructions, {len(loop)} of them in the longest loop")  # fmt: skip
        assert kernel.cubin
        most = OUTSIDE_REGISTERS.get(kernel.name, 0)
        assert kernel.stack_bytes <= most, f"{kernel.name} keeps {kernel.stack_bytes} bytes outside registers"


@pytest.mark.parametrize("call", CALLS)
def test_compiles_for_lesser_gpus(call, monkeypatch):
    operator, args, kwargs, _ = CALLS[call]
    kernel = operators[operator].cuda_kernel
    for each in gpu_compile.compiled_by(monkeypatch, lambda: kernel(*args, **kwargs), gpu_compile.LEAST):
        most = OUTSIDE_REGISTERS.get(each.name, 64)
        assert each.stack_bytes <= most, f"{each.name} keeps {each.stack_bytes} bytes outside registers"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("along_k", [True, False], ids=["along K", "along N"])
@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize(("k", "n"), [(4096, 14336), (14336, 4096)])
def test_few_rows_stream(k, n, m, along_k, bits, monkeypatch):
    """All programs are on the GPU at once and ask for words before the kernel before has ended. Loads go ahead of the
    loop, and what a thread loads it uses itself."""
    dtype, values = (INT32, 8) if bits == 4 else (INT8, 1)
    weight = meta(n, k // values, dtype=dtype).t() if along_k else meta(k, n // values, dtype=dtype)
    args = (meta(m, k, dtype=BF16), weight, meta(k // 128, n, dtype=BF16))
    kernel = operators["weight_quant_matmul"].cuda_kernel
    found = gpu_compile.compiled_by(monkeypatch, lambda: kernel(*args, group_size=128))
    main, (_, loop) = found[0], found[0].instructions()
    assert main.programs <= PROCESSORS * main.at_once(gpu_compile.HOPPER)
    order = [main.ptx.index(each) for each in ("prefetch.global.L2", "griddepcontrol.wait", "cp.async")]
    assert order == sorted(order)
    assert len(found) == 1 or m > 8 or not along_k, "few tiles have programs of more warps instead of parts to add up"
    assert any("HMMA" in each for each in loop) and any("LDGSTS" in each for each in loop)
    assert not [each for each in loop if re.search(r" (LDG|STS|STSM|SHFL|LDL)\b", each)]


@pytest.mark.parametrize("gpu", [gpu_compile.HOPPER, gpu_compile.LEAST], ids=["sm_90", "least"])
@pytest.mark.parametrize(("size", "length"), [(256, 512), (512, 512)])
def test_wide_heads_fit(size, length, gpu, monkeypatch):
    """As Gemma has them."""
    cache, scale = meta(1, 4096, 1, size, dtype=INT8), meta(1, size, dtype=FP32)
    q, lengths = meta(1, length, 4, size, dtype=BF16), meta(1, dtype=INT32)
    kernel = operators["kv_cache_attention"].cuda_kernel
    call = functools.partial(kernel, q, cache, cache, lengths, scale, scale)
    assert gpu_compile.compiled_by(monkeypatch, call, gpu)


def test_odd_columns_of_a_wider_weight(monkeypatch):
    """Whose rows are where the copy engine wants them, which takes int8 by the two."""
    operator, args, kwargs = weight_quant_call(512, meta(4096, 14352, dtype=INT8)[:, :14335], HALF, 0)
    kernel = operators[operator].cuda_kernel
    args = (*args[:2], meta(14335))
    found = gpu_compile.compiled_by(monkeypatch, lambda: kernel(*args, **kwargs))
    assert "_many_rows_kernel" not in [each.name for each in found]


def test_old_triton_is_refused_by_name():
    command = "import triton; triton.__version__ = '3.5.1'; import anynpu._triton"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and "kernels for CUDA need Triton 3.6 or newer, got 3.5.1" in done.stderr


def test_stages_that_do_not_fit_are_tried_once(monkeypatch):
    from anynpu import _triton

    tried = []

    def run(num_stages, BM):
        tried.append(num_stages)
        if num_stages > 2:
            raise _triton.OutOfResources(1, 0, "shared memory")
        return num_stages * BM

    monkeypatch.setattr(_triton, "_fewer_stages", {})
    for block, expected in ((16, [4, 3, 2]), (16, [2]), (32, [4, 3, 2])):
        tried.clear()
        assert _triton.with_fewer_stages(run, {"num_stages": 4, "BM": block}, "kernel", "gpu") == 2 * block
        assert tried == expected


def test_gpus_without_bfloat16_are_refused_by_name(monkeypatch):
    from anynpu import _triton

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    tensor = SimpleNamespace(device=torch.device("cuda", 3))
    with pytest.raises(NotImplementedError, match=r"need compute capability 8.0 or newer, got 7.5 on cuda:3"):
        _triton.launch(None, 1, tensor)
