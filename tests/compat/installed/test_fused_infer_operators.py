# SPDX-License-Identifier: Apache-2.0
"""What npu_fused_infer_attention_score and its second version have beside layouts, masks and lengths."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import (
    CAUSAL,
    DTYPES,
    FUSED,
    HEADS,
    KV_HEADS,
    SCALE,
    UNIT,
    D,
    assert_near,
    batched,
    laid_out,
    operands,
)
from npu_tensors import reals

V2_NAMES = {
    "num_heads": "num_query_heads",
    "scale": "softmax_scale",
    "actual_seq_lengths": "actual_seq_qlen",
    "actual_seq_lengths_kv": "actual_seq_kvlen",
    "softmax_lse_flag": "return_softmax_lse",
}


@pytest.mark.parametrize(
    "rows, options",
    [
        (5, {"input_layout": "BNSD", "sparse_mode": 3, "atten_mask": CAUSAL, "actual_seq_lengths_kv": [9, 4]}),
        (5, {"input_layout": "BNSD", "actual_seq_lengths": [2, 5], "softmax_lse_flag": True, "pre_tokens": 3}),
        (1, {"input_layout": "BNSD_BSND", "softmax_lse_flag": True}),
    ],
)
def test_the_second_version_has_other_names(rows, options):
    tensors = operands(2, rows, 9, torch.float16)
    options = {**FUSED, **options}
    renamed = {V2_NAMES.get(name, name): value for name, value in options.items()}
    expected = torch_npu.npu_fused_infer_attention_score(*tensors, **options)
    for function in (torch_npu, torch.ops.npu):
        assert all(map(torch.equal, function.npu_fused_infer_attention_score_v2(*tensors, **renamed), expected))


@pytest.mark.parametrize("name", ["pse_shift", "query_rope", "key_rope"])
def test_gradients_of_what_stands_beside_query_key_and_value(name):
    tensors = operands(2, 5, 9, torch.float32)
    ropes = {"query_rope": reals(2, HEADS, 5, 8), "key_rope": reals(2, KV_HEADS, 9, 8, seed=1)}
    beside = {"pse_shift": reals(2, HEADS, 5, 9, seed=2)} if name == "pse_shift" else ropes

    def total(value):
        options = {**FUSED, "input_layout": "BNSD", **beside, name: value}
        return torch_npu.npu_fused_infer_attention_score(*tensors, **options)[0].square().sum()

    value = beside[name].clone().requires_grad_()
    total(value).backward()
    step = reals(*value.shape, seed=3) * 2**-6
    change = total(beside[name] + step) - total(beside[name] - step)
    torch.testing.assert_close((value.grad * step).sum() * 2, change, rtol=2**-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_sinks_are_keys_without_a_value(dtype, masked):
    query, key, value = operands(2, 5, 9, dtype)
    key = key[:, :, : 3 if masked else 9]  # masked: the first queries see no key
    value = value[:, :, : key.shape[2]]
    sink = reals(HEADS, dtype=dtype, seed=3)
    sink[0], sink[1] = 8, -8
    mask = {"atten_mask": CAUSAL, "sparse_mode": 3} if masked else {}
    hidden = CAUSAL[:5, :5][:, 2:] if masked else None
    y, lse, error, lse_error = batched(query, key, value, lambda b: hidden)
    above = lse - sink.double()[:, None, None]
    share = above.sigmoid()
    error = share * (error + y.abs() * (lse_error.nan_to_num(0) + (8 + above.abs().nan_to_num(0, 0, 0)) * UNIT))
    y_sunk, _ = torch_npu.npu_fused_infer_attention_score_v2(
        query, key, value, learnable_sink=sink, num_query_heads=HEADS, num_key_value_heads=KV_HEADS,
        softmax_scale=SCALE, input_layout="BNSD", **mask,
    )  # fmt: skip
    assert_near(y_sunk, y * share, error, dtype)
    assert not masked or not y_sunk[:, :, :2].any()


def test_refusals_of_the_second_version():
    q, k, v = operands(2, 5, 9)
    for name, value in {"quant_scale_p": q, "query_quant_mode": 1, "out_dtype": torch.int8}.items():
        with pytest.raises(NotImplementedError, match=f"{name} is not supported by anynpu"):
            torch_npu.npu_fused_infer_attention_score_v2(q, k, v, **{name: value})
    sink, sinks = (
        torch.zeros(HEADS),
        {"num_query_heads": HEADS, "input_layout": "BNSD", "num_key_value_heads": KV_HEADS},
    )
    with pytest.raises(ValueError, match=r"learnable_sink must have shape \(6,\), one score a head, got \(2,\)"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, learnable_sink=sink[:2], **sinks)
    with pytest.raises(NotImplementedError, match="return_softmax_lse with learnable_sink is not implemented"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, learnable_sink=sink, return_softmax_lse=True, **sinks)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'num_heads'"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, num_heads=8)
    with pytest.raises(ValueError, match="actual_seq_qlen"):
        torch_npu.npu_fused_infer_attention_score_v2(
            q, k, v, num_query_heads=HEADS, num_key_value_heads=KV_HEADS, input_layout="BNSD", actual_seq_qlen=[7, 7]
        )


@pytest.mark.parametrize("version", ["", "_v2"])
@pytest.mark.parametrize("layout", ["BNSD_NBSD", "BSND_NBSD", "TND_NTD", "TND"])
def test_rope_beside_query_and_key(version, layout):
    """The heads of query and key are those and the rotated parts: as in multi-head latent attention."""
    q, k, v = operands(2, 5, 9)
    q_rope, k_rope = reals(2, HEADS, 5, 8, seed=3), reals(2, KV_HEADS, 9, 8, seed=4)
    whole = [torch.cat(both, -1) for both in ((q, q_rope), (k, k_rope))]
    expected, lse, error, _ = batched(*whole, v)
    source, _, target = layout.partition("_")
    given = [x.transpose(1, 2).flatten(0, 1) if source == "TND" else laid_out(x, source) for x in (q, k, v)]
    ropes = [x.transpose(1, 2).flatten(0, 1) if source == "TND" else laid_out(x, source) for x in (q_rope, k_rope)]
    lengths = ([5, 10], [9, 18]) if source == "TND" else (None, None)
    new = version == "_v2"
    names = ("actual_seq_qlen", "actual_seq_kvlen") if new else ("actual_seq_lengths", "actual_seq_lengths_kv")
    scales = {"num_query_heads": HEADS, "softmax_scale": SCALE} if new else {"num_heads": HEADS, "scale": SCALE}
    function = getattr(torch_npu, f"npu_fused_infer_attention_score{version}")
    options = {
        "query_rope": ropes[0], "key_rope": ropes[1], "input_layout": layout, "num_key_value_heads": KV_HEADS,
        **dict(zip(names, lengths, strict=True)), **scales,
    }  # fmt: skip
    y, _ = function(*given, **options)

    def arranged(x):
        if target:
            x = x.transpose(0, 1)
            return x.flatten(1, 2) if source == "TND" else x
        return x.transpose(1, 2).flatten(0, 1)

    wrong = arranged(error) * (1 + 8 / D)  # scores have 8 more roundings
    assert_near(y, arranged(expected), wrong, torch.float32)
    out = [torch.full_like(y, 7), torch.full((1,), 7.0).npu()]
    workspace = getattr(torch_npu, f"_npu_fused_infer_attention_score{version}_get_max_workspace")(*given, **options)
    function.out(*given, **options, workspace=workspace, out=out)
    assert torch.equal(out[0], y) and out[1].tolist() == [0]
    with pytest.raises(ValueError, match="the tensors of out must have the results' shapes"):
        function.out(*given, **options, out=[out[0][:1], out[1]])
