# SPDX-License-Identifier: Apache-2.0
"""What serving engines call beside attention and products, against formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import reals

UNIT = 2.0**-24  # of float32 roundings
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_near(result, expected, error):
    """Within ``error`` before the result was rounded to its dtype."""
    assert result.shape == expected.shape
    error = error + torch.finfo(result.dtype).eps / 2 * (expected.abs() + error)
    error = error + torch.finfo(result.dtype).smallest_normal
    assert ((result.double() - expected).abs() <= error).all()


def turned(x, cos, sin, neox):
    """x (T, N, D) as complex numbers, pair by pair times (cos + i sin) (T, D / 2)."""
    first, second = x.double().chunk(2, -1) if neox else (x.double()[..., ::2], x.double()[..., 1::2])
    product = torch.complex(first, second) * torch.complex(cos.double(), sin.double())[:, None]
    if neox:
        return torch.cat((product.real, product.imag), -1)
    return torch.stack((product.real, product.imag), -1).flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
def test_rotary_embedding_by_position(dtype, neox):
    positions, cache = torch.tensor([0, 4, 2]).npu(), reals(5, 8, dtype=dtype, seed=1)
    query, key = reals(3, 4 * 8, dtype=dtype), reals(3, 2 * 8, dtype=dtype, seed=2)
    cos, sin = cache[positions][:, :4], cache[positions][:, 4:]
    expected = [turned(x.unflatten(-1, (-1, 8)), cos, sin, neox).flatten(1) for x in (query, key)]
    written = [query.clone(), key.clone()]
    torch_npu._npu_rotary_embedding(positions, *written, 8, cache, neox)
    same = torch_npu.npu_mrope(
        positions, query, key, cache, 8, mrope_section=[0, 0, 0], rotary_mode="half" if neox else "interleave"
    )
    bound = cache.abs().max().double() * 3 * UNIT * 2 * max(query.abs().max(), key.abs().max())
    for got, other, exact in zip(written, same, expected, strict=True):
        assert torch.equal(got, other)
        assert_near(got, exact, bound)


def test_mrope_takes_sections_from_three_positions():
    positions, cache = torch.tensor([[0, 1], [2, 3], [4, 0]]).npu(), reals(5, 8, seed=1)
    query, key = reals(2, 16), reals(2, 8, seed=2)
    rows = [cache[row] for row in positions]
    cos, sin = (
        torch.cat((rows[0][:, at : at + 2], rows[1][:, at + 2 : at + 3], rows[2][:, at + 3 : at + 4]), 1)
        for at in (0, 4)
    )
    results = torch_npu.npu_mrope(positions, query, key, cache, 8, mrope_section=[2, 1, 1])
    for got, x in zip(results, (query, key), strict=True):
        bound = cache.abs().max().double() * 6 * UNIT * x.abs().max()
        assert_near(got, turned(x.unflatten(-1, (-1, 8)), cos, sin, True).flatten(1), bound)
    same = torch_npu.npu_mrope(positions, query, key, cache, 8, mrope_section=[2, 1, 1], cache_mode="default")
    assert torch.equal(same[0], results[0])
    with pytest.raises(NotImplementedError, match="cache_mode is for modes that anynpu does not implement, got inter"):
        torch_npu.npu_mrope(positions, query, key, cache, 8, mrope_section=[2, 1, 1], cache_mode="interleave")


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu(dtype):
    x = reals(3, 8, dtype=dtype)
    for left in (False, True):
        y, gelu = torch_npu.npu_geglu(x, dim=-1, approximate=0, activate_left=left)
        other, active = x.double().chunk(2, -1)[:: -1 if left else 1]
        exact = active * 0.5 * (1 + torch.erf(active / 2**0.5))
        assert_near(gelu, exact, 16 * UNIT * active.abs())
        assert_near(y, other * exact, 17 * UNIT * (other * active).abs())
    tanh = torch_npu.npu_geglu(x)[1].double()
    active = x.double()[:, 4:]
    exact = active * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (active + 0.044715 * active**3)))
    assert_near(tanh.to(dtype), exact, 32 * UNIT * (active.abs() + active**2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_update_joins_parts(dtype):
    scores, values = reals(5, 12), reals(5, 12, 8, seed=1)
    cuts = (slice(0, 3), slice(3, 7), slice(7, 12))
    scores[2, 3:7] = -torch.inf
    parts = [
        (scores[:, cut].double().softmax(-1).nan_to_num(0)[:, None] @ values[:, cut].double())[:, 0] for cut in cuts
    ]
    outs = [part.to(dtype) for part in parts]
    sums = [scores[:, cut].logsumexp(-1) for cut in cuts]
    y, empty = torch_npu.npu_attention_update(sums, outs, 0)
    exact = torch.stack([part.double() * s.double().exp()[:, None] for part, s in zip(outs, sums, strict=True)]).sum(0)
    exact = exact / torch.stack(sums).double().exp().sum(0)[:, None]
    greatest = torch.stack(outs).double().abs().amax(0)
    assert empty.numel() == 0
    assert_near(y, exact, 64 * UNIT * greatest)  # the exponents, below 8, are exact to 4 UNIT each
    y, total = torch_npu.npu_attention_update(tuple(sums), tuple(outs), 1)
    assert_near(total, scores.double().logsumexp(-1), torch.full((5,), 64 * UNIT))
    nothing = torch_npu.npu_attention_update([torch.full((5,), -torch.inf).npu()] * 2, outs[:2], 0)[0]
    assert torch.equal(nothing, torch.zeros_like(nothing))


def kept(row, p, k):
    """The values that stay, by going through them from the greatest on."""
    order = sorted(range(len(row)), key=lambda i: -row[i])
    stay = [i for i in order if row[i] >= row[order[(k or len(row)) - 1]]]
    weights = torch.tensor([row[i] for i in stay]).double().softmax(0).tolist()
    return {i for at, i in enumerate(stay) if at == 0 or sum(weights[:at]) < (2.0 if p is None else p)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_p, with_k", [(True, True), (True, False), (False, True)])
def test_top_k_top_p(dtype, with_p, with_k):
    logits = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i)) for i in range(4)]) / 4.0
    logits[3] = logits[3].floor()  # with values that are the same
    logits = logits.to(dtype).npu()
    p = torch.tensor([0.9, 0.33, 1.0, 0.0]).npu() if with_p else None
    k = torch.tensor([3, 16, 7, 1], dtype=torch.int32).npu() if with_k else None
    if with_p:
        logits = logits[:3]
        p, k = p[:3], None if k is None else k[:3]
    result = torch_npu.npu_top_k_top_p(logits, p=p, k=k)
    for b, row in enumerate(logits.tolist()):
        stay = kept(row, p[b].item() if with_p else None, k[b].item() if with_k else None)
        assert result[b].tolist() == [x if i in stay else -torch.inf for i, x in enumerate(row)]
    if with_p:
        only = torch_npu.npu_top_k_top_p(logits, torch.zeros(3).npu(), None)
        assert torch.equal(only.isfinite().sum(-1), torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth", [False, True])
def test_add_rms_norm_dynamic_quant(dtype, smooth):
    x1, x2, gamma = reals(5, 32, dtype=dtype), reals(5, 32, dtype=dtype, seed=1), reals(32, dtype=dtype, seed=2)
    beta, *scales = (reals(32, dtype=dtype, seed=seed) for seed in (3, 4, 5))
    options = {"beta": beta, "smooth_scale1": scales[0], "smooth_scale2": scales[1]} if smooth else {}
    first, second, x, *found = torch_npu.npu_add_rms_norm_dynamic_quant(
        x1, x2, gamma, epsilon=1e-5, **options, **({} if smooth else {"output_mask": [True, False]})
    )
    assert torch.equal(x, x1 + x2)
    y = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gamma.double()
    y = y + beta.double() if smooth else y
    if not smooth:
        assert second.numel() == found[1].numel() == 0
    for codes, scale, factor in zip((first, second), found, scales, strict=True):
        if codes.numel():
            exact = y * factor.double() if smooth else y
            wide = exact.abs().amax(-1) / 127
            assert codes.dtype == torch.int8 and ((scale - wide).abs() <= 100 * UNIT * wide).all()
            assert ((codes.double() - exact / wide[:, None]).abs() <= 0.5 + 127 * 200 * UNIT).all()
            assert (codes.int().abs().amax(-1) == 127).all()


def test_empty_with_format():
    made = torch_npu.empty_with_format(size=(2, 16, 16), dtype=torch.int8, device="npu:0", acl_format=29)
    assert made.is_npu and made.shape == (2, 16, 16) and torch_npu.get_npu_format(made) == 29
    with pytest.raises(ValueError, match="acl_format must be one of"):
        torch_npu.empty_with_format((2, 2), acl_format=99)


X, ROW = torch.ones(3, 8), torch.ones(8)
PLACES = torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    "name, arguments, kind, text",
    [
        (
            "_npu_rotary_embedding",
            (PLACES, X, X, 8, torch.ones(5, 4), True),
            NotImplementedError,
            "the width of a head",
        ),
        ("_npu_rotary_embedding", (PLACES, X, X, 3, X, True), ValueError, "head_size must be even and positive, got 3"),
        (
            "_npu_rotary_embedding",
            (PLACES + 3, X, X, 8, X, True),
            RuntimeError,
            "less than the rows of cos_sin_cache, 3",
        ),
        ("_npu_rotary_embedding", (PLACES, X, X.half(), 8, X, True), TypeError, "key must be float32, got float16"),
        (
            "npu_mrope",
            (PLACES[None], X, X, X, 8),
            ValueError,
            r"positions must have shape \(T,\) without mrope_section",
        ),
        ("npu_geglu", (X, -1, 2), ValueError, "approximate must be 0 or 1, got 2"),
        ("npu_geglu", (X, 0), ValueError, "dim must be an axis of self of even size"),
        ("npu_top_k_top_p", (X, None, None), ValueError, "p or k must be given, got neither"),
        ("npu_top_k_top_p", (X, ROW[:3] * 2, None), RuntimeError, r"p must be in \[0, 1\]"),
        ("npu_top_k_top_p", (X, None, PLACES), RuntimeError, r"k must be in \[1, 8\]"),
        ("npu_attention_update", ([ROW[:3]], [X, X], 0), ValueError, "lse and local_out must be as many"),
        ("npu_attention_update", ([ROW], [X], 0), ValueError, r"must have shapes \(3,\) and \(3, 8\)"),
        ("npu_attention_update", ([ROW[:3]], [X], 2), ValueError, "update_type must be 0 or 1, got 2"),
        ("npu_add_rms_norm_dynamic_quant", (X, X, ROW[:4]), ValueError, "gamma must have the shape of the last axes"),
    ],
)
def test_what_is_refused(name, arguments, kind, text):
    with pytest.raises(kind, match=text):
        getattr(torch_npu, name)(*arguments)


def test_functions_are_captured_in_graphs():
    def layer(positions, query, key, cache, gamma, k):
        query, key = torch_npu.npu_mrope(positions, query, key, cache, 8)
        codes, _, x, scale, _ = torch_npu.npu_add_rms_norm_dynamic_quant(query, key, gamma, output_mask=[True, False])
        gated, _ = torch_npu.npu_geglu(x)
        return codes, scale, gated, torch_npu.npu_top_k_top_p(x, None, k)

    arguments = PLACES, reals(3, 8), reals(3, 8, seed=1), reals(5, 8, seed=2), reals(8, seed=3), PLACES.int() + 2
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(*arguments), layer(*arguments), strict=True):
        assert torch.equal(got, expected)
