# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.weight_quant_matmul import reference, spec

ENDING = ("bias", "quant_scale", "quant_offset")


def assert_within_bound(result, args):
    expected = anynpu.reference.weight_quant_matmul(**args)
    gpu_cases.assert_within(result, expected, reference.error_bound(**args))


@gpu_cases.valid_calls("weight_quant_matmul")
def test_is_within_bound_of_reference(case, kernel, device):
    assert_within_bound(kernel("weight_quant_matmul")(**gpu_cases.on(device, case.args)), case.args)


def is_prepackable(case):
    """Some of those that are: the interpreter is slow."""
    named = any(word in case.name for word in ("float16 x", "negative", "int8 result"))
    return named and case.args["weight"].dim() == 2 and case.args["x"].shape[0] > 0


@gpu_cases.valid_calls("weight_quant_matmul", is_prepackable)
def test_prepacked_weight(case, kernel, device):
    weight = case.args["weight"]
    n = spec.matrix_shape("", weight)[1]
    blob = kernel("weight_quant_prepack")(**gpu_cases.on(device, {"weight": weight}))
    gpu_cases.assert_within(blob, anynpu.reference.weight_quant_prepack(weight), None)
    args = gpu_cases.on(device, {**case.args, "weight": blob.cpu(), "n": n})
    assert_within_bound(kernel("weight_quant_matmul")(**args), case.args)


@pytest.mark.parametrize("byte", [0, 8, 12, 16, 24])
def test_foreign_header_is_told_when_asked(byte, kernel, device):
    blob = anynpu.weight_quant_prepack(torch.ones(40, 24, dtype=torch.int8))
    blob[byte] ^= 1
    args = gpu_cases.on(device, {"x": torch.ones(2, 40), "weight": blob, "scale": torch.ones(1), "n": 24})
    kernel("weight_quant_matmul")(**args)
    with pytest.raises(ValueError, match=f"the header of a prepacked weight must .* flat position {byte} "):
        anynpu.check_device_errors()


def matmul_args(m, k, n, dtype, group_size, bits, along_k):
    generator = torch.Generator().manual_seed(m + k)
    limit = 2 ** (bits - 1)
    codes = torch.randint(-limit, limit, (n, k) if along_k else (k, n), dtype=torch.int32, generator=generator)
    weight = anynpu.int4_pack(codes) if bits == 4 else codes.to(torch.int8)
    groups = (-(-k // group_size), n) if group_size else (n,)
    return {
        "x": torch.randn(m, k, generator=generator).to(dtype),
        "weight": weight.t() if along_k else weight,
        "scale": (torch.rand(groups, generator=generator) * 0.1 + 0.01).to(dtype),
        "offset": (torch.randn(groups, generator=generator) * limit).to(dtype),
        "group_size": group_size,
    }


@pytest.mark.parametrize("m", [1, 3, 70])
@pytest.mark.parametrize(("bits", "along_k"), [(4, False), (4, True), (8, False)])
@pytest.mark.parametrize("group_size", [0, 128])
def test_every_configuration(m, bits, along_k, group_size, kernel, device):
    """Few rows with a K that is cut into parts, and many; the last group is short."""
    args = matmul_args(m, 1000 if m < 70 else 200, 72, torch.float16, group_size, bits, along_k)
    assert_within_bound(kernel("weight_quant_matmul")(**gpu_cases.on(device, args)), args)


@pytest.mark.parametrize("along_k", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("m", "k", "dtype", "group_size", "options"), [
    (130, 384, torch.bfloat16, 128, ()),
    (70, 256, torch.float16, 64, ("offset", "bias")),
    (70, 1920, torch.bfloat16, 256, ("offset",)),
    (70, 2048, torch.float16, 0, ("offset", "bias")),
    (129, 384, torch.float16, 0, ("bias", "quant_scale", "quant_offset")),
    (1025, 256, torch.bfloat16, 0, ("offset", "quant_scale")),
])  # fmt: skip
def test_many_rows(m, k, dtype, group_size, options, bits, along_k, kernel, device):
    """What the kernel of Hopper GPUs takes: K and the groups are multiples of its steps; N leaves a part of a tile."""
    if gpu_cases.INTERPRETED and m > 130:
        pytest.skip("the interpreter would take minutes")
    args = matmul_args(m, k, 160, dtype, group_size, bits, along_k)
    generator = torch.Generator().manual_seed(5)
    args |= {
        "offset": args["offset"] if "offset" in options else None,
        "bias": torch.randn(160, generator=generator).to(dtype if dtype == torch.float16 else torch.float32),
        "quant_scale": torch.rand(160, generator=generator) / 8,
        "quant_offset": torch.randn(160, generator=generator) * 9,
    }
    args = {name: value for name, value in args.items() if name not in ENDING or name in options}
    assert_within_bound(kernel("weight_quant_matmul")(**gpu_cases.on(device, args)), args)


@pytest.mark.parametrize(("m", "k", "group_size"), [(33, 1920, 256), (70, 256, 64), (20, 1152, 1152)])
def test_sums_of_x_for_offsets(m, k, group_size, device):
    hopper = importlib.import_module("anynpu.ops.weight_quant_matmul.hopper")
    x = torch.randint(-9, 9, (m, k), generator=torch.Generator().manual_seed(k)).half()
    expected = torch.stack([part.float().sum(1) for part in x.split(group_size, 1)])
    assert torch.equal(hopper._x_sums(x.to(device), group_size).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_integer_is_exact(dtype, bits, kernel, device):
    limit = 2 ** (bits - 1)
    values = torch.arange(-limit, limit, dtype=torch.int32).reshape(1, -1)
    weight = anynpu.int4_pack(values) if bits == 4 else values.to(torch.int8)
    x, one = torch.ones(1, 1, dtype=dtype, device=device), torch.ones(1, dtype=dtype, device=device)
    assert kernel("weight_quant_matmul")(x, weight.to(device), one).tolist() == values.tolist()


def test_parts_of_k_are_used_and_cover_it():
    parts = importlib.import_module("anynpu.ops.weight_quant_matmul.triton")._parts
    assert parts(4096, 64, 16, 528, 4) == (16, 256)
    for k, step, tiles, programs in ((1, 64, 1, 500), (72, 32, 1, 500), (4096, 128, 200, 528), (1000, 32, 3, 100)):
        count, length = parts(k, step, tiles, programs, 2)
        assert length % step == 0
        assert (count - 1) * length < k <= count * length


@pytest.mark.parametrize("along_k", [False, True])
@pytest.mark.parametrize("k", [4096, 4000])
def test_many_warps_share_out_k(k, along_k, kernel, device, monkeypatch):
    """As on Hopper, where a program has more of them."""
    kernels = importlib.import_module("anynpu.ops.weight_quant_matmul.triton")
    monkeypatch.setattr(kernels, "capability", lambda device: 9)
    pieces, launch = [], kernels.launch

    def note_pieces(*args, **meta):
        pieces.append(meta.get("PIECES"))
        launch(*args, **meta)

    monkeypatch.setattr(kernels, "launch", note_pieces)
    args = matmul_args(2, k, 40, torch.bfloat16, 128, 4, along_k)
    assert_within_bound(kernel("weight_quant_matmul")(**gpu_cases.on(device, args)), args)
    assert pieces[0] == 16


def test_not_finite_x_stays_in_its_row(kernel, device):
    args = matmul_args(3, 130, 24, torch.float16, 0, 4, False) | {"offset": None}
    clean = kernel("weight_quant_matmul")(**gpu_cases.on(device, args)).cpu()
    args["x"][0, 77] = float("nan")
    y = kernel("weight_quant_matmul")(**gpu_cases.on(device, args)).cpu()
    assert y[0].isnan().all()
    assert torch.equal(y[1:], clean[1:])


def test_int8_result_of_not_finite_sums_and_ties(kernel, device):
    x = torch.tensor([[float("nan")], [float("inf")], [-float("inf")], [1.0], [3.0], [-1.0]], dtype=torch.float16)
    args = {
        "x": x,
        "weight": torch.ones(1, 2, dtype=torch.int8),
        "scale": torch.ones(1),
        "quant_scale": torch.ones(1) / 2,
    }
    y = kernel("weight_quant_matmul")(**gpu_cases.on(device, args))
    assert y.tolist() == [[0, 0], [127, 127], [-128, -128], [0, 0], [2, 2], [0, 0]]
