# SPDX-License-Identifier: Apache-2.0
"""npu_mla_prolog against formulas in float64, and with int8 weights against the functions that it joins."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import codes, reals

HE, HCQ, HCKV, N, D, DR = 32, 24, 32, 3, 16, 8
# float32 results go through four products of at most 32 terms, two norms and a rotation, less than 300 roundings.
ERROR = 300 * 2.0**-24


def arguments(tokens, dtype=torch.float32, cache_dtype=None):
    shapes = {
        "token_x": (*tokens, HE), "weight_dq": (HE, HCQ), "weight_uq_qr": (HCQ, N * (D + DR)),
        "weight_uk": (N, D, HCKV), "weight_dkv_kr": (HE, HCKV + DR), "rmsnorm_gamma_cq": (HCQ,),
        "rmsnorm_gamma_ckv": (HCKV,), "rope_sin": (*tokens, DR), "rope_cos": (*tokens, DR),
    }  # fmt: skip
    made = {name: reals(*shape, dtype=dtype, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    made["cache_index"] = torch.tensor([5, 0, -1, 7, 10, 2]).npu().view(tokens)
    for name, size in (("kv_cache", HCKV), ("kr_cache", DR)):
        made[name] = torch.zeros(4, 4, 1, size, dtype=cache_dtype or dtype).npu()
    return made


def turned(x, cos, sin):
    """The even values, then the odd ones, as real and imaginary parts: the halves have angles of their own."""
    first, second = x[..., ::2], x[..., 1::2]
    half = DR // 2
    return torch.cat(
        (first * cos[..., :half] - second * sin[..., :half], second * cos[..., half:] + first * sin[..., half:]), -1
    )


def normal(x, gamma):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gamma


def assert_near(result, expected):
    assert result.shape == expected.shape
    assert ((result.double() - expected).abs() <= ERROR * expected.abs().max()).all()


@pytest.mark.parametrize("function", [torch_npu.npu_mla_prolog, torch_npu.npu_mla_prolog_v2])
@pytest.mark.parametrize("tokens", [(6,), (2, 3)])
@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_float_weights(function, tokens, mode):
    given = arguments(tokens)
    query, rope, *caches = function(**given, cache_mode=mode)[:4]
    wide = {name: tensor.double() for name, tensor in given.items()}
    latent = normal(wide["token_x"] @ wide["weight_dq"], wide["rmsnorm_gamma_cq"])
    q = (latent @ wide["weight_uq_qr"]).unflatten(-1, (N, D + DR))
    cos, sin = wide["rope_cos"], wide["rope_sin"]
    assert_near(query, torch.einsum("...nd,ndc->...nc", q[..., :D], wide["weight_uk"]))
    assert_near(rope, turned(q[..., D:], cos[..., None, :], sin[..., None, :]))
    kv = wide["token_x"] @ wide["weight_dkv_kr"]
    values = normal(kv[..., :HCKV], wide["rmsnorm_gamma_ckv"]), turned(kv[..., HCKV:], cos, sin)
    for cache, own, value in zip(caches, (given["kv_cache"], given["kr_cache"]), values, strict=True):
        assert cache is own
        size = cache.shape[-1]
        if mode == "PA_NZ":  # C0 is 8 for float32
            cache = cache.view(4, size // 8, 4, 8).transpose(1, 2)
        expected = torch.zeros(16, size, dtype=torch.float64)
        for row, place in zip(value.reshape(-1, size), given["cache_index"].flatten().tolist(), strict=True):
            if place >= 0:
                expected[place] = row
        assert_near(cache.reshape(16, size), expected)


@pytest.mark.parametrize("whole", [True, False], ids=["all weights", "weight_uq_qr"])
def test_int8_weights(whole):
    given = arguments((6,), torch.bfloat16, None if whole else torch.int8)
    scale = {name: reals(1, size, seed=size).abs() / 64 for name, size in (
        ("dequant_scale_w_uq_qr", N * (D + DR)), ("smooth_scales_cq", HCQ)
    )}  # fmt: skip
    given["weight_uq_qr"] = codes(HCQ, N * (D + DR), seed=1)
    if whole:
        given["token_x"], scale["dequant_scale_x"] = torch_npu.npu_dynamic_quant(given["token_x"])
        for name in ("dq", "dkv_kr"):
            given[f"weight_{name}"] = codes(*given[f"weight_{name}"].shape, seed=2)
            scale[f"dequant_scale_w_{name}"] = reals(1, given[f"weight_{name}"].shape[1], seed=4).abs() / 64
    else:
        scale |= {f"quant_scale_{name}": reals(1, size).abs() * 20 for name, size in (("ckv", HCKV), ("ckr", DR))}
    other = {**given, "kv_cache": given["kv_cache"].clone(), "kr_cache": given["kr_cache"].clone()}
    query, rope, *caches = torch_npu.npu_mla_prolog(**given, **scale)

    def product(name):
        x, weight = given["token_x"], given[f"weight_{name}"]
        if not whole:
            return x @ weight
        return torch_npu.npu_quant_matmul(
            x, weight, scale[f"dequant_scale_w_{name}"][0], pertoken_scale=scale["dequant_scale_x"],
            output_dtype=torch.bfloat16,
        )  # fmt: skip

    latent = torch_npu.npu_rms_norm(product("dq").float(), given["rmsnorm_gamma_cq"].float(), 1e-5)[0]
    quantised, rows = torch_npu.npu_dynamic_quant(latent * scale["smooth_scales_cq"])
    q = torch_npu.npu_quant_matmul(
        quantised, given["weight_uq_qr"], scale["dequant_scale_w_uq_qr"][0], pertoken_scale=rows,
        output_dtype=torch.bfloat16,
    ).view(6, N, D + DR)  # fmt: skip
    cos, sin = (given[name][:, None, None] for name in ("rope_cos", "rope_sin"))
    torch.testing.assert_close(query, torch.einsum("tnd,ndc->tnc", q[..., :D], given["weight_uk"]))
    assert torch.equal(rope, torch_npu.npu_interleave_rope(q[..., D:].unsqueeze(2), cos, sin).squeeze(2))
    expected = torch_npu.npu_kv_rmsnorm_rope_cache(
        product("dkv_kr")[:, None, None], given["rmsnorm_gamma_ckv"], cos, sin, given["cache_index"],
        other["kr_cache"], other["kv_cache"], k_rope_scale=scale.get("quant_scale_ckr"),
        c_kv_scale=scale.get("quant_scale_ckv"), cache_mode="PA",
    )  # fmt: skip
    assert torch.equal(caches[0], expected[1]) and torch.equal(caches[1], expected[0])


def v3(given, scale, **modes):
    tensors = dict(given)
    caches = {name: tensors.pop(name).clone() for name in ("kv_cache", "kr_cache")}
    index = tensors.pop("cache_index")
    return torch_npu.npu_mla_prolog_v3(*tensors.values(), *caches.values(), cache_index=index, **scale, **modes), caches


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("tokens", [(6,), (2, 3)])
def test_third_version_gives_the_same_and_the_latent_rows(mode, tokens):
    given, scale = arguments(tokens, torch.bfloat16, torch.int8 if mode == 1 else None), {}
    if mode:
        given["weight_uq_qr"] = codes(HCQ, N * (D + DR), seed=1)
        scale["dequant_scale_w_uq_qr"] = reals(1, N * (D + DR)).abs() / 64
    if mode == 1:
        scale |= {f"quant_scale_{name}": reals(1, size).abs() * 20 for name, size in (("ckv", HCKV), ("ckr", DR))}
    if mode == 2:
        given["token_x"], rows = torch_npu.npu_dynamic_quant(given["token_x"])
        scale["dequant_scale_x"] = rows.view(-1, 1)
        for name in ("dq", "dkv_kr"):
            given[f"weight_{name}"] = codes(*given[f"weight_{name}"].shape, seed=2)
            scale[f"dequant_scale_w_{name}"] = reals(1, given[f"weight_{name}"].shape[1], seed=4).abs() / 64
    modes = {"weight_quant_mode": mode, "kv_cache_quant_mode": 2 if mode == 1 else 0}
    (query, rope, *nothing), caches = v3(given, scale, **modes)
    expected = torch_npu.npu_mla_prolog(**given, **scale)
    for result, other in zip((query, rope, *caches.values()), expected, strict=True):
        assert torch.equal(result, other)
    assert all(tuple(each.shape) == (1,) and not each.any() for each in nothing)
    (*_, norm, rows), _ = v3(given, scale, query_norm_flag=True, **modes)
    assert norm.shape == (*tokens, HCQ)
    assert norm.dtype == given["weight_uq_qr"].dtype
    if mode == 0:
        assert torch.equal((norm @ given["weight_uq_qr"]).unflatten(-1, (N, -1))[..., :D].flatten(0, -3).transpose(0, 1)
            @ given["weight_uk"], query.flatten(0, -3).transpose(0, 1))  # fmt: skip
    else:
        q = torch_npu.npu_quant_matmul(
            norm.flatten(0, -2), given["weight_uq_qr"], scale["dequant_scale_w_uq_qr"][0],
            pertoken_scale=rows.flatten(), output_dtype=torch.bfloat16,
        ).unflatten(-1, (N, -1))  # fmt: skip
        assert rows.shape == (6, 1)
        assert torch.equal(q[..., :D].transpose(0, 1) @ given["weight_uk"], query.flatten(0, -3).transpose(0, 1))


@pytest.mark.parametrize(
    "modes, error, text",
    [
        ({"kc_scale": 2.0}, NotImplementedError, "kc_scale is for modes that anynpu does not implement, got 2.0"),
        ({"kv_cache_quant_mode": 3}, NotImplementedError, "kv_cache_quant_mode is for modes"),
        ({"weight_quant_mode": 1}, TypeError, "weight_uq_qr must be int8, got float32"),
        ({"kv_cache_quant_mode": 2}, TypeError, "kv_cache must be int8, got float32"),
        ({"bogus": 1}, TypeError, "unexpected keyword argument 'bogus'"),
    ],
)
def test_refusals_of_the_third_version(modes, error, text):
    with pytest.raises(error, match=f"npu_mla_prolog_v3: .*{text}"):
        v3(arguments((6,)), {}, **modes)


def test_refusals():
    given = arguments((6,))
    for change, error, text in (
        ({"rope_sin": reals(5, DR)}, ValueError, r"rope_sin must have shape \(6, 8\), got \(5, 8\)"),
        ({"weight_uk": reals(N, D)}, ValueError, r"weight_uk must have shape \(N, D, Hckv\), got \(3, 16\)"),
        ({"weight_uq_qr": reals(HCQ, 8)}, ValueError, r"weight_uq_qr must have N \* \(D \+ Dr\) = 72 columns, got 8"),
        ({"weight_dq": reals(HE, HCQ).half()}, TypeError, "weight_dq must be float32, got float16"),
        ({"weight_dq": codes(HE, HCQ)}, TypeError, "int8 weight_dq needs its dequant_scale"),
        ({"cache_mode": "BSND"}, ValueError, "cache_mode must be PA_BSND or PA_NZ, got BSND"),
        ({"kv_cache": reals(4, 4, 1, 8)}, ValueError, "ckv_cache must have shape"),
        (
            {"token_x": codes(6, HE), "quant_scale_ckv": torch.ones(1).npu()},
            NotImplementedError,
            "quant_scale_ckv with int8 token_x",
        ),
        ({"bogus": 1}, TypeError, "unexpected keyword argument 'bogus'"),
    ):
        with pytest.raises(error, match=text):
            torch_npu.npu_mla_prolog_v2(**{**given, **change})
    assert not given["kv_cache"].any()
    with pytest.raises(TypeError, match="npu_mla_prolog: weight_dq must be a tensor, got NoneType"):
        torch_npu.npu_mla_prolog(given["token_x"])


def test_in_a_graph():
    torch.compiler.reset()
    compiled = torch.compile(torch_npu.npu_mla_prolog_v2, backend="aot_eager", fullgraph=True)
    given, other = arguments((6,)), arguments((6,))
    for result, expected in zip(compiled(**given), torch_npu.npu_mla_prolog_v2(**other), strict=True):
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(given["kv_cache"], other["kv_cache"])
