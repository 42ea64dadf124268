# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.formats import compress_weight, decompress_weight
from anynpu.ops.compressed_matmul.reference import block_seed, checksum, error_bound


def arguments(case):
    args = dict(case.args)
    packed = compress_weight(args.pop("weight"))
    scale = args["scale"]
    words = scale.view(torch.int32).to(torch.int64) if scale.dtype == torch.float32 else scale
    return {"bias": None, **args, "stream": packed.stream, "index": packed.index, "scale": words}


@gpu_cases.valid_calls("compressed_matmul")
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
    yield "nibbles", (normal * 33).round().clamp(-128, 127).to(torch.int8)
    yield "wide", (normal * 25).round().clamp(-128, 127).to(torch.int8)
    yield "sparse", torch.where(torch.rand(64, 256, generator=generator) < 0.02, 50, 0).to(torch.int8)
    yield (
        "columns of their own",
        (normal * torch.linspace(0.5, 30, 64).unsqueeze(1)).round().clamp(-128, 127).to(torch.int8),
    )
    yield "few values", (normal * 4).abs().round().clamp(0, 127).to(torch.int8) * 8 - 60


WEIGHTS = dict(weights())


def decoded_by_kernel(packed, device):
    decompress = importlib.import_module("anynpu.ops.compressed_matmul.triton").decompress
    return decompress(packed.stream.to(device), packed.index.to(device), packed.n, packed.k)


@pytest.mark.parametrize("name", WEIGHTS)
def test_decoder_is_lossless(name, device):
    weight = WEIGHTS[name]
    gpu_cases.assert_within(decoded_by_kernel(compress_weight(weight), device), weight, None)
    anynpu.check_device_errors()


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("nibbles", 0, 1), ("nibbles", 0, 3), ("nibbles", 1, 0), ("nibbles", 2, 5), ("nibbles", 3, 0),
        ("nibbles", 3, 255), ("nibbles", 4, 8), ("nibbles", 5, 255), ("nibbles", 6, 9), ("nibbles", 17, 31),
        ("nibbles", 32, 0x48), ("nibbles", 40, 200), ("nibbles", 56, 0xFF), ("nibbles", 56, 0x0F),
        ("nibbles", 200, 1), ("nibbles", -1, 1), ("wide", 0, 2), ("wide", 4, 1), ("wide", 33, 0x99),
        ("wide", 20, 255),
    ],
)  # fmt: skip
def test_resealed_damage_is_decoded_alike_or_told(name, place, value, device):
    packed = compress_weight(WEIGHTS[name])
    payload, entry = packed.stream.view(torch.uint8), packed.index.view(torch.uint8)
    payload[place] = value
    seal = checksum(payload, block_seed(packed.k, packed.n, 0, int(entry[6])))
    entry[:4] = torch.tensor([seal >> shift & 255 for shift in (0, 8, 16, 24)])
    decoded = decoded_by_kernel(packed, device)
    try:
        expected = decompress_weight(packed)
    except ValueError:
        with pytest.raises(ValueError, match="compressed_matmul: .* sound block of this matrix"):
            anynpu.check_device_errors()
        return
    anynpu.check_device_errors()
    gpu_cases.assert_within(decoded, expected, None)


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
