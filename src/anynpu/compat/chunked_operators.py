# SPDX-License-Identifier: Apache-2.0
"""The operators with which serving engines attend to chunks of prompts: packed queries over paged caches.

Lengths are tensors of the host, whose values are read: a graph does not capture these operators.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch

from anynpu._check import require
from anynpu.compat.attention import Attention
from anynpu.compat.attention_masks import Mask
from anynpu.compat.paged_operators import hidden_places, host_lengths, over_blocks, require_out
from anynpu.compat.published import published

_CAUSAL = {"after": 0, "from_end": True}  # arguments of fused_attention
_COMPRESSED = ((128, 128), (2048, 2048))  # masks that stand for causal ones of any size
_INTEGERS = (torch.bool, torch.int8, torch.uint8)


def _padded(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """[B, S, N, D] of packed sequences."""
    return torch.nn.utils.rnn.pad_sequence(x.squeeze(0).split(lengths), batch_first=True)


def _attend_rows(op: str, attention: Attention, hidden: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Packed queries, each sequence with the places that are hidden from its rows."""
    rows = [places.shape[0] for places in hidden]
    most, columns = max(rows), max(places.shape[1] for places in hidden)
    query = _padded(attention.query, rows)
    masks = [
        torch.nn.functional.pad(places, (0, columns - places.shape[1], 0, most - places.shape[0])) for places in hidden
    ]
    mask = torch.stack(masks).unsqueeze(1)
    padded = replace(attention, query=query, layout="BSND", packed=False, q_lengths=rows, further={"mask": mask})
    result, _ = padded.attend(op, Mask(None), scale)
    return torch.cat([one[:count] for one, count in zip(result, rows, strict=True)])


def _chunks(
    op: str,
    query: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    heads: tuple[int, int],
    block_table: torch.Tensor,
    seq_len: torch.Tensor,
    context_lens: torch.Tensor,
) -> tuple[Attention, list[int], list[int]]:
    """Attention of packed queries (T, N, D), ``seq_len`` of each sequence, and the lengths of queries and keys."""
    shape = tuple(query.shape)
    fits = len(shape) == 3 and shape[1] == heads[0]
    require(op, fits, f"query must have shape (T, {heads[0]}, D), got {shape}")
    rows, columns = host_lengths(op, "seq_len", seq_len), host_lengths(op, "context_lens", context_lens)
    total = sum(rows)
    require(op, total == shape[0], f"seq_len must add up to the T = {shape[0]} tokens of query, got {total}")
    require(op, len(rows) == len(columns), f"seq_len has {len(rows)} sequences, context_lens {len(columns)}")
    attention = over_blocks(op, query.unsqueeze(0), *caches, heads[1], block_table, columns, list(accumulate(rows)))
    return attention, rows, columns


@published(
    "_npu_paged_attention_splitfuse(Tensor query, Tensor key_cache, Tensor value_cache, Tensor mask, "
    "Tensor block_table, Tensor seq_len, Tensor context_lens, int num_kv_heads, int num_heads, float scale_value, "
    "Tensor(a!) out) -> ()",
    "PagedAttention",
)
def _npu_paged_attention_splitfuse(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    mask: torch.Tensor,
    block_table: torch.Tensor,
    seq_len: torch.Tensor,
    context_lens: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: torch.Tensor,
) -> None:
    """Writes ``softmax(scale_value * query @ key.T, masked) @ value`` to ``out``: chunks of prompts and single tokens.

    The last ``seq_len[i]`` of the ``context_lens[i]`` tokens of a sequence are its rows of query (T, N, D). A mask of
    integers (2048, 2048) stands for the causal one; another has a row for each token of query.
    """
    op = "_npu_paged_attention_splitfuse"
    attention, rows, columns = _chunks(
        op, query, (key_cache, value_cache), (num_heads, num_kv_heads), block_table, seq_len, context_lens
    )
    if mask.dtype in _INTEGERS and tuple(mask.shape) == _COMPRESSED[1]:
        result, _ = replace(attention, further=_CAUSAL).attend(op, Mask(None), scale_value)
    else:
        places = hidden_places(op, mask, sum(rows), max(columns)).split(rows)
        hidden = [own[:, :count] for own, count in zip(places, columns, strict=True)]
        result = _attend_rows(op, attention, hidden, scale_value)
    require_out(op, "out", out, tuple(result.shape), query.dtype)
    out.copy_(result)


@published(
    "_npu_flash_attention_qlens(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor mask, "
    "Tensor seq_len, Tensor context_lens, int num_kv_heads, int num_heads, float scale_value, Tensor(a!) out) -> ()",
    "SelfAttention",
)
def _npu_flash_attention_qlens(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    mask: torch.Tensor,
    seq_len: torch.Tensor,
    context_lens: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: torch.Tensor,
) -> None:
    """``_npu_paged_attention_splitfuse`` for prompts with cached beginnings: the mask stands for the causal one."""
    op = "_npu_flash_attention_qlens"
    shape = tuple(mask.shape)
    require(op, shape in _COMPRESSED, f"mask must have shape (128, 128) or (2048, 2048), got {shape}")
    attention, _, _ = _chunks(
        op, query, (key_cache, value_cache), (num_heads, num_kv_heads), block_table, seq_len, context_lens
    )
    result, _ = replace(attention, further=_CAUSAL).attend(op, Mask(None), scale_value)
    require_out(op, "out", out, tuple(result.shape), query.dtype)
    out.copy_(result)
