# SPDX-License-Identifier: Apache-2.0
"""The published attention operators of prompts, of increments and of training, and what they refuse."""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat import antiquant as antiquant_of
from anynpu.compat.attention import Attention, refuse
from anynpu.compat.attention_arguments import Placement, attention_of
from anynpu.compat.attention_layouts import FLOATS, Lengths
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


_DROPOUT = "str softmax_layout='', Tensor? sink=None, Tensor? dropout_mask=None, int seed=0, int offset=0"
_FUSION_RESULTS = "(Tensor, Tensor, Tensor, Tensor, int, int, int)"
Fusion = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, int]


@published(
    "npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, Tensor? pse=None, "
    "Tensor? padding_mask=None, Tensor? atten_mask=None, float scale=1., float keep_prob=1., "
    "int pre_tockens=2147483647, int next_tockens=2147483647, int inner_precise=0, SymInt[]? prefix=None, "
    "SymInt[]? actual_seq_qlen=None, SymInt[]? actual_seq_kvlen=None, int sparse_mode=0, "
    f"bool gen_mask_parallel=True, bool sync=False, {_DROPOUT}) -> {_FUSION_RESULTS}",
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
    softmax_layout: str = "",
    sink: torch.Tensor | None = None,
    dropout_mask: torch.Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> Fusion:
    """``softmax(scale * (query @ key.T + pse), masked) @ value``, with gradients.

    ``sink``, (N,), is the score of one more key of each head, whose value is 0. The other results belong to the
    backward pass of a chip: three empty tensors, and 0 for seed, offset and numels.
    """
    op = "npu_fusion_attention"
    refuse(padding_mask=padding_mask, prefix=prefix, dropout_mask=dropout_mask)
    lengths = {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen}
    attention = _fusion(op, (query, key, value), head_num, input_layout, lengths, keep_prob)
    attention = _with_pse(op, attention, pse, scale)
    return _fused(op, attention, _fusion_mask(atten_mask, sparse_mode, pre_tockens, next_tockens), scale, sink)


@published(
    "npu_fusion_attention_v2(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, *, "
    "Tensor? pse=None, Tensor? padding_mask=None, Tensor? atten_mask=None, Tensor? query_rope=None, "
    "Tensor? key_rope=None, float scale=1., float keep_prob=1., int pre_tokens=2147483647, "
    "int next_tokens=2147483647, int inner_precise=0, SymInt[]? prefix=None, SymInt[]? actual_seq_qlen=None, "
    "SymInt[]? actual_seq_kvlen=None, int sparse_mode=0, bool gen_mask_parallel=True, bool sync=False, "
    f"int pse_type=1, SymInt[]? q_start_idx=None, SymInt[]? kv_start_idx=None, {_DROPOUT}) -> {_FUSION_RESULTS}",
    "aclnnFlashAttentionScoreV3",
)
def npu_fusion_attention_v2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tokens: int = ALL,
    next_tokens: int = ALL,
    inner_precise: int = 0,
    prefix: Lengths = None,
    actual_seq_qlen: Lengths = None,
    actual_seq_kvlen: Lengths = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    pse_type: int = 1,
    q_start_idx: Lengths = None,
    kv_start_idx: Lengths = None,
    softmax_layout: str = "",
    sink: torch.Tensor | None = None,
    dropout_mask: torch.Tensor | None = None,
    seed: int = 0,
    offset: int = 0,
) -> Fusion:
    """``npu_fusion_attention``; with ``pse_type`` 0 pse is added behind the scale."""
    op = "npu_fusion_attention_v2"
    refuse(
        padding_mask=padding_mask, prefix=prefix, dropout_mask=dropout_mask, query_rope=query_rope, key_rope=key_rope,
        q_start_idx=q_start_idx, kv_start_idx=kv_start_idx,
    )  # fmt: skip
    if pse_type not in (0, 1):
        raise NotImplementedError(f"{op}: pse_type must be 0 or 1, got {pse_type}")
    lengths = {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen}
    attention = _fusion(op, (query, key, value), head_num, input_layout, lengths, keep_prob)
    attention = _with_pse(op, attention, pse, scale if pse_type == 1 else 1.0)
    return _fused(op, attention, _fusion_mask(atten_mask, sparse_mode, pre_tokens, next_tokens), scale, sink)


def _fusion(
    op: str,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    heads: int,
    layout: str,
    lengths: dict[str, Lengths],
    keep_prob: float,
) -> Attention:
    if keep_prob != 1:
        raise NotImplementedError(f"{op}: keep_prob must be 1.0, anynpu has no dropout here, got {keep_prob}")
    if layout != "TND" and any(each is not None for each in lengths.values()):
        raise NotImplementedError(f"{op}: actual_seq_qlen and actual_seq_kvlen are for layout TND, got {layout}")
    kv_heads = _kv_heads(*tensors[:2], heads, layout)
    placement = Placement(layout, ("BSH", "SBH", "BSND", "BNSD", "TND"), heads, kv_heads, lengths)
    return attention_of(op, *tensors, placement)


def _with_pse(op: str, attention: Attention, pse: torch.Tensor | None, factor: float) -> Attention:
    """The same with ``factor * pse`` added to the scaled scores; its axis of queries may be 1."""
    if pse is None:
        return attention
    require_dtype(op, "pse", pse, (attention.query.dtype,))
    if pse.dim() == 4 and pse.shape[2] == 1:
        pse = pse.expand(-1, -1, attention.query.shape[1], -1)
    return attention.with_shift(op, "pse", pse.float() * factor)


def _fusion_mask(mask: torch.Tensor | None, sparse_mode: int, before: int, after: int) -> Mask:
    """Without a mask all keys are seen, whatever the other arguments say."""
    return Mask(None) if mask is None else Mask(mask, sparse_mode, before, after)


def _fused(op: str, attention: Attention, mask: Mask, scale: float, sink: torch.Tensor | None) -> Fusion:
    if sink is not None:
        require_dtype(op, "sink", sink, FLOATS)
        expected, got = (attention.query.shape[2],), tuple(sink.shape)
        require(op, expected == got, f"sink must have shape {expected}, got {got}")
    unused = (attention.query.new_empty(0, dtype=torch.float32) for _ in range(3))
    return attention.attend(op, mask, scale, sink)[0], *unused, 0, 0, 0


def _kv_heads(query: torch.Tensor, key: torch.Tensor, heads: int, layout: str) -> int:
    """How many heads key has; 0, as many as query, where that cannot be told: then the shapes are refused."""
    if key.dim() != len(layout) or heads <= 0:
        return 0
    if "H" not in layout:
        return key.shape[layout.index("N")] if "N" in layout else 0
    return key.shape[-1] // max(query.shape[-1] // heads, 1)
