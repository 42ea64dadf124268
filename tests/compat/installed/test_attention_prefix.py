# SPDX-License-Identifier: Apache-2.0
"""Attention of torch_npu to keys and values that all sequences share, in front of their own."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import CAUSAL, FUSED, HEADS, KV_HEADS, D, laid_out, operands
from npu_tensors import codes, reals

Q, K, V = operands(2, 5, 9)
PREFIX = [reals(1, KV_HEADS, 7, D, seed=seed) for seed in (5, 6)]
NAMES = "key_shared_prefix", "value_shared_prefix"


def call(tensors, prefix, layout="BNSD", **options):
    shared = dict(zip(NAMES, [laid_out(x, layout) for x in prefix], strict=True)) if prefix else {}
    return torch_npu.npu_fused_infer_attention_score(
        *[laid_out(x, layout) for x in tensors],
        input_layout=layout,
        softmax_lse_flag=True,
        **shared,
        **FUSED,
        **options,
    )


@pytest.mark.parametrize("layout", ["BSH", "BNSD", "BSND"])
@pytest.mark.parametrize("length", [None, [3]])
@pytest.mark.parametrize("mask", [{}, {"atten_mask": CAUSAL, "sparse_mode": 3}, {"atten_mask": CAUSAL[:5, :16]}])
def test_a_prefix_is_in_front_of_all_keys(layout, length, mask):
    count = 7 if length is None else length[0]
    joined = [torch.cat([x[:, :, :count].expand(2, -1, -1, -1), own], 2) for x, own in zip(PREFIX, (K, V), strict=True)]
    for lengths in (None, [9, 4]):
        own = lengths and [each + count for each in lengths]
        expected = call((Q, *joined), None, layout, actual_seq_lengths_kv=own, **mask)
        result = call((Q, K, V), PREFIX, layout, actual_shared_prefix_len=length, actual_seq_lengths_kv=lengths, **mask)
        assert all(map(torch.equal, result, expected))


def test_a_prefix_of_codes_in_graphs():
    tensors, prefix = (
        [codes(2, KV_HEADS, 9, D, seed=i) for i in (1, 2)],
        [codes(1, KV_HEADS, 7, D, seed=i) for i in (3, 4)],
    )
    scale = torch.tensor([2.0**-6, 2.0**-5]).npu()
    joined = [torch.cat([x.expand(2, -1, -1, -1), own], 2) for x, own in zip(prefix, tensors, strict=True)]
    expected = call((Q, *joined), None, antiquant_scale=scale)

    def step(query, key, value, *prefix):
        return call((query, key, value), prefix, antiquant_scale=scale)

    torch.compiler.reset()
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        assert all(map(torch.equal, function(Q, *tensors, *prefix), expected))


@pytest.mark.parametrize(
    "options, kind, text",
    [
        ({NAMES[0]: PREFIX[0]}, ValueError, "key_shared_prefix and value_shared_prefix must be given together"),
        ({"actual_shared_prefix_len": [3]}, ValueError, "actual_shared_prefix_len needs key_shared_prefix"),
        (dict(zip(NAMES, PREFIX, strict=True)) | {"actual_shared_prefix_len": [8]}, ValueError, r"in \[0, 7\], got 8"),
        (dict.fromkeys(NAMES, K), ValueError, "key_shared_prefix must have one sequence of heads of 16, got 2 of 16"),
        (dict.fromkeys(NAMES, K.half()), TypeError, "key_shared_prefix must be float32, got float16"),
        (
            {NAMES[0]: PREFIX[0], NAMES[1]: PREFIX[1][:, :, :5]},
            ValueError,
            "must have as many tokens as key_shared_pre",
        ),
    ],
)
def test_refusals(options, kind, text):
    with pytest.raises(kind, match=text):
        torch_npu.npu_fused_infer_attention_score(Q, K, V, input_layout="BNSD", **options, **FUSED)


def test_refusal_of_packed_sequences():
    packed = [x.transpose(1, 2).flatten(0, 1) for x in (Q, K, V)]
    with pytest.raises(NotImplementedError, match="key_shared_prefix is not supported by anynpu in layout TND"):
        torch_npu.npu_fused_infer_attention_score(
            *packed, num_heads=HEADS, num_key_value_heads=KV_HEADS, input_layout="TND", actual_seq_lengths=[5, 10],
            actual_seq_lengths_kv=[9, 18], **dict(zip(NAMES, PREFIX, strict=True)),
        )  # fmt: skip
