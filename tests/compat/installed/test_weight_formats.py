# SPDX-License-Identifier: Apache-2.0
"""Tensors in FRACTAL_NZ: the format goes with the storage, and a tagged weight is prepacked once."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
import torch_npu
from npu_tensors import halves, integers, nibbles, reals

import anynpu


def test_formats():
    plain = halves(15, 17).npu()
    assert torch_npu.get_npu_format(plain) == torch_npu.Format.ND == 2
    nz = torch_npu.npu_format_cast(plain, 29)
    assert torch_npu.get_npu_format(nz) == torch_npu.Format.FRACTAL_NZ == 29
    assert nz.data_ptr() != plain.data_ptr() and torch.equal(nz, plain)
    assert torch_npu.npu_format_cast(nz, torch_npu.Format.FRACTAL_NZ) is nz is nz.npu()
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(plain, nz)) == 29
    back = torch_npu.npu_format_cast(nz, torch_npu.Format.ND, customize_dtype=torch.int8)
    assert torch_npu.get_npu_format(back) == 2 and torch.equal(back, plain)
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(halves(5), 29)) == 2
    assert torch_npu.npu_format_cast_(plain, 29) is plain and torch_npu.get_npu_format(plain) == 29
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast_(back, plain)) == 29
    x = reals(4, 4, dtype=torch.float32).requires_grad_()
    torch_npu.npu_format_cast(x, 29).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())
    with pytest.raises(ValueError, match=r"acl_format must be one of NCHW 0, .*FRACTAL_NZ 29.*, got 5"):
        torch_npu.npu_format_cast(plain, 5)


def nz_weight(k=64, n=32, seed=0):
    return torch_npu.npu_convert_weight_to_int4pack(torch_npu.npu_format_cast(nibbles(k, n, seed=seed).npu(), 29))


def test_the_format_goes_with_the_storage():
    weight = nz_weight()
    assert torch_npu.get_npu_format(weight) == 29
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    for shared in (weight.t(), weight[:1], weight.detach(), module.weight, module.state_dict()["weight"]):
        assert torch_npu.get_npu_format(shared) == 29
    torch_npu.npu_weight_quant_batchmatmul(halves(1, 64), weight, halves(1, 32))
    for copied in (weight.clone(), copy.deepcopy(module).weight, weight.cpu()):
        assert torch_npu.get_npu_format(copied) == 2 and torch.equal(copied, weight)


def test_tagged_tensors_are_saved_as_plain_ones(tmp_path):
    weight = nz_weight()
    torch_npu.npu_weight_quant_batchmatmul(halves(1, 64), weight, halves(1, 32))
    torch.save({"weight": weight}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["weight"]
    assert torch.equal(loaded, weight) and torch_npu.get_npu_format(loaded) == 2
    assert (tmp_path / "a.pt").stat().st_size < weight.nbytes + 4096


@pytest.fixture
def prepack_count(monkeypatch):
    calls = []
    original = anynpu.weight_quant_prepack
    monkeypatch.setattr(anynpu, "weight_quant_prepack", lambda weight: calls.append(weight.shape) or original(weight))
    return lambda: len(calls)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tagged_weight_is_prepacked_once_and_gives_equal_numbers(prepack_count, dtype, transposed):
    values = nibbles(72, 40)
    plain = anynpu.int4_pack(values.t().contiguous()).t() if transposed else anynpu.int4_pack(values)
    nz = torch_npu.npu_format_cast(plain, 29)
    assert nz.stride() == plain.stride()
    scale, offset = reals(3, 40, dtype=dtype), reals(3, 40, dtype=dtype, seed=1)
    for m in (1, 4, 33):
        x = reals(m, 72, dtype=dtype)
        expected = torch_npu.npu_weight_quant_batchmatmul(x, plain, scale, offset, antiquant_group_size=32)
        assert torch.equal(
            torch_npu.npu_weight_quant_batchmatmul(x, nz, scale, offset, antiquant_group_size=32), expected
        )
    assert prepack_count() == 1
    compiled = torch.compile(torch_npu.npu_weight_quant_batchmatmul, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.compiler.reset()
    assert torch.equal(compiled(x, nz, scale, offset, antiquant_group_size=32), expected)
    assert prepack_count() == 1


@pytest.mark.parametrize("write", ["in place", "through data", "inference"])
def test_a_changed_weight_is_prepacked_again(prepack_count, write):
    x, scale, other = halves(2, 64), halves(1, 32), anynpu.int4_pack(nibbles(64, 32, seed=9))
    with torch.inference_mode(write == "inference"):
        weight = nz_weight()
        before = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
        (weight.data if write == "through data" else weight).copy_(other)
        after = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
    assert torch.equal(after, torch_npu.npu_weight_quant_batchmatmul(x, other, scale))
    assert not torch.equal(before, after) and prepack_count() == 2


def test_the_prepacked_copy_is_freed_with_the_weight(monkeypatch):
    blobs = []
    original = anynpu.weight_quant_prepack

    def prepack(weight):
        blob = original(weight)
        blobs.append(weakref.ref(blob))
        return blob

    monkeypatch.setattr(anynpu, "weight_quant_prepack", prepack)
    weight = nz_weight()
    torch_npu.npu_weight_quant_batchmatmul(halves(1, 64), weight, halves(1, 32))
    assert blobs[0]() is not None
    del weight
    gc.collect()
    assert blobs[0]() is None


def test_windows_of_a_weight_do_not_add_up(prepack_count):
    weight, scale = nz_weight(256, 32), halves(1, 32)
    for first in range(129):
        window = weight[first : first + 128]
        for _ in range(2):
            got = torch_npu.npu_weight_quant_batchmatmul(halves(2, 128), window, scale)
        assert torch.equal(got, torch_npu.npu_weight_quant_batchmatmul(halves(2, 128), window.clone(), scale))
    copies = weight.untyped_storage()._anynpu_prepacked.values()
    assert prepack_count() == 129 and sum(copy.nbytes for copy in copies) == 2 * weight.nbytes
    for _ in range(2):
        for first in range(0, 256, 8):
            torch_npu.npu_weight_quant_batchmatmul(halves(2, 8), weight[first : first + 8], scale)
    assert prepack_count() == 129 + 32  # parts of a weight keep their copies


def test_views_with_memory_of_others_are_not_prepacked(prepack_count):
    """Of a row that all share, a copy would be compared with what lies behind it."""
    row = torch_npu.npu_format_cast(integers(-9, 9, 1, 64, dtype=torch.int8).npu(), 29)
    weight, x, scale = row.expand(4096, 64), torch.ones(2, 4096), torch.ones(64)
    expected = 4096 * row.float().expand(2, 64)
    assert torch.equal(torch_npu.npu_weight_quant_batchmatmul(x, weight, scale), expected)
    assert prepack_count() == 0


def test_a_tagged_weight_refuses_a_wrong_x_like_a_plain_one():
    for k in (63, 65, 61):
        with pytest.raises(ValueError, match=f"x_k_dim is {k}, weight_k_dim is 64"):
            torch_npu.npu_weight_quant_batchmatmul(halves(2, k), nz_weight(), halves(1, 32))


def test_threads_share_a_tagged_weight():
    weight, x, scale = nz_weight(256, 256), halves(4, 256), halves(1, 256)
    expected = torch_npu.npu_weight_quant_batchmatmul(x, weight.clone(), scale)
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(
                torch.equal(torch_npu.npu_weight_quant_batchmatmul(x, weight, scale), expected) for _ in range(10)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_weight_dtype():
    x, scale = halves(2, 64), halves(1, 32)
    weight = nz_weight()
    expected = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
    for dtype in (torch_npu.int4, None):
        assert torch.equal(torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=dtype), expected)
    with pytest.raises(TypeError, match="weight must be torch.int8 for weight_dtype torch.int8, got torch.int32"):
        torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=torch.int8)
    with pytest.raises(NotImplementedError, match="weight_dtype 296 is not implemented by anynpu"):
        torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=296)


STRICT = {
    "group size": (dict(k=512, n=64, group=256), r"group_size in \{64, 128\}, got 256"),
    "ragged group": (dict(k=96, n=64, group=64), "K % group_size == 0, got 96 % 64"),
    "columns": (dict(k=128, n=40, group=64), "N % 64 == 0, got N = 40"),
    "per channel": (dict(k=64, n=64, group=0), "wants a transposed weight"),
    "quant scale": (dict(k=64, n=64, group=0, quant=True), "no quant_scale with a FRACTAL_NZ weight"),
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_mode_enforces_the_rules_of_tagged_weights(name):
    sizes, rule = STRICT[name]
    groups = max(1, -(-sizes["k"] // sizes["group"])) if sizes["group"] else 1
    arguments = dict(
        x=halves(2, sizes["k"]),
        antiquant_scale=halves(groups, sizes["n"]),
        antiquant_group_size=sizes["group"],
        quant_scale=torch.ones(1) if sizes.get("quant") else None,
    )
    weight = nz_weight(sizes["k"], sizes["n"])
    torch_npu.npu_weight_quant_batchmatmul(weight=weight, **arguments)
    with anynpu.strict("Ascend910B"):
        with pytest.raises(RuntimeError, match=rf"Ascend910B \(Atlas A2\).*{rule}(.|\n)*161002"):
            torch_npu.npu_weight_quant_batchmatmul(weight=weight, **arguments)
        torch_npu.npu_weight_quant_batchmatmul(weight=weight.clone(), **arguments)


def test_strict_mode_accepts_what_the_chip_accepts():
    with anynpu.strict("Ascend910_9391"):
        torch_npu.npu_weight_quant_batchmatmul(
            halves(2, 128), nz_weight(128, 64), halves(2, 64), antiquant_group_size=64
        )
        transposed = torch_npu.npu_format_cast(anynpu.int4_pack(nibbles(64, 128)), 29).t()
        torch_npu.npu_weight_quant_batchmatmul(halves(2, 128), transposed, halves(1, 64))
