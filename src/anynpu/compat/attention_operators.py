# SPDX-License-Identifier: Apache-2.0
"""The published attention operators of prompts, of increments and of training, and what they refuse."""

from __future__ import annotations

import torch

from anynpu._check import require
from anynpu.compat import antiquant as antiquant_of
from anynpu.compat.attention import refuse
from anynpu.compat.attention_arguments import Placement, attention_of
from anynpu.compat.attention_layouts import Lengths
from anynpu.compat.attention_masks import ALL, Mask
from anynpu.compat.published import published


@published(
    "npu_prompt_flash_attention(Tensor query, Tensor key, Tensor value, *, Tensor? pse_shift=None, "
    "Tensor? padding_mask=None, Tensor? atten_mask=None, SymInt[]? actual_seq_lengths=None, Tensor? deq_scale1=None, "
    "Tensor? quant_scale1=None, Tensor? deq_scale2=None, Tensor? quant_scale2=None, Tensor? quant_offset2=None, "
    "int num_heads=1, float scale_value=1.0, int pre_tokens=2147473647, int next_tokens=0, str input_layout='BSH', "
    "int num_key_value_heads=0, SymInt[]? actual_seq_lengths_kv=None, int sparse_mode=0) -> Tensor",
    "aclnnPromptFlashAttentionV3",
)
def npu_prompt_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pse_shift: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    actual_seq_lengths: Lengths = None,
    deq_scale1: torch.Tensor | None = None,
    quant_scale1: torch.Tensor | None = None,
    deq_scale2: torch.Tensor | None = None,
    quant_scale2: torch.Tensor | None = None,
    quant_offset2: torch.Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    pre_tokens: int = 2147473647,
    next_tokens: int = 0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    actual_seq_lengths_kv: Lengths = None,
    sparse_mode: int = 0,
) -> torch.Tensor:
    """``softmax(scale_value * query @ key.T, masked) @ value``, of whole prompts."""
    op = "npu_prompt_flash_attention"
    refuse(padding_mask=padding_mask)
    lengths = {"actual_seq_lengths": actual_seq_lengths, "actual_seq_lengths_kv": actual_seq_lengths_kv}
    layouts = ("BSH", "BSND", "BNSD", "BNSD_BSND")
    placement = Placement(input_layout, layouts, num_heads, num_key_value_heads, lengths)
    attention = attention_of(op, query, key, value, placement, takes_int8=True)
    products = {"deq_scale1": deq_scale1, "quant_scale1": quant_scale1, "deq_scale2": deq_scale2}
    attention = attention.with_int8_products(op, products).with_shift(op, "pse_shift", pse_shift)
    attention = attention.with_int8_result(op, {"quant_scale2": quant_scale2, "quant_offset2": quant_offset2})
    mask = Mask(atten_mask, sparse_mode, pre_tokens, next_tokens)
    return attention.attend(op, mask, scale_value)[0]


@published(
    "npu_incre_flash_attention(Tensor query, Tensor key, Tensor value, *, Tensor? padding_mask=None, "
    "Tensor? atten_mask=None, Tensor? pse_shift=None, SymInt[]? actual_seq_lengths=None, "
    "Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, Tensor? block_table=None, "
    "Tensor? dequant_scale1=None, Tensor? quant_scale1=None, Tensor? dequant_scale2=None, Tensor? quant_scale2=None, "
    "Tensor? quant_offset2=None, Tensor? kv_padding_size=None, int num_heads=1, float scale_value=1.0, "
    "str input_layout='BSH', int num_key_value_heads=0, int block_size=0, int inner_precise=1) -> Tensor",
    "aclnnIncreFlashAttentionV4",
)
def npu_incre_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    padding_mask: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    pse_shift: torch.Tensor | None = None,
    actual_seq_lengths: Lengths = None,
    antiquant_scale: torch.Tensor | None = None,
    antiquant_offset: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    dequant_scale1: torch.Tensor | None = None,
    quant_scale1: torch.Tensor | None = None,
    dequant_scale2: torch.Tensor | None = None,
    quant_scale2: torch.Tensor | None = None,
    quant_offset2: torch.Tensor | None = None,
    kv_padding_size: torch.Tensor | None = None,
    num_heads: int = 1,
    scale_value: float = 1.0,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    block_size: int = 0,
    inner_precise: int = 1,
) -> torch.Tensor:
    """The same for one new token of each sequence; ``actual_seq_lengths`` are those of the keys."""
    op = "npu_incre_flash_attention"
    refuse(padding_mask=padding_mask)
    stacked = {"antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset}
    lengths = {"of the queries": None, "actual_seq_lengths": actual_seq_lengths}
    heads = num_heads, num_key_value_heads
    placement = Placement(input_layout, ("BSH", "BSND", "BNSD"), *heads, lengths, block_table, block_size)
    attention = attention_of(op, query, key, value, placement, antiquant_of.stacked(op, stacked), takes_int8=True)
    attention = attention.with_padding(op, **{"of the queries": None, "kv_padding_size": kv_padding_size})
    products = {"dequant_scale1": dequant_scale1, "quant_scale1": quant_scale1, "dequant_scale2": dequant_scale2}
    attention = attention.with_int8_products(op, products).with_shift(op, "pse_shift", pse_shift)
    attention = attention.with_int8_result(op, {"quant_scale2": quant_scale2, "quant_offset2": quant_offset2})
    tokens = attention.query.shape[1]
    require(op, tokens == 1, f"query must have one token for each sequence, got {tokens}")
    return attention.attend(op, Mask(atten_mask), scale_value)[0]


@published(
    "npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, Tensor? pse=None, "
    "Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., "
    "int pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, SymInt[]? prefix=None, "
    "SymInt[]? actual_seq_qlen=None, SymInt[]? actual_seq_kvlen=None, int sparse_mode=0, "
    "bool gen_mask_parallel=True, bool sync=False) -> (Tensor, Tensor, Tensor, Tensor, int, int, int)",
    "aclnnFlashAttentionScore",
)
def npu_fusion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    head_num: int,
    input_layout: str,
    pse: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = ALL,
    next_tockens: int = ALL,
    inner_precise: int = 0,
    prefix: Lengths = None,
    actual_seq_qlen: Lengths = None,
    actual_seq_kvlen: Lengths = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]:
    """``softmax(scale * query @ key.T, masked) @ value`` for inference.

    The other results belong to the backward pass of a chip: three empty tensors, and 0 for seed, offset and numels.
    """
    op = "npu_fusion_attention"
    refuse(pse=pse, padding_mask=padding_mask, prefix=prefix)
    if keep_prob != 1:
        raise NotImplementedError(f"{op}: keep_prob must be 1.0, anynpu has no dropout here, got {keep_prob}")
    if input_layout != "TND" and not (actual_seq_qlen is None and actual_seq_kvlen is None):
        raise NotImplementedError(f"{op}: actual_seq_qlen and actual_seq_kvlen are for layout TND, got {input_layout}")
    lengths = {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen}
    heads = head_num, _kv_heads(query, key, head_num, input_layout)
    placement = Placement(input_layout, ("BSH", "SBH", "BSND", "BNSD", "TND"), *heads, lengths)
    attention = attention_of(op, query, key, value, placement)
    mask = Mask(atten_mask, sparse_mode, pre_tockens, next_tockens)
    unused = (query.new_empty(0, dtype=torch.float32) for _ in range(3))
    return attention.attend(op, mask, scale)[0], *unused, 0, 0, 0


def _kv_heads(query: torch.Tensor, key: torch.Tensor, heads: int, layout: str) -> int:
    """How many heads key has; 0, as many as query, where that cannot be told: then the shapes are refused."""
    if key.dim() != len(layout) or heads <= 0:
        return 0
    if "H" not in layout:
        return key.shape[layout.index("N")] if "N" in layout else 0
    return key.shape[-1] // max(query.shape[-1] // heads, 1)
