# SPDX-License-Identifier: Apache-2.0
"""Attention of torch_npu to int8 queries, keys and values, and shifts of scores."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import CAUSAL, HEADS, KV_HEADS, SCALE, D, assert_near, batched, laid_out, operands
from npu_tensors import codes, reals

FUNCTIONS = {
    "npu_fused_infer_attention_score": ("num_heads", "scale", "dequant"),
    "npu_prompt_flash_attention": ("num_heads", "scale_value", "deq"),
    "npu_incre_flash_attention": ("num_heads", "scale_value", "dequant"),
}
SCORES, WEIGHTS, VALUES = (torch.tensor([x]) for x in (2.0**-10, 127.0, 2.0**-5))


def call(name, tensors, layout="BNSD", **options):
    heads, scale, _ = FUNCTIONS[name]
    result = getattr(torch_npu, name)(
        *[laid_out(x, layout) for x in tensors], input_layout=layout, num_key_value_heads=KV_HEADS,
        **{heads: HEADS, scale: SCALE}, **options,
    )  # fmt: skip
    return result[0] if isinstance(result, tuple) else result


def products(name, scores=SCORES, weights=WEIGHTS, values=VALUES):
    prefix = FUNCTIONS[name][2]
    return {f"{prefix}_scale1": scores, "quant_scale1": weights, f"{prefix}_scale2": values}


def expected(query, key, value):
    """(B, N, S, Dv) in float64, and what the most frequent slip, of one code of a weight, changes."""
    key, value = (x.double().repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    weights = (query.double() @ key.mT * SCORES.item() * SCALE).softmax(-1)
    return (weights * 127).round() @ value * VALUES.item(), 128 * VALUES.item()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
@pytest.mark.parametrize("words", [False, True])
def test_int8_products(name, layout, words):
    rows = 1 if "incre" in name else 5
    tensors = [codes(2, n, s, D, seed=i) for i, (n, s) in enumerate(((HEADS, rows), (KV_HEADS, 9), (KV_HEADS, 9)))]
    wanted, slip = expected(*tensors)
    outer = [x.view(torch.int32).long() if words else x for x in (SCORES, VALUES)]
    scales = products(name, outer[0], WEIGHTS, outer[1])
    options = {} if rows == 1 else {"next_tokens": 9}
    result = call(name, tensors, layout, **scales, **options)
    assert result.dtype == torch.float16
    wrong = (result.double() - laid_out(wanted, layout)).abs()
    assert (wrong <= slip + wanted.abs().max() * 2.0**-10).all()
    assert (wrong <= laid_out(wanted, layout).abs() * 2.0**-10).double().mean() > 0.9  # slips are few
    again = call(name, tensors, layout, **scales, **options, quant_scale2=torch.tensor([0.5]))
    rounded = (result.float() / 2).clamp(-128, 127)  # itself rounded to float16
    assert again.dtype == torch.int8 and ((again - rounded).abs() <= 0.5 + rounded.abs() * 2.0**-10).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refusals_of_int8_products(name):
    rows = 1 if "incre" in name else 5
    tensors = [codes(2, n, s, D, seed=i) for i, (n, s) in enumerate(((HEADS, rows), (KV_HEADS, 9), (KV_HEADS, 9)))]
    with pytest.raises(TypeError, match="scale1 must be given for an int8 query"):
        call(name, tensors)
    with pytest.raises(ValueError, match=r"quant_scale1 must have 1 element, got shape \(2,\)"):
        call(name, tensors, **products(name, weights=torch.ones(2)))
    with pytest.raises(TypeError, match="quant_scale1 must be float32 or float16 or bfloat16, got int64"):
        call(name, tensors, **products(name, weights=torch.ones(1).long()))
    floats = [x.float() for x in tensors]
    with pytest.raises(NotImplementedError, match="scale1 is not supported by anynpu"):
        call(name, floats, **products(name))
    with pytest.raises(TypeError, match="key must be int8, got float32"):
        call(name, [tensors[0], *floats[1:]], **products(name))


@pytest.mark.parametrize("name", [*FUNCTIONS, "npu_fused_infer_attention_score_v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("planes", [1, 2])
def test_shifts_are_added_to_scaled_scores(name, dtype, planes):
    """A shift is one more value of the heads of query and key, 1 and the shift / scale, if one row sees it."""
    rows = 1 if "incre" in name else 3
    query, key, value = operands(2, rows, 9, dtype)
    shift = reals(planes, HEADS, rows, 9, dtype=dtype, seed=7)
    function = getattr(torch_npu, name)
    names = ("num_query_heads", "softmax_scale") if name.endswith("v2") else FUNCTIONS[name][:2]
    options = dict(zip(names, (HEADS, SCALE), strict=True)) | {"num_key_value_heads": KV_HEADS, "input_layout": "BNSD"}
    result = function(query, key, value, pse_shift=shift, **options)
    result = result[0] if isinstance(result, tuple) else result
    scores = query.double() @ key.double().repeat_interleave(3, 1).mT * SCALE + shift.double()
    exact = scores.softmax(-1) @ value.double().repeat_interleave(3, 1)
    _, _, error, _ = batched(list(query), list(key), list(value))
    error = 4 * error + (8 + shift.abs().max()) * 2.0**-22 * value.abs().max()
    assert_near(result, exact, error, dtype)


def test_refusals_of_shifts():
    q, k, v = operands(2, 5, 9)
    with pytest.raises(
        ValueError, match=r"pse_shift must have shape \(2 or 1, 6, 5, 9\), or larger.*got \(2, 6, 5, 8\)"
    ):
        call("npu_fused_infer_attention_score", (q, k, v), pse_shift=torch.zeros(2, HEADS, 5, 8))
    with pytest.raises(TypeError, match="pse_shift must be float32 or float16 or bfloat16, got bool"):
        call("npu_fused_infer_attention_score", (q, k, v), pse_shift=CAUSAL[:5, :9])
    packed = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
    with pytest.raises(NotImplementedError, match="pse_shift is not supported by anynpu in layout TND"):
        torch_npu.npu_fused_infer_attention_score(
            *packed, pse_shift=torch.zeros(2, HEADS, 5, 9), input_layout="TND", num_heads=HEADS,
            num_key_value_heads=KV_HEADS, actual_seq_lengths=[5, 10], actual_seq_lengths_kv=[9, 18],
        )  # fmt: skip


def test_graphs():
    tensors = [codes(2, n, s, D, seed=i) for i, (n, s) in enumerate(((HEADS, 5), (KV_HEADS, 9), (KV_HEADS, 9)))]

    def step(query, key, value, scores, weights, values, shift):
        scales = products("npu_fused_infer_attention_score", scores, weights, values)
        return call("npu_fused_infer_attention_score", (query, key, value), pse_shift=shift, **scales)

    arguments = *tensors, SCORES, WEIGHTS, VALUES, reals(1, HEADS, 5, 9)
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), step(*arguments))
    assert step(*[x.to("meta") for x in arguments]).shape == (2, HEADS, 5, D)
