# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.formats import compress_weight, decompress_weight
from anynpu.ops.compressed_matmul.reference import error_bound

CASES = gpu_cases.valid("compressed_matmul")


def arguments(case):
    args = dict(case.args)
    packed = compress_weight(args.pop("weight"))
    scale = args["scale"]
    words = scale.view(torch.int32).to(torch.int64) if scale.dtype == torch.float32 else scale
    return {"bias": None, **args, "stream": packed.stream, "index": packed.index, "scale": words}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_is_within_bound_of_reference(case, kernel, device):
    args = arguments(case)
    result = kernel("compressed_matmul")(**gpu_cases.on(device, args))
    gpu_cases.assert_within(result, anynpu.reference.compressed_matmul(**args), error_bound(**args))


def weights():
    """Of every kind of block, number of levels and fold."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(64, 256, generator=generator)
    yield "noise", torch.randint(-128, 128, (64, 256), dtype=torch.int8, generator=generator)
    yield "constant", torch.full((64, 256), -7, dtype=torch.int8)
    yield "edges", torch.randint(-9, 9, (130, 260), dtype=torch.int8, generator=generator)
    yield "narrow", (normal * 1.5).round().to(torch.int8)
    yield "boxes", (normal * 3).round().to(torch.int8)
    yield "wide", (normal * 25).round().clamp(-128, 127).to(torch.int8)
    yield "sparse", torch.where(torch.rand(64, 256, generator=generator) < 0.02, 50, 0).to(torch.int8)
    yield (
        "columns of their own",
        (normal * torch.linspace(0.5, 30, 64).unsqueeze(1)).round().clamp(-128, 127).to(torch.int8),
    )
    yield "few values", (normal * 4).abs().round().clamp(0, 127).to(torch.int8) * 8 - 60


WEIGHTS = dict(weights())


@pytest.mark.parametrize("name", WEIGHTS)
def test_decoder_is_lossless(name, device):
    weight = WEIGHTS[name]
    packed = compress_weight(weight)
    decompress = importlib.import_module("anynpu.ops.compressed_matmul.triton").decompress
    decoded = decompress(packed.stream.to(device), packed.index.to(device), *weight.shape)
    gpu_cases.assert_within(decoded, weight, None)


def test_weights_are_compressed_from_and_to_their_device(device):
    weight = WEIGHTS["boxes"]
    packed, expected = compress_weight(weight.to(device)), compress_weight(weight)
    assert packed.stream.device.type == packed.index.device.type == device.type
    assert torch.equal(packed.stream.cpu(), expected.stream) and torch.equal(packed.index.cpu(), expected.index)
    gpu_cases.assert_within(decompress_weight(packed), weight, None)


def test_weights_cover_the_format():
    """Raw, constant and coded blocks, folded ones and others, one and several levels, one and several tables."""
    kinds, headers = set(), []
    for weight in WEIGHTS.values():
        packed = compress_weight(weight)
        stream, entries, at = packed.stream.view(torch.uint8), packed.index.view(torch.uint8).reshape(-1, 8), 0
        for entry in entries.tolist():
            kinds.add(entry[6])
            if entry[6] == 2:
                headers.append(stream[at : at + 3].tolist())
            at += 8 * (entry[4] + 256 * entry[5])
    assert kinds == {0, 1, 2}
    levels, folded, tables = (set(column) for column in zip(*headers, strict=True))
    assert {1, 2} < levels and folded == {0, 1} and len(tables) > 1


@pytest.mark.parametrize("position", [0, 6, 7, -1])
@pytest.mark.parametrize("of", ["stream", "index"])
def test_damage_is_told_when_asked(of, position, kernel, device):
    weight = WEIGHTS["narrow"][:64, :64].contiguous()
    args = {"x": torch.ones(1, weight.shape[1], dtype=torch.int8), "bias": None}
    args["scale"] = torch.ones(1, weight.shape[0]).view(torch.int32).to(torch.int64)
    packed = compress_weight(weight)
    args |= {"stream": packed.stream.clone(), "index": packed.index.clone()}
    args[of].view(torch.uint8)[position] ^= 4
    kernel("compressed_matmul")(**gpu_cases.on(device, args))
    with pytest.raises(ValueError, match="compressed_matmul: .* sound block of this matrix"):
        anynpu.check_device_errors()
