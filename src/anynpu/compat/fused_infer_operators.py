# SPDX-License-Identifier: Apache-2.0
"""``npu_fused_infer_attention_score`` and its second version, for prompts and increments alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu.compat import antiquant as antiquant_of
from anynpu.compat.attention import Attention, refuse
from anynpu.compat.attention_arguments import Placement, attention_of
from anynpu.compat.attention_calls import Call, repeated
from anynpu.compat.attention_layouts import FLOATS, Lengths
from anynpu.compat.attention_masks import ALL, Mask
from anynpu.compat.published import published
from anynpu.ops.fused_attention.spec import CODES

_LAYOUTS = (
    "BSH", "BSND", "BNSD", "TND", "NTD", "BNSD_BSND", "BSH_BNSD", "BSND_BNSD", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD",
    "TND_NTD", "NTD_TND",
)  # fmt: skip


@published(
    "npu_fused_infer_attention_score(Tensor query, Tensor key, Tensor value, *, Tensor? pse_shift=None, "
    "Tensor? atten_mask=None, SymInt[]? actual_seq_lengths=None, SymInt[]? actual_seq_lengths_kv=None, "
    "Tensor? dequant_scale1=None, Tensor? quant_scale1=None, Tensor? dequant_scale2=None, Tensor? quant_scale2=None, "
    "Tensor? quant_offset2=None, Tensor? antiquant_scale=None, Tensor? antiquant_offset=None, "
    "Tensor? key_antiquant_scale=None, Tensor? key_antiquant_offset=None, Tensor? value_antiquant_scale=None, "
    "Tensor? value_antiquant_offset=None, Tensor? block_table=None, Tensor? query_padding_size=None, "
    "Tensor? kv_padding_size=None, Tensor? key_shared_prefix=None, Tensor? value_shared_prefix=None, "
    "SymInt[]? actual_shared_prefix_len=None, Tensor? query_rope=None, Tensor? key_rope=None, "
    "Tensor? key_rope_antiquant_scale=None, int num_heads=1, float scale=1.0, int pre_tokens=2147483647, "
    "int next_tokens=2147483647, str input_layout='BSH', int num_key_value_heads=0, int sparse_mode=0, "
    "int inner_precise=0, int block_size=0, int antiquant_mode=0, int key_antiquant_mode=0, "
    "int value_antiquant_mode=0, bool softmax_lse_flag=False) -> (Tensor, Tensor)",
    "aclnnFusedInferAttentionScoreV3",
)
@repeated
def npu_fused_infer_attention_score(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    pse_shift: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    actual_seq_lengths: Lengths = None,
    actual_seq_lengths_kv: Lengths = None,
    dequant_scale1: torch.Tensor | None = None,
    quant_scale1: torch.Tensor | None = None,
    dequant_scale2: torch.Tensor | None = None,
    quant_scale2: torch.Tensor | None = None,
    quant_offset2: torch.Tensor | None = None,
    antiquant_scale: torch.Tensor | None = None,
    antiquant_offset: torch.Tensor | None = None,
    key_antiquant_scale: torch.Tensor | None = None,
    key_antiquant_offset: torch.Tensor | None = None,
    value_antiquant_scale: torch.Tensor | None = None,
    value_antiquant_offset: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    query_padding_size: torch.Tensor | None = None,
    kv_padding_size: torch.Tensor | None = None,
    key_shared_prefix: torch.Tensor | None = None,
    value_shared_prefix: torch.Tensor | None = None,
    actual_shared_prefix_len: Lengths = None,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    key_rope_antiquant_scale: torch.Tensor | None = None,
    num_heads: int = 1,
    scale: float = 1.0,
    pre_tokens: int = ALL,
    next_tokens: int = ALL,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> Call:
    """``softmax(scale * query @ key.T, masked) @ value``, and the log-sum-exp of its scores, a 0 unless asked for.

    ``query_rope`` and ``key_rope`` are further values of the heads of query and key, behind those, in their layout.

    See docs/torch_npu.md for layouts, masks and lengths. Queries beyond their length, and those that see no key, give
    0, their log-sum-exp is 0 and -inf.
    """
    op = "npu_fused_infer_attention_score"
    refuse(key_rope_antiquant_scale=key_rope_antiquant_scale)
    separate = {
        "key_antiquant_scale": key_antiquant_scale,
        "key_antiquant_offset": key_antiquant_offset,
        "value_antiquant_scale": value_antiquant_scale,
        "value_antiquant_offset": value_antiquant_offset,
    }
    antiquant = antiquant_of.separate(op, separate, (key_antiquant_mode, value_antiquant_mode))
    if antiquant[0] is None:
        stacked = {"antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset}
        antiquant = antiquant_of.stacked(op, stacked, antiquant_mode)
    lengths = {"actual_seq_lengths": actual_seq_lengths, "actual_seq_lengths_kv": actual_seq_lengths_kv}
    heads = num_heads, num_key_value_heads
    placement = Placement(input_layout, _LAYOUTS, *heads, lengths, block_table, block_size)
    attention = attention_of(op, query, key, value, placement, antiquant, takes_int8=True)
    prefix = {"key_shared_prefix": key_shared_prefix, "value_shared_prefix": value_shared_prefix}
    attention = attention.with_prefix(op, prefix, actual_shared_prefix_len, placement.source, placement.key_heads)
    attention = attention.with_int8_result(op, {"quant_scale2": quant_scale2, "quant_offset2": quant_offset2})
    attention = attention.with_shift(op, "pse_shift", pse_shift)
    products = {"dequant_scale1": dequant_scale1, "quant_scale1": quant_scale1, "dequant_scale2": dequant_scale2}
    attention = attention.with_int8_products(op, products)
    attention = attention.with_padding(op, query_padding_size=query_padding_size, kv_padding_size=kv_padding_size)
    attention = _with_rope(op, attention, query_rope, key_rope, placement)
    mask = _mask(op, attention, Mask(atten_mask, sparse_mode, pre_tokens, next_tokens))
    return attention.call(op, mask, scale, with_lse=softmax_lse_flag)


def _with_rope(
    op: str,
    attention: Attention,
    query_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
    placement: Placement,
) -> Attention:
    """The same with the rotated parts of query and key, which lie as these do, if there are any."""
    if attention.key.dtype in CODES and query_rope is not None:
        raise NotImplementedError(f"{op}: query_rope is not supported by anynpu with int8 or int4 key and value")
    require(op, (query_rope is None) == (key_rope is None), "query_rope and key_rope must be given together")
    if query_rope is None:
        return attention
    ropes = attention_of(op, query_rope, key_rope, key_rope, placement)
    return attention.with_rope(op, ropes.query, ropes.key)


def _mask(op: str, attention: Attention, mask: Mask) -> Mask:
    """``mask``, as it counts for these queries."""
    return mask.of_one_token(op) if attention.one_row else mask


def _check_sink(op: str, sink: torch.Tensor, heads: int, with_lse: bool) -> None:
    require_dtype(op, "learnable_sink", sink, FLOATS)
    shape = tuple(sink.shape)
    require(op, shape == (heads,), f"learnable_sink must have shape ({heads},), one score a head, got {shape}")
    if with_lse:
        raise NotImplementedError(f"{op}: return_softmax_lse with learnable_sink is not implemented")


_V2_ANTIQUANT = ("dequant_scale_key", "dequant_offset_key", "dequant_scale_value", "dequant_offset_value")
_V2_TENSORS = (
    "pse_shift", "dequant_scale_query", *_V2_ANTIQUANT, "dequant_scale_key_rope", "quant_scale_out", "quant_offset_out",
    "quant_scale_p",
)  # fmt: skip
_V2_MODES = ("query_quant_mode", "key_quant_mode", "value_quant_mode")
_V2_DTYPES = tuple(
    f"{name}_dtype"
    for name in (
        "query", "key", "value", "query_rope", "key_rope", "key_shared_prefix", "value_shared_prefix",
        "dequant_scale_query", "dequant_scale_key", "dequant_scale_value", "dequant_scale_key_rope", "out",
    )
)  # fmt: skip


@published(
    "npu_fused_infer_attention_score_v2(Tensor query, Tensor key, Tensor value, *, Tensor? query_rope=None, "
    "Tensor? key_rope=None, "
    + "".join(f"Tensor? {name}=None, " for name in _V2_TENSORS)
    + "Tensor? learnable_sink=None, Tensor? atten_mask=None, SymInt[]? actual_seq_qlen=None, "
    "SymInt[]? actual_seq_kvlen=None, Tensor? block_table=None, int num_query_heads=1, int num_key_value_heads=0, "
    "float softmax_scale=1.0, int pre_tokens=2147483647, int next_tokens=2147483647, str input_layout='BSH', "
    "int sparse_mode=0, int block_size=0, int inner_precise=0, bool return_softmax_lse=False, "
    + ", ".join([f"int {name}=0" for name in _V2_MODES] + [f"int? {name}=None" for name in _V2_DTYPES])
    + ") -> (Tensor, Tensor)",
    "aclnnFusedInferAttentionScoreV4",
)
@repeated
def npu_fused_infer_attention_score_v2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    learnable_sink: torch.Tensor | None = None,
    atten_mask: torch.Tensor | None = None,
    actual_seq_qlen: Lengths = None,
    actual_seq_kvlen: Lengths = None,
    block_table: torch.Tensor | None = None,
    num_query_heads: int = 1,
    num_key_value_heads: int = 0,
    softmax_scale: float = 1.0,
    pre_tokens: int = ALL,
    next_tokens: int = ALL,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    **others: Any,
) -> Call:
    """``npu_fused_infer_attention_score`` with other names of its arguments; ``others`` are refused.

    ``learnable_sink``, (N,), is the score of one more key of each head, which all queries see and whose value is 0.
    """
    op = "npu_fused_infer_attention_score_v2"
    for name in others:
        if name not in (*_V2_TENSORS, *_V2_MODES, *_V2_DTYPES):
            raise TypeError(f"{op}: got an unexpected keyword argument {name!r}")
    separate = {name: others.pop(name, None) for name in _V2_ANTIQUANT}
    modes = others.pop("key_quant_mode", 0), others.pop("value_quant_mode", 0)
    antiquant = antiquant_of.separate(op, separate, modes)
    result_factors = {name: others.pop(name, None) for name in ("quant_scale_out", "quant_offset_out")}
    shift = others.pop("pse_shift", None)
    refuse(**others)
    lengths = {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen}
    heads = num_query_heads, num_key_value_heads
    placement = Placement(input_layout, _LAYOUTS, *heads, lengths, block_table, block_size)
    attention = attention_of(op, query, key, value, placement, antiquant)
    attention = attention.with_int8_result(op, result_factors).with_shift(op, "pse_shift", shift)
    attention = _with_rope(op, attention, query_rope, key_rope, placement)
    mask = _mask(op, attention, Mask(atten_mask, sparse_mode, pre_tokens, next_tokens))
    if learnable_sink is not None:
        _check_sink(op, learnable_sink, num_query_heads, return_softmax_lse)
    return attention.call(op, mask, softmax_scale, learnable_sink, return_softmax_lse)


def _provide_out(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., torch.Tensor]:
    """Gives ``function`` its ``out`` variant, which writes to two tensors; returns that which asks for its workspace.

    Without the flag for the log-sum-exp the second tensor, of any shape, is filled with 0.
    """

    def out(
        *args: Any, out: Sequence[torch.Tensor], workspace: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, ...]:
        results = function(*args, **options)
        require(name, len(out) == 2, f"out must be two tensors, for the result and softmax_lse, got {len(out)}")
        for result, place in zip(results, out, strict=True):
            if not (place is out[1] and result.numel() == 1):
                expected, got = tuple(result.shape), tuple(place.shape)
                require(
                    name, expected == got, f"the tensors of out must have the results' shapes, {expected}, got {got}"
                )
        for result, place in zip(results, out, strict=True):
            place.copy_(result)
        return tuple(out)

    def get_max_workspace(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """An empty tensor: none is needed here."""
        return query.new_empty(0, dtype=torch.uint8)

    name = function.__name__
    function.out = out
    get_max_workspace.__name__ = get_max_workspace.__qualname__ = f"_{name}_get_max_workspace"
    return get_max_workspace


_npu_fused_infer_attention_score_get_max_workspace = _provide_out(npu_fused_infer_attention_score)
_npu_fused_infer_attention_score_v2_get_max_workspace = _provide_out(npu_fused_infer_attention_score_v2)
