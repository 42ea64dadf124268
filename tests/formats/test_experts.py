# SPDX-License-Identifier: Apache-2.0
"""Experts from a checkpoint, through the operator, against the product of the weights that the file stands for."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import anynpu
from anynpu.formats import from_compressed_tensors, from_int8, from_msmodelslim_w4a8, load_experts, stack_experts
from anynpu.formats.quantized_weight import QuantizedWeight

EXPERTS, K, N = 3, 64, 24
NAME = "model.layers.0.mlp.experts.{}.down_proj"


def codes(*shape, low, high, seed):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape, seed):
    """Powers of two, so that every product below is exact."""
    return torch.exp2(codes(*shape, low=-3, high=1, seed=seed).float())


def product(experts):
    """What the operator makes of two rows for each expert, and those rows."""
    x = codes(2 * EXPERTS, K, low=-8, high=8, seed=9).to(torch.int8)
    y = anynpu.grouped_matmul_combine(
        x,
        experts.weight,
        experts.scale,
        torch.full((EXPERTS,), 2),
        torch.arange(2 * EXPERTS),
        experts.bias,
        experts.offset,
    )
    return y.double(), x.double()


def assert_is_product(experts, dense):
    y, x = product(experts)
    expected = torch.cat([x[2 * e : 2 * e + 2] @ dense[e].double().t() for e in range(EXPERTS)])
    assert torch.equal(y, expected)


def int8_checkpoint(bits=8):
    weights = [codes(N, K, low=-128, high=128, seed=e).to(torch.int8) for e in range(EXPERTS)]
    factors = [scales(N, 1, seed=e + 10) for e in range(EXPERTS)]
    file = {}
    for e in range(EXPERTS):
        file[NAME.format(e) + ".weight"] = weights[e]
        file[NAME.format(e) + ".weight_scale"] = factors[e]
    return file, [w.double() * s.double() for w, s in zip(weights, factors, strict=True)]


def test_int8_experts(tmp_path):
    file, dense = int8_checkpoint()
    save_file(file, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert_is_product(load_experts(path, NAME, from_int8), dense)


def test_sharded_checkpoint_and_chosen_experts(tmp_path):
    file, dense = int8_checkpoint()
    names = sorted(file)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, members in shards.items():
        save_file({name: file[name] for name in members}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    experts = load_experts(tmp_path, NAME, from_int8, experts=[2, 0, 1])
    assert_is_product(experts, [dense[2], dense[0], dense[1]])


@pytest.mark.parametrize("groups", [1, 2])
def test_compressed_tensors_experts(tmp_path, groups):
    file, dense = {}, []
    for e in range(EXPERTS):
        values, factors = codes(N, K, low=-8, high=8, seed=e), scales(N, groups, seed=e + 10)
        words = anynpu.int4_pack(values.int().contiguous()) ^ torch.tensor(-0x77777778, dtype=torch.int32)
        file[NAME.format(e) + ".weight_packed"] = words
        file[NAME.format(e) + ".weight_scale"] = factors
        dense.append(values.double() * factors.double().repeat_interleave(K // groups, 1))
    save_file(file, tmp_path / "model.safetensors")
    assert_is_product(load_experts(tmp_path, NAME, from_compressed_tensors), dense)


def test_asymmetric_int4_experts(tmp_path):
    file, dense = {}, []
    for e in range(EXPERTS):
        values, factors = codes(N, K, low=-8, high=8, seed=e), scales(N, 1, seed=e + 10)
        zeros = codes(N, 1, low=-4, high=4, seed=e + 20).float()
        file[NAME.format(e) + ".weight"] = ((values[1::2] << 4) | (values[::2] & 15)).to(torch.int8)
        file[NAME.format(e) + ".weight_scale"] = factors
        file[NAME.format(e) + ".weight_offset"] = zeros
        dense.append((values.double() - zeros.double()) * factors.double())
    save_file(file, tmp_path / "model.safetensors")
    assert_is_product(load_experts(tmp_path, NAME, from_msmodelslim_w4a8), dense)


def test_what_is_refused(tmp_path):
    file, _ = int8_checkpoint()
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="name must have one {}"):
        load_experts(tmp_path, "experts.0.down_proj", from_int8)
    with pytest.raises(ValueError, match=r"no tensor is named other\.0\.\*"):
        load_experts(tmp_path, "other.{}", from_int8)
    with pytest.raises(ValueError, match=r"no tensor is named .*experts\.7\.down_proj\.\*"):
        load_experts(tmp_path, NAME, from_int8, experts=[0, 7])
    with pytest.raises(ValueError, match=r"holds \['weight', 'weight_scale'\]"):
        load_experts(tmp_path, NAME, from_compressed_tensors)
    with pytest.raises(FileNotFoundError):
        load_experts(tmp_path / "missing", NAME, from_int8)
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 40)  # a header of 2^64 - 1 bytes
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_experts(tmp_path / "damaged.safetensors", NAME, from_int8)


@pytest.mark.parametrize(
    "file",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/a.safetensors",
        "",
        ".",
        "..",
        "a.bin",
        3,
        None,
        ["a"],
        {},
    ],
)
def test_an_index_names_files_of_its_folder_only(tmp_path, file):
    folder = tmp_path / "model"
    folder.mkdir()
    experts, _ = int8_checkpoint()
    for place in (tmp_path / "secret.safetensors", folder / "a.safetensors"):
        save_file(experts, place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(ValueError, match="load_experts: .* must name a .safetensors file of its folder for 'x', got"):
        load_experts(folder, NAME, from_int8)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must hold an object, got list"),
        (b"{}", "weight_map of .* must be an object, got None"),
        (b'{"weight_map": [1]}', r"weight_map of .* must be an object, got \[1\]"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, text, match):
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(ValueError, match=match):
        load_experts(tmp_path, NAME, from_int8)


def test_a_missing_shard_is_said(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="a.safetensors"):
        load_experts(tmp_path, NAME, from_int8)


@pytest.mark.parametrize("weight", [(), (8,), (2, 2, 2)])
def test_int8_weights_of_another_shape_are_refused(weight):
    with pytest.raises(ValueError, match=r"from_int8: weight must be \(N, K\)"):
        from_int8(torch.ones(weight, dtype=torch.int8), torch.ones(8))


def test_experts_that_do_not_stack():
    one = QuantizedWeight(torch.zeros(8, 16, dtype=torch.int8), torch.ones(16))
    other = QuantizedWeight(torch.zeros(8, 24, dtype=torch.int8), torch.ones(24))
    with pytest.raises(ValueError, match="experts must not be empty"):
        stack_experts([])
    with pytest.raises(ValueError, match="experts must agree in dtype, shape, groups and offset, got 2 kinds"):
        stack_experts([one, other])
    permuted = QuantizedWeight(one.weight, one.scale, input_order=torch.arange(8))
    with pytest.raises(ValueError, match="experts must have no input_order"):
        stack_experts([permuted])
    values = torch.zeros(24, 64, dtype=torch.int32)
    grouped = QuantizedWeight.from_codes(values, torch.ones(24, 2), torch.ones(24, 2), group_size=32)
    with pytest.raises(ValueError, match="int4 experts with groups must have no offset"):
        stack_experts([grouped])
