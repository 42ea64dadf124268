# SPDX-License-Identifier: Apache-2.0
"""Compressed weights of all versions and encoders of c8: readers must read them for ever, the encoder writes one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anynpu.formats import CompressedWeight, compress_weight, decompress_weight
from anynpu.ops.compressed_matmul.reference import decompress

FOLDER = Path(__file__).parents[1] / "golden"
FILES = {"1": "c8.safetensors", "2": "c8_2.safetensors", "now": "c8_now.safetensors"}
GOLDEN = {
    f"{version} {key}": value for version, file in FILES.items() for key, value in load_file(FOLDER / file).items()
}
NAMES = sorted({name.split(".")[0] for name in GOLDEN})


def golden(name):
    weight, stream, index = (GOLDEN[f"{name}.{part}"] for part in ("weight", "stream", "index"))
    return weight, CompressedWeight(stream, index, torch.tensor([8, 8, *weight.shape[::-1], 1]))


def first_payload(name):
    """Kind of the first block, and the header of its payload: levels, folded, log2 of the number of tables, boxes."""
    _, compressed = golden(name)
    return int(compressed.index.view(torch.uint8)[6]), compressed.stream.view(torch.uint8)[:4].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_is_decoded(name, isa):
    weight, compressed = golden(name)
    assert torch.equal(decompress_weight(compressed), weight)


@pytest.mark.parametrize("name", NAMES)
def test_is_decoded_by_the_reference(name):
    weight, compressed = golden(name)
    assert torch.equal(decompress(compressed.stream, compressed.index, *weight.shape), weight)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("now ")])
def test_is_still_written(name, isa):
    weight, compressed = golden(name)
    written = compress_weight(weight)
    assert torch.equal(written.stream, compressed.stream)
    assert torch.equal(written.index, compressed.index)


def test_the_files_use_every_part_of_the_format():
    for version in FILES:
        assert first_payload(f"{version} raw")[0] == 0
        assert first_payload(f"{version} constant")[0] == 1
        assert first_payload(f"{version} one_level") == (2, [1, 1, 0, 0])
        assert first_payload(f"{version} not_negative")[1][1] == 0
        assert first_payload(f"{version} many_levels")[1][0] >= 3
        assert first_payload(f"{version} rows_differ")[1][2] == 3
    assert first_payload("1 two_levels") == (2, [2, 1, 0, 0])
    for version in ("2", "now"):
        assert first_payload(f"{version} two_levels") == (2, [2, 1, 0, 1])
        assert first_payload(f"{version} zeros")[1][0] >= 3


def test_version_1_has_no_boxes(isa):
    _, compressed = golden("2 two_levels")
    index = compressed.index.clone()
    index.view(torch.uint8)[7::8] = 0xC8
    with pytest.raises(ValueError, match="its header names no known coding"):
        decompress_weight(CompressedWeight(compressed.stream, index, compressed.info))
