# SPDX-License-Identifier: Apache-2.0
"""npu_ffn, expert by expert, against formulas in float64 and exact integers."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import codes, integers, reals

K, N1, N2 = 32, 48, 40
COUNTS = [3, 0, 4]
UNIT = 2.0**-24  # of float32 roundings


def activated(x, kind):
    if kind == "gelu":
        return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return {"fastgelu": x / (1 + (-1.702 * x).exp()), "silu": x / (1 + (-x).exp()), "relu": x.clamp_min(0)}[kind]


def each_expert(tensors, experts):
    """The rows of x and the other tensors of each expert."""
    x, *others = tensors
    if not experts:
        return [tensors]
    parts = x.split(COUNTS)
    return [(part, *(None if t is None else t[e] for t in others)) for e, part in enumerate(parts)]


def assert_near(result, expected, magnitude):
    """``magnitude``: the sums of the second product with every term positive. Inner values are off by an eps of theirs,
    with what float32 sums of at most 48 terms add."""
    eps = torch.finfo(result.dtype).eps
    assert result.shape == expected.shape
    assert ((result.double() - expected).abs() <= (2 * eps + 200 * UNIT) * (1 + magnitude)).all()


@pytest.mark.parametrize("kind", ["fastgelu", "gelu", "relu", "silu"])
@pytest.mark.parametrize("experts", [None, "expert_tokens", "expert_tokens_index"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float_weights(kind, experts, dtype):
    lead = (3,) if experts else ()
    x = reals(7, K, dtype=dtype)
    weights = reals(*lead, K, N1, dtype=dtype, seed=1) / 8, reals(*lead, N1, N2, dtype=dtype, seed=2) / 8
    biases = reals(*lead, N1, seed=3), reals(*lead, N2, seed=4)
    groups = {experts: COUNTS if experts == "expert_tokens" else [3, 3, 7]} if experts else {}
    result = torch_npu.npu_ffn(x, *weights, kind, bias1=biases[0], bias2=biases[1], **groups)
    assert result.dtype == dtype
    expected, magnitude = [], []
    for rows, w1, w2, b1, b2 in each_expert((x, *weights, *biases), experts):
        inner = activated(rows.double() @ w1.double() + b1.double(), kind)
        expected.append(inner @ w2.double() + b2.double())
        spread = rows.double().abs() @ w1.double().abs() + b1.double().abs()  # of which inner values may be off
        magnitude.append((inner.abs() + spread) @ w2.double().abs() + b2.double().abs())
    assert_near(result, torch.cat(expected), torch.cat(magnitude))
    folded = torch_npu.npu_ffn(x[None], *weights, kind, bias1=biases[0], bias2=biases[1], **groups)
    assert torch.equal(folded[0], result)


@pytest.mark.parametrize("packed", [False, True], ids=["int8", "int4"])
@pytest.mark.parametrize("experts", [None, "expert_tokens"])
def test_weights_of_few_bits(packed, experts):
    lead = (3,) if experts else ()
    x, weights = reals(7, K, dtype=torch.float16), []
    for seed, shape in enumerate(((*lead, K, N1), (*lead, N1, N2))):
        weights.append(integers(-8, 8, *shape, dtype=torch.int32 if packed else torch.int8, seed=seed))
    scales = [reals(*lead, n, dtype=torch.float16, seed=5) / 16 for n in (N1, N2)]
    offsets = [reals(*lead, n, dtype=torch.float16, seed=6) for n in (N1, N2)]
    given = weights
    if packed:
        given = [
            torch_npu.npu_convert_weight_to_int4pack(w.flatten(0, -2)).view(*w.shape[:-1], w.shape[-1] // 8)
            for w in weights
        ]
    result = torch_npu.npu_ffn(
        x, *given, "relu", **({experts: COUNTS} if experts else {}),
        antiquant_scale1=scales[0], antiquant_scale2=scales[1],
        antiquant_offset1=offsets[0], antiquant_offset2=offsets[1],
    )  # fmt: skip
    expected, magnitude = [], []
    for rows, *others in each_expert((x, *weights, *scales, *offsets), experts):
        w1, w2, s1, s2, o1, o2 = (tensor.double() for tensor in others)
        w1, w2 = (w1 + o1) * s1, (w2 + o2) * s2
        expected.append((rows.double() @ w1).relu() @ w2)
        magnitude.append(2 * (rows.double().abs() @ w1.abs()) @ w2.abs())
    assert_near(result, torch.cat(expected), torch.cat(magnitude))


@pytest.mark.parametrize("words", [False, True], ids=["float scales", "int64 scales"])
@pytest.mark.parametrize("experts", [None, "expert_tokens"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8(words, experts, dtype):
    lead = (3,) if experts else ()
    x, w1, w2 = codes(7, K), codes(*lead, K, N1, seed=1), codes(*lead, N1, N2, seed=2)
    b1, b2 = (integers(-500, 500, *lead, n, dtype=torch.int32, seed=3) for n in (N1, N2))
    d1, d2 = (reals(*lead, n, seed=4).abs() * 2.0**-12 for n in (N1, N2))
    scale, offset = torch.full((3,) if experts else (1,), 9.0).npu(), torch.full((3,) if experts else (1,), 3.0).npu()
    given = [torch_npu.npu_trans_quant_param(d.flatten()).view(d.shape) if words else d for d in (d1, d2)]
    result = torch_npu.npu_ffn(
        x, w1, w2, "relu", bias1=b1, bias2=b2, scale=scale, offset=offset, deq_scale1=given[0], deq_scale2=given[1],
        output_dtype=dtype, **({experts: COUNTS} if experts else {}),
    )  # fmt: skip
    if words:  # their scales have 19 bits
        d1, d2 = ((d.view(torch.int32) & ~0x1FFF).view(torch.float32) for d in (d1, d2))
    expected = []
    for rows, *others in each_expert((x, w1, w2, b1, b2, d1, d2), experts):
        v1, v2, c1, c2, e1, e2 = (tensor.double() for tensor in others)
        inner = ((rows.double() @ v1 + c1).float() * e1.float()).relu() * 9.0 + 3.0  # float32, as documented
        expected.append((inner.round().clamp(-128, 127).double() @ v2 + c2) * e2)
    expected = torch.cat(expected)
    assert result.dtype == dtype
    assert ((result.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 1e-6).all()


def test_no_rows():
    assert torch_npu.npu_ffn(reals(0, 3, K), reals(K, N1), reals(N1, N2), "relu").shape == (0, 3, N2)


def test_refusals():
    x, w1, w2 = reals(4, K), reals(K, N1), reals(N1, N2)
    stacked = w1.expand(2, -1, -1), w2.expand(2, -1, -1)
    for args, options, error, text in (
        ((x, w1, w2, "swiglu"), {}, NotImplementedError, "activation swiglu is not implemented by anynpu"),
        ((x, w1, w2, "tanh"), {}, ValueError, "activation must be fastgelu or gelu or relu or silu, got 'tanh'"),
        ((x, w1, w2, "relu"), {"expert_tokens": [4]}, ValueError, "one of expert_tokens and expert_tokens_index must"),
        ((x, *stacked, "relu"), {}, ValueError, "one of expert_tokens and expert_tokens_index must be given"),
        ((x, *stacked, "relu"), {"expert_tokens": [1, 2]}, ValueError, r"must add up to 4, those of x, got \[1, 2\]"),
        ((x, *stacked, "relu"), {"expert_tokens_index": [5, 4]}, ValueError, r"add up to 4, .* got \[5, -1\]"),
        ((x, w1, w2[None], "relu"), {}, ValueError, "weight2 must have 2 axes as weight1"),
        ((x.char(), w1.char(), w2.char(), "relu"), {}, TypeError, "scale must be a tensor with int8 x, got NoneType"),
    ):
        with pytest.raises(error, match=text):
            torch_npu.npu_ffn(*args, **options)


def test_in_a_graph():
    torch.compiler.reset()
    given = reals(7, K), reals(3, K, N1), reals(3, N1, N2), "silu"
    compiled = torch.compile(torch_npu.npu_ffn, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given, expert_tokens=COUNTS), torch_npu.npu_ffn(*given, expert_tokens=COUNTS))
