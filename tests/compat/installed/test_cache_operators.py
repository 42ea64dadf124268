# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu that write rows to caches, against loops over the rows."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import halves, reals

UNIT = 2.0**-24  # of float32 roundings


def slots(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype, device="npu")


def expected_pages(cache, rows, places):
    """A plain cache (blocks, block size, ...) with the rows in it."""
    pages = cache.clone()
    for row, place in zip(rows, places.tolist(), strict=True):
        if place >= 0:
            pages[place // cache.shape[1], place % cache.shape[1]] = row
    return pages


@pytest.mark.parametrize("places", [slots(3, 17, 0), slots(-1, 5, -1, dtype=torch.int64), slots(-1, -2, -3)], ids=repr)
@pytest.mark.parametrize("function", ["npu_scatter_pa_kv_cache", "_npu_reshape_and_cache"])
def test_plain_pages(places, function):
    key, value = halves(3, 2, 16), halves(3, 2, 8, seed=1)
    caches = halves(3, 6, 2, 16, seed=2), halves(3, 6, 2, 8, seed=3)
    expected = expected_pages(caches[0], key, places), expected_pages(caches[1], value, places)
    options = {"cache_mode": "Norm"} if function.startswith("npu") else {}
    assert getattr(torch_npu, function)(key, value, *caches, places, **options) is None
    assert all(map(torch.equal, caches, expected))


@pytest.mark.parametrize("dtype, c0", [(torch.float16, 16), (torch.int8, 32)])
def test_pages_in_fractal_nz(dtype, c0):
    key, places = reals(3, 2, 64, dtype=torch.float32).mul(50).to(dtype), slots(7, -1, 2)
    cache = torch.zeros(2, 128 // c0, 4, c0, dtype=dtype, device="npu")
    torch_npu.npu_scatter_pa_kv_cache(key, key, cache, cache.clone(), places)
    expected = torch.zeros_like(cache)
    for row, place in ((0, 7), (2, 2)):
        for i, number in enumerate(key[row].flatten()):
            expected[place // 4, i // c0, place % 4, i % c0] = number
    assert torch.equal(cache, expected)
    by_head = torch.zeros(2, 2, 64 // c0, 4, c0, dtype=dtype, device="npu")  # the same memory with heads of their own
    torch_npu.npu_scatter_pa_kv_cache(key, key, by_head, by_head.clone(), places)
    assert torch.equal(by_head.view_as(cache), expected)


def test_refusals_of_pages():
    key, cache = halves(3, 2, 16), halves(3, 6, 2, 16)
    before = cache.clone()
    for places, caches, text in (
        (slots(3, 4), (cache, cache), r"there must be 3 slots, as many as rows, got \(2,\)"),
        (
            slots(1, 2, 3),
            (cache, cache[:, :, :1]),
            r"value_cache must have shape \(blocks, block size, 2, 16\), got \(3, 6, 1, 16\)",
        ),
        (slots(1, 2, 3), (cache, cache.float()), "value_cache must be float16, got float32"),
        (slots(1, 2, 3).float(), (cache, cache), "slots must be int32 or int64, got float32"),
        (slots(1, 2, 18), (cache, cache), r"indices must be less than the places of the cache, \(3, 6\)"),
        (slots(1, 2, 3), (cache[:, :0], cache), r"indices must be less than the places of the cache, \(3, 0\)"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu._npu_reshape_and_cache(key, key, *caches, places)
    assert torch.equal(cache, before)
    with pytest.raises(RuntimeError, match=r"indices must be less than the places of the cache, \(1, 6\)"):
        torch_npu._npu_reshape_and_cache(key, key, cache, cache[:1].clone(), slots(1, 2, 7))
    assert torch.equal(cache, before)
    with pytest.raises(ValueError, match="cache_mode must be 'PA_NZ' or 'Norm', got 'NZ'"):
        torch_npu.npu_scatter_pa_kv_cache(key, key, cache, cache, slots(1, 2, 3), cache_mode="NZ")
    with pytest.raises(
        ValueError, match=r"key_cache must have shape \(blocks, 2, block size, 16\), got \(3, 6, 2, 16\)"
    ):
        torch_npu.npu_scatter_pa_kv_cache(key, key, cache, cache, slots(1, 2, 3))
    cache_of_parts = halves(3, 2, 0, 6, 16)
    with pytest.raises(ValueError, match=r"heads of key_cache must be multiples of 16 for FRACTAL_NZ, got 2 of 8"):
        torch_npu.npu_scatter_pa_kv_cache(key[..., :8], key, cache_of_parts, cache_of_parts, slots(1, 2, 3))
    with pytest.raises(NotImplementedError, match="caches must be in the format ND, got FRACTAL_NZ"):
        torch_npu._npu_reshape_and_cache(key, key, torch_npu.npu_format_cast(cache, 29), cache, slots(1, 2, 3))
    torch_npu._npu_reshape_and_cache(key[:0], key[:0], cache, cache, slots(1)[:0])
    assert torch.equal(cache, before)


def latent_values(kv, gamma, cos, sin, epsilon):
    """The rotated and the normalised part, in float64, and bounds of their float32 errors."""
    latent, rope = kv.double()[..., : len(gamma)], kv.double()[..., len(gamma) :]
    half = rope.shape[-1] // 2
    evens, odds = rope[..., ::2], rope[..., 1::2]
    cos, sin = cos.double(), sin.double()
    first = evens * cos[..., :half] - odds * sin[..., :half], odds * cos[..., half:] + evens * sin[..., half:]
    bound = (evens.abs() + odds.abs()).repeat(1, 1, 1, 2) * torch.maximum(cos.abs(), sin.abs()) * 3 * UNIT
    normal = latent * (latent.square().mean(-1, keepdim=True) + epsilon).rsqrt() * gamma.double()
    return (torch.cat(first, -1), bound), (normal, normal.abs() * (len(gamma) / 2 + 7) * UNIT)


def assert_stored(stored, exact, error):
    if stored.dtype == torch.int8:
        assert ((stored.double() - exact.clamp(-128, 127)).abs() <= 0.5 + error + 200 * UNIT).all()
    else:
        rounding = torch.finfo(stored.dtype).eps / 2 * (exact.abs() + error) + 2.0**-25
        assert ((stored.double() - exact).abs() <= error + rounding).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantised", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize("mode", ["Norm", "PA", "PA_BNSD", "PA_NZ"])
def test_kv_rmsnorm_rope_cache(dtype, quantised, mode):
    batch, length, latent, rope = 2, 3, 96, 32
    kv, gamma = reals(batch, 1, length, latent + rope, dtype=dtype), reals(latent, dtype=dtype, seed=1)
    cos, sin = reals(batch, 1, length, rope, dtype=dtype, seed=2), reals(batch, 1, length, rope, dtype=dtype, seed=3)
    sizes, paged = (rope, latent), mode != "Norm"
    caches = [
        torch.full((4, 5, 1, size) if paged else (batch, 1, 7, size), 9, dtype=torch.int8 if code else dtype).npu()
        for size, code in zip(sizes, quantised, strict=True)
    ]
    scales = [torch.rand(size).npu() * 30 + 10 if code else None for size, code in zip(sizes, quantised, strict=True)]
    places = torch.tensor([[3, -1, 6], [0, 2, -1]] if not paged else [3, -1, 19, 0, 7, 12]).npu()
    results = torch_npu.npu_kv_rmsnorm_rope_cache(
        kv, gamma, cos, sin, places, *caches, k_rope_scale=scales[0], c_kv_scale=scales[1], epsilon=1e-6,
        cache_mode=mode, is_output_kv=True,
    )  # fmt: skip
    assert results[0] is caches[0] and results[1] is caches[1]
    parts = latent_values(kv, gamma, cos, sin, 1e-6)
    for cache, scale, (exact, error), returned in zip(caches, scales, parts, results[2:], strict=True):
        assert returned.dtype == dtype and returned.shape == exact.shape
        assert_stored(returned, exact, error)
        size = cache.shape[-1]
        c0 = 32 // cache.element_size()
        if mode == "PA_NZ":
            cache = cache.view(4, size // c0, 5, c0).transpose(1, 2).reshape(4, 5, 1, size)
        pages = cache if paged else cache[:, 0, :, None]
        seen = torch.zeros(pages.shape[:2], dtype=torch.bool)
        for token, place in enumerate(places.flatten().tolist()):
            b, s = divmod(token, length)
            block, at = divmod(place, 5) if paged else (b, place)
            if place >= 0:
                factor = 1 if scale is None else scale.double()
                assert_stored(pages[block, at, 0], exact[b, 0, s] * factor, error[b, 0, s] * factor)
                seen[block, at] = True
        assert seen.sum() == (places >= 0).sum() and (pages[~seen] == 9).all()


def test_refusals_of_kv_rmsnorm_rope_cache():
    kv, gamma, cos, index = halves(2, 1, 1, 48), halves(32), halves(2, 1, 1, 16), slots(0, 1, dtype=torch.int64)
    caches = torch.zeros(2, 4, 1, 16).half().npu(), torch.zeros(2, 4, 1, 32).half().npu()

    def call(kv=kv, gamma=gamma, index=index, caches=caches, cache_mode="PA", **options):
        return torch_npu.npu_kv_rmsnorm_rope_cache(
            kv, gamma, cos, cos, index, *caches, cache_mode=cache_mode, **options
        )

    for options, text in (
        ({"kv": kv[0]}, "4D tensor expected for input kv, got 3D"),
        ({"kv": kv[..., :40]}, r"kv must have shape \(B, 1, S, rope \+ latent\), \(2, 1, 1, 48\), got \(2, 1, 1, 40\)"),
        ({"gamma": gamma[None]}, "1D tensor expected for input gamma, got 2D"),
        ({"index": index[:1]}, r"index must have shape \(2,\), got \(1,\)"),
        (
            {"cache_mode": "PA_BLK_NZ"},
            "cache_mode must be Norm, PA, PA_BNSD or PA_NZ .others are not implemented., got PA_BLK_NZ",
        ),
        ({"c_kv_scale": gamma.float()}, "ckv_cache must be int8, got float16"),
        ({"index": index + 7}, r"indices must be less than the places of the cache, \(2, 4\)"),
    ):
        with pytest.raises(RuntimeError, match=text):
            call(**options)
    assert not caches[0].any() and not caches[1].any()
    with pytest.raises(NotImplementedError, match="v is for modes that anynpu does not implement"):
        call(v=kv)


@pytest.mark.parametrize("axis", [-2, 1, 2])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_scatter_update(axis, dtype):
    shape = [3, 4, 5, 6]
    data = reals(*shape, dtype=torch.float32).mul(20).to(dtype)
    shape[axis], shape[0] = 2, 2
    updates = reals(*shape, dtype=torch.float32, seed=1).mul(20).to(dtype)
    starts = slots(0, 2, dtype=torch.int64)
    expected = data.clone()
    for batch, start in enumerate(starts.tolist()):
        expected[batch].narrow(axis if axis < 0 else axis - 1, start, 2).copy_(updates[batch])
    before = data.clone()
    assert torch.equal(torch_npu.scatter_update(data, starts, updates, axis), expected) and torch.equal(data, before)
    assert torch_npu.scatter_update_(data, starts, updates, axis) is data and torch.equal(data, expected)


def test_rows_move_within_a_tensor():
    data = halves(2, 4, 5)
    before = data.clone()
    torch_npu.scatter_update_(data, slots(1, 2), data[:, :2], 1)
    assert torch.equal(data[0, 1:3], before[0, :2]) and torch.equal(data[1, 2:4], before[1, :2])
    assert torch.equal(data[0, ::3], before[0, ::3]) and torch.equal(data[1, :2], before[1, :2])


def test_refusals_of_scatter_update():
    data, updates = halves(2, 4, 5), halves(2, 2, 5)
    for arguments, text in (
        ((slots(0, 3), updates, 1), "indices must be at least 0 and at most 2"),
        ((slots(-1, 0), updates, 1), "indices must be at least 0 and at most 2"),
        ((slots(0, 1), updates, 0), "axis must be one of data, which has 3, but not the first, got 0"),
        ((slots(0), updates, 1), "updates must have the axes of data"),
        ((slots(0, 1), updates.float(), 1), "updates must be float16, got float32"),
        ((slots(0, 1)[None], updates, 1), "indices must have 1 axis, others are not implemented, got 2"),
    ):
        before = data.clone()
        with pytest.raises(RuntimeError, match=text):
            torch_npu.scatter_update_(data, *arguments)
        assert torch.equal(data, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero_dtype", [None, torch.int32, torch.bfloat16])
def test_quant_scatter(dtype, zero_dtype):
    """Scales are powers of two, so that float32 holds what is rounded."""
    data = torch.randint(-128, 128, (3, 6, 2, 8), dtype=torch.int8).npu()
    updates, starts = reals(2, 3, 2, 8, dtype=dtype), slots(2, 0)
    scales = (2.0 ** torch.arange(-8, 0)).view(1, 1, 1, 8).to(dtype).npu()
    zeros = None if zero_dtype is None else torch.arange(-3, 5).to(zero_dtype).npu()
    expected = data.clone()
    for batch, start in enumerate(starts.tolist()):
        for place, channel in ((place, channel) for place in range(3) for channel in range(8)):
            exact = updates[batch, place, :, channel].double() * 2.0 ** (8 - channel)
            exact += 0 if zeros is None else channel - 3
            expected[batch, start + place, :, channel] = exact.round().clamp(-128, 127).to(torch.int8)
    before = data.clone()
    result = torch_npu.npu_quant_scatter(data, starts, updates, scales, zeros, axis=1)
    assert torch.equal(result, expected) and torch.equal(data, before)
    assert torch_npu.npu_quant_scatter_(data, starts, updates, scales, zeros, axis=-3) is data
    assert torch.equal(data, expected)


def test_refusals_of_quant_scatter():
    data, updates, starts = torch.zeros(2, 4, 8, dtype=torch.int8).npu(), halves(2, 1, 8), slots(0, 3)
    scales = torch.ones(8).npu()
    for changes, text in (
        ({"self": updates}, "self must be int8, got float16"),
        ({"quant_scales": scales[:4]}, "quant_scales must have 8 elements, got 4"),
        ({"quant_zero_points": scales[:1]}, "quant_zero_points must have 8 elements, got 1"),
        ({"quant_axis": 1}, "quant_axis must be the last of updates, got 1"),
        ({"reduce": "add"}, "reduce must be 'update', got 'add'"),
        ({"round_mode": "floor"}, "round_mode is for modes that anynpu does not implement, got floor"),
        ({"dst_type": torch.uint8}, "dst_type is for modes that anynpu does not implement, got torch.uint8"),
        ({"indices": slots(0, 4)}, "indices must be at least 0 and at most 3"),
    ):
        arguments = {"self": data, "indices": starts, "updates": updates, "quant_scales": scales}
        with pytest.raises(RuntimeError, match=text):
            torch_npu.npu_quant_scatter(**arguments | changes)


def test_captured_writes_reach_the_caches():
    key, places = halves(3, 2, 16), slots(3, -1, 0)
    caches = [torch.zeros(2, 4, 2, 16, dtype=torch.float16, device="npu") for _ in range(4)]

    def write(key, key_cache, value_cache, places):
        torch_npu._npu_reshape_and_cache(key, key * 2, key_cache, value_cache, places)
        return torch_npu.scatter_update_(key_cache, places[:1], key[:1, None] + 1, 1)

    torch.compile(write, backend="npu", fullgraph=True)(key, *caches[:2], places)
    write(key, *caches[2:], places)
    assert torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3])
    assert caches[0].any() and caches[1].any()
