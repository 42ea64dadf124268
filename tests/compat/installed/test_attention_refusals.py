# SPDX-License-Identifier: Apache-2.0
"""What the attention functions of torch_npu refuse, and how they say it."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import CAUSAL, FUSED, HEADS, KV_HEADS, PROMPT, D, operands

Q, K, V = operands(2, 5, 9)
CODES, MODES = K.to(torch.int8), ("key_antiquant_mode", "value_antiquant_mode")
ROW = Q[:, :, :1]
TND = [x.transpose(0, 1).flatten(1, 2).transpose(0, 1) for x in (Q, K, V)]
TABLE, CACHE = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.zeros(4, 8, KV_HEADS * D)


@pytest.mark.parametrize(
    "tensors, options, kind, text",
    [
        ((Q.double(), K, V), {}, TypeError, "query must be float32 or float16 or bfloat16 or int8, got float64"),
        ((Q.half(), K.half().to(torch.int8), V.half()), {}, TypeError, "key must be float16, got int8"),
        ((Q, K, V.half()), {}, TypeError, "value must be float32, got float16"),
        (
            (Q, K, V),
            {"input_layout": "BNSD_SBH"},
            ValueError,
            "Layout BNSD_SBH is not supported! input_layout must be",
        ),
        (
            (Q, K, V),
            {"input_layout": "BSH"},
            ValueError,
            r"Layout BSH, query must have 3 axes, got shape \(2, 6, 5, 16\)",
        ),
        ((Q, K, V), {"num_heads": 0}, ValueError, "numHeads should be greater than 0, but got 0"),
        ((Q, K, V), {"num_heads": 3}, ValueError, "num_heads must be a multiple of num_key_value_heads, got 3 and 2"),
        ((Q, K, V), {"num_heads": 4}, ValueError, "axis 1 of query must be its 4 heads, got shape"),
        ((Q, K, V), {"num_key_value_heads": 3}, ValueError, "axis 1 of key must be its 3 heads, got shape"),
        ((Q[0], K[0], V[0]), {"input_layout": "BSH", "num_heads": 7, "num_key_value_heads": 7}, ValueError, "7 heads"),
        ((Q, K[:1], V[:1]), {}, ValueError, "query has 2 sequences, key 1"),
        ((Q[:0], K[:0], V[:0]), {}, ValueError, "query must have at least one sequence"),
        ((Q, K, V[:, :, 1:]), {}, ValueError, "value must have as many tokens as key, 9, got 8"),
        ((Q, K[..., 1:], V), {}, ValueError, "the heads of key must be as long as query's, 16, got 15"),
        ((Q, K, V), {"sparse_mode": 5}, NotImplementedError, "sparse_mode must be 0, 1, 2, 3 or 4, got 5"),
        ((Q, K, V), {"sparse_mode": 3}, ValueError, "atten_mask must be given for sparse_mode 3"),
        ((Q, K, V), {"sparse_mode": 3, "atten_mask": CAUSAL[:5, :9]}, ValueError, r"\(2048, 2048\).*got \(5, 9\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:4, :9]}, ValueError, r"atten_mask must have shape \(5, 9\).*got \(4, 9\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :8]}, ValueError, r"atten_mask must have shape \(5, 9\).*got \(5, 8\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :9].expand(3, 5, 9)}, ValueError, r"atten_mask must have shape"),
        ((Q, K, V), {"atten_mask": CAUSAL[0]}, ValueError, "atten_mask must have 2 to 4 axes"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :9].float()}, TypeError, "atten_mask must be bool or int8 or uint8"),
        ((ROW, K, V), {"sparse_mode": 4, "atten_mask": CAUSAL}, NotImplementedError, "for queries of one token, got 4"),
        ((Q, K, V), {"actual_seq_lengths": [5, 6]}, ValueError, r"actual_seq_lengths must be in \[0, 5\], got 6"),
        ((Q, K, V), {"actual_seq_lengths_kv": [-1]}, ValueError, r"actual_seq_lengths_kv must be in \[0, 9\], got -1"),
        ((Q, K, V), {"actual_seq_lengths": [1, 2, 3]}, ValueError, "must have 1 or 2 entries, got 3"),
        ((Q, K, V), {"actual_seq_lengths": torch.ones(2)}, TypeError, "actual_seq_lengths must be a list of ints"),
        ((Q, K, V), {"actual_seq_lengths": [4.5, 3.5]}, TypeError, "must be a list of ints or .*got list of float"),
        (TND, {"input_layout": "TND"}, TypeError, "actual_seq_lengths must be a list of ints in layout TND, got None"),
        (TND, {"input_layout": "TND", "actual_seq_lengths": [4, 9]}, ValueError, "end with T = 10 in layout TND, got"),
        (TND, {"input_layout": "TND", "actual_seq_lengths": [11, 10]}, ValueError, "must be cumulative"),
        (
            TND,
            {
                "input_layout": "TND",
                "actual_seq_lengths": [5, 10],
                "actual_seq_lengths_kv": [9, 18],
                "atten_mask": CAUSAL,
            },
            NotImplementedError,
            "atten_mask with sparse_mode 0 is not supported by anynpu in layout TND, supported: sparse_mode 2, 3 and 4",
        ),
        (
            (Q, K, V),
            {"key_rope_antiquant_scale": Q},
            NotImplementedError,
            "key_rope_antiquant_scale is not supported by anynpu, supported: float query",
        ),
        (
            (Q, K, V),
            {"antiquant_scale": Q},
            TypeError,
            "antiquant_scale is for int8 codes and int32 of int4 ones, got float32",
        ),
        ((Q, CODES, CODES), {}, TypeError, "key must be float32, got int8"),
        ((Q, CODES, CODES), {"antiquant_scale": Q[0, 0]}, ValueError, "the first axis of antiquant_scale must be 2"),
        ((Q, CODES, CODES), {"antiquant_scale": Q, "antiquant_mode": 2}, ValueError, "must be 0 or 1, got 2"),
        ((Q, CODES, CODES), {"key_antiquant_scale": Q}, ValueError, "value_antiquant_scale must be given together"),
        ((Q, CODES, CODES), {"key_antiquant_offset": Q}, ValueError, "key_antiquant_offset needs a scale"),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q},
            ValueError,
            f"key_antiquant_scale must have {KV_HEADS * D} elements for mode 0, got",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q, "key_antiquant_mode": 1},
            ValueError,
            "modes of key and value must be equal, 0 to 5, or 0 and 1, got 1 and 0",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q, **dict.fromkeys(MODES, 4)},
            ValueError,
            "key_antiquant_scale of mode 4 is for a block_table",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q[0, 0], "value_antiquant_scale": Q, **dict.fromkeys(MODES, 1)},
            ValueError,
            r"key_antiquant_scale must have shape \(2, 9\) for mode 1, or more tokens, got \(5, 16\)",
        ),
        ((Q, K, V), {"query_rope": Q}, ValueError, "query_rope and key_rope must be given together"),
        ((Q, K, V), {"query_rope": Q, "key_rope": K[:, :, :1]}, ValueError, "key_rope must have the heads and tokens"),
        ((Q, K, V), {"query_rope": Q, "key_rope": K.half()}, TypeError, "key must be float32, got float16"),
        (
            (Q, CODES, CODES),
            {"antiquant_scale": torch.ones(2), "query_rope": Q, "key_rope": K},
            NotImplementedError,
            "query_rope is not supported by anynpu with int8 or int4 key and value",
        ),
        ((Q, CACHE, CACHE), {"block_table": TABLE}, ValueError, "block_size must be that of key, 8, got 0"),
        ((Q, CACHE, CACHE), {"block_table": TABLE, "block_size": 8}, TypeError, "actual_seq_lengths_kv must be given"),
        ((Q, CACHE, CACHE), {"block_table": TABLE.long()}, TypeError, "block_table must be int32, got int64"),
        ((Q, CACHE, CACHE), {"block_table": TABLE[0]}, ValueError, "block_table must have 2 axes"),
        ((Q, CACHE[0], CACHE), {"block_table": TABLE}, ValueError, "key's dim should be 3/4/5, but got 2"),
        (
            (Q, CACHE, CACHE),
            {"block_table": TABLE, "block_size": 8, "actual_seq_lengths_kv": [16, 17]},
            ValueError,
            r"actual_seq_lengths_kv must be in \[0, 16\], got 17",
        ),
        (
            (Q, CACHE, CACHE),
            {"block_table": TABLE + 1, "block_size": 8, "actual_seq_lengths_kv": [16, 16]},
            RuntimeError,
            r"block_table must be in \[0, 4\) where rows are used, got 4 at \[1, 1\]",
        ),
    ],
)
def test_what_fused_refuses(tensors, options, kind, text):
    with pytest.raises(kind, match=text):
        torch_npu.npu_fused_infer_attention_score(*tensors, **{"input_layout": "BNSD", **FUSED, **options})


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: torch_npu.npu_incre_flash_attention(Q, K, V, input_layout="BNSD", **PROMPT), ValueError, "one token"),
        (
            lambda: torch_npu.npu_incre_flash_attention(ROW, K, V, input_layout="BNSD_BSND", **PROMPT),
            ValueError,
            "input_layout must be BSH or BSND or BNSD",
        ),
        (
            lambda: torch_npu.npu_incre_flash_attention(ROW, K, V, padding_mask=Q),
            NotImplementedError,
            "padding_mask is not supported by anynpu",
        ),
        (
            lambda: torch_npu.npu_prompt_flash_attention(Q, K, V, deq_scale1=Q, input_layout="BNSD", **PROMPT),
            NotImplementedError,
            "deq_scale1 is not supported by anynpu",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", keep_prob=0.9),
            NotImplementedError,
            "keep_prob must be 1.0, anynpu has no dropout here, got 0.9",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", actual_seq_qlen=[5, 5]),
            NotImplementedError,
            "actual_seq_qlen and actual_seq_kvlen are for layout TND, got BNSD",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", pse=Q[:, :1]),
            ValueError,
            "pse must have shape",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", pse=Q.half()),
            TypeError,
            "pse must be float32, got float16",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", sink=torch.ones(1)),
            ValueError,
            r"sink must have shape \(6,\), got \(1,\)",
        ),
        (
            lambda: torch_npu.npu_fusion_attention_v2(Q, K, V, HEADS, "BNSD", pse_type=2),
            NotImplementedError,
            "pse_type must be 0 or 1, got 2",
        ),
        (
            lambda: torch_npu.npu_fusion_attention_v2(Q, K, V, HEADS, "BNSD", query_rope=Q),
            NotImplementedError,
            "query_rope is not supported",
        ),
        (lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BSH"), ValueError, "Layout BSH, query must have 3"),
        (lambda: torch_npu.npu_fusion_attention(Q, K, V, 0, "BNSD"), ValueError, "numHeads should be greater than 0"),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K[:, :0], V, HEADS, "BNSD"),
            ValueError,
            "axis 1 of key must be its",
        ),
    ],
)
def test_what_the_others_refuse(call, kind, text):
    with pytest.raises(kind, match=text):
        call()
