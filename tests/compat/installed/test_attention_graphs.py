# SPDX-License-Identifier: Apache-2.0
"""The attention functions of torch_npu in graphs."""

from __future__ import annotations

import pytest
import torch
import torch_npu
import torchair
from attention_formula import CAUSAL, FUSED, HEADS, KV_HEADS, PROMPT, SCALE, D, operands
from npu_tensors import reals

Q, K, V = operands(2, 5, 9)
ROW = Q[:, :, :1]
TABLE, CACHE = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.zeros(4, 8, KV_HEADS * D)


@pytest.mark.parametrize("backend", ["aot_eager", torchair.get_npu_backend()], ids=["aot_eager", "torchair"])
def test_functions_are_captured_in_graphs(backend):
    def step(q, k, v, row, table, cache, mask, lengths):
        prompt = torch_npu.npu_prompt_flash_attention(
            q, k, v, atten_mask=mask, sparse_mode=3, input_layout="BNSD", **PROMPT
        )
        new = torch_npu.npu_incre_flash_attention(row, k, v, actual_seq_lengths=lengths, input_layout="BNSD", **PROMPT)
        paged, lse = torch_npu.npu_fused_infer_attention_score(
            row, cache, cache, block_table=table, block_size=8, actual_seq_lengths_kv=lengths, input_layout="BNSD",
            softmax_lse_flag=True, **FUSED,
        )  # fmt: skip
        return prompt, new, paged, lse, torch_npu.npu_fusion_attention(q, k, v, HEADS, "BNSD", scale=SCALE)[0]

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([9, 4], [9, 8]):
        arguments = Q, K, V, ROW, TABLE, reals(*CACHE.shape, seed=5), CAUSAL, lengths
        torch.testing.assert_close(compiled(*arguments), step(*arguments), rtol=2e-6, atol=2e-6)


def test_decoding_compiles_once():
    def step(row, k, v, lengths):
        return torch_npu.npu_incre_flash_attention(row, k, v, actual_seq_lengths=lengths, input_layout="BNSD", **PROMPT)

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in range(3, 8):
        arguments = ROW, K, V, [length, length + 1]
        torch.testing.assert_close(compiled(*arguments), step(*arguments), rtol=2e-6, atol=2e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
