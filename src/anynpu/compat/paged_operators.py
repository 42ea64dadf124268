# SPDX-License-Identifier: Apache-2.0
"""The operators with which serving engines attend to packed sequences and paged caches, with results written in place.

Lengths are tensors of the host, whose values are read: a graph does not capture these operators.
"""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.attention import Attention
from anynpu.compat.attention_arguments import Placement, attention_of
from anynpu.compat.attention_calls import Call, repeated
from anynpu.compat.attention_layouts import FLOATS, by_tokens, require_lengths, require_table
from anynpu.compat.attention_masks import Mask
from anynpu.compat.published import published, require_absent

_INDICES = (torch.int32, torch.int64)
_PAGED = (
    "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, int num_heads, float scale_value, "
    "Tensor block_table, Tensor context_lens, "
)


def host_lengths(op: str, name: str, lengths: torch.Tensor) -> list[int]:
    """The values of a 1-D tensor of lengths."""
    require_dtype(op, name, lengths, _INDICES)
    require(op, lengths.dim() == 1, f"{name} must have 1 axis, got {lengths.dim()}")
    values = lengths.tolist()
    require(op, min(values, default=0) >= 0, f"{name} must be at least 0, got {min(values, default=0)}")
    return values


def require_out(op: str, name: str, out: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """``out`` is what results of this shape are written to."""
    require_dtype(op, name, out, (dtype,))
    got = tuple(out.shape)
    require(op, got == shape, f"{name} must have shape {shape}, got {got}")


def hidden_places(op: str, mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """What a mask of at least ``rows`` and ``columns`` hides: where it is 1 or at most -10000."""
    require_dtype(op, "mask", mask, (torch.bool, torch.int8, torch.uint8, *FLOATS))
    shape = tuple(mask.shape)
    fits = len(shape) == 2 and shape[0] >= rows and shape[1] >= columns
    require(op, fits, f"mask must have shape ({rows}, {columns}) or more, got {shape}")
    mask = mask[:rows, :columns]
    hidden = (mask == 1) | (mask <= -1e4)
    if not bool((hidden | (mask == 0)).all()):
        raise NotImplementedError(f"{op}: mask must be 0, or 1 or at most -10000 where it hides: no biases")
    return hidden


def over_blocks(
    op: str,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    kv_heads: int,
    block_table: torch.Tensor,
    lengths: list[int],
    ends: list[int] | None = None,
) -> Attention:
    """Query [B, S, N, D], or with ``ends`` of its sequences [1, T, N, D], and caches (blocks, block size, N, D)."""
    require_dtype(op, "query", query, FLOATS)
    heads = query.shape[2]
    require(op, kv_heads > 0 and heads % kv_heads == 0, f"num_heads must be a multiple of {kv_heads}, got {heads}")
    require_table(op, block_table)
    blocks = []
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        require_dtype(op, name, cache, (query.dtype,))
        require(op, cache.dim() == 4, f"{name} must have 4 axes, FRACTAL_NZ is not implemented, got {cache.dim()}")
        blocks.append(by_tokens(op, name, cache, "BSND", kv_heads))
    most = block_table.shape[1] * key_cache.shape[1]
    lengths = require_lengths(op, "context_lens", lengths, block_table.shape[0], most)
    packed = ends is not None
    attention = Attention(query, *blocks, "TND" if packed else "BSND", packed, ends, lengths, block_table)
    attention.check(op)
    return attention


@repeated
def _attend_tokens(
    op: str,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    heads: tuple[int, int],
    scale: float,
    block_table: torch.Tensor,
    lengths: list[int],
    value_size: int | None = None,
) -> Call:
    """Of one token of query for each sequence, see ``_npu_paged_attention``; the first values of heads are values."""
    shape = tuple(query.shape)
    fits = len(shape) == 3 and shape[1] == heads[0]
    require(op, fits, f"query must have shape (B, {heads[0]}, D), got {shape}")
    values = value_cache[..., :value_size]
    attention = over_blocks(op, query.unsqueeze(1), key_cache, values, heads[1], block_table, lengths)
    return attention.call(op, Mask(None), scale)


def _write_tokens(op: str, out: torch.Tensor, results: tuple[torch.Tensor, torch.Tensor]) -> None:
    result = results[0].squeeze(1)
    require_out(op, "out", out, tuple(result.shape), result.dtype)
    out.copy_(result)


@published(f"_npu_paged_attention({_PAGED}Tensor(a!) out, Tensor? workspace=None) -> ()", "PagedAttention")
def _npu_paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
    workspace: torch.Tensor | None = None,
) -> None:
    """Writes ``softmax(scale_value * query @ key.T) @ value`` to ``out``: one token (N, D) of query for each sequence.

    Caches are (blocks, block size, num_kv_heads, D), ``block_table`` int32 (B, blocks of a sequence), ``context_lens``
    int32 (B,). Sequences of length 0 give 0. ``workspace`` has no effect.
    """
    op, heads = "_npu_paged_attention", (num_heads, num_kv_heads)
    lengths = host_lengths(op, "context_lens", context_lens)
    results = _attend_tokens(op, query, key_cache, value_cache, heads, scale_value, block_table, lengths)
    _write_tokens(op, out, results)


@published(f"_npu_paged_attention_get_workspace({_PAGED}Tensor out) -> Tensor", "PagedAttention")
def _npu_paged_attention_get_workspace(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """An empty tensor: ``_npu_paged_attention`` needs no workspace here."""
    return query.new_empty(0, dtype=torch.uint8)


@published(
    "_npu_flash_attention(Tensor query, Tensor key, Tensor value, Tensor mask, Tensor seq_len, float scale_value, "
    "int num_heads, int num_kv_heads, Tensor(a!) out) -> ()",
    "SelfAttention",
)
def _npu_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    seq_len: torch.Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: torch.Tensor,
) -> None:
    """``_npu_flash_attention_unpad`` with a mask (S, S), of whose leading part each sequence takes its length.

    A key is hidden where the mask is 1 or at most -10000.
    """
    op = "_npu_flash_attention"
    lengths = host_lengths(op, "seq_len", seq_len)
    require(op, len(lengths) > 0, "query must have at least one sequence")
    total, most = sum(lengths), max(lengths)
    for name, x in (("query", query), ("key", key), ("value", value)):
        tokens = x.shape[0] if x.dim() else 0
        require(op, total == tokens, f"seq_len must add up to T = {tokens}, the tokens of {name}, got {total}")
    hidden = hidden_places(op, mask, most, most)
    placement = Placement("BSND", ("BSND",), num_heads, num_kv_heads, {"of query": None, "of key": None})
    results = []
    for sequence in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
        attention = attention_of(op, *(x.unsqueeze(0) for x in sequence), placement)
        size = sequence[0].shape[0]
        results.append(attention.attend(op, Mask(hidden[:size, :size]), scale_value)[0].squeeze(0))
    result = torch.cat(results)
    require_out(op, "out", out, tuple(result.shape), query.dtype)
    out.copy_(result)


@published(
    "_npu_paged_attention_mla(Tensor query, Tensor key_cache, int num_kv_heads, int num_heads, float scale_value, "
    "Tensor block_table, Tensor context_lens, int mla_vheadsize, Tensor(a!) out, Tensor? workspace=None) -> ()",
    "PagedAttention",
)
def _npu_paged_attention_mla(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    mla_vheadsize: int,
    out: torch.Tensor,
    workspace: torch.Tensor | None = None,
) -> None:
    """``_npu_paged_attention`` over a cache of latent keys, the first ``mla_vheadsize`` values of which are values."""
    op, size = "_npu_paged_attention_mla", key_cache.shape[-1]
    fits = 1 <= mla_vheadsize <= size
    require(op, fits, f"mla_vheadsize must be in [1, {size}], the size of key_cache's heads, got {mla_vheadsize}")
    lengths, heads = host_lengths(op, "context_lens", context_lens), (num_heads, num_kv_heads)
    given = (query, key_cache, key_cache, heads, scale_value, block_table, lengths, mla_vheadsize)
    _write_tokens(op, out, _attend_tokens(op, *given))


@published(
    "_npu_flash_attention_unpad(Tensor query, Tensor key, Tensor value, Tensor seq_len, float scale_value, "
    "int num_heads, int num_kv_heads, Tensor(a!) out) -> ()",
    "SelfAttention",
)
def _npu_flash_attention_unpad(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_len: torch.Tensor,
    scale_value: float,
    num_heads: int,
    num_kv_heads: int,
    out: torch.Tensor,
) -> None:
    """Writes ``softmax(scale_value * query @ key.T) @ value`` of packed sequences (T, N, D) to ``out``, without a mask.

    ``seq_len`` int32 (B,) are the lengths of the sequences.
    """
    op = "_npu_flash_attention_unpad"
    lengths = host_lengths(op, "seq_len", seq_len)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    placement = Placement("TND", ("TND",), num_heads, num_kv_heads, {"seq_len": ends, "seq_len of key": ends})
    result, _ = attention_of(op, query, key, value, placement).attend(op, Mask(None), scale_value)
    require_out(op, "out", out, tuple(result.shape), query.dtype)
    out.copy_(result)


@published(
    "npu_paged_cache_load(Tensor key_cache, Tensor value_cache, Tensor block_table, Tensor context_lens, *, "
    "Tensor? seq_starts=None, Tensor(a!) key, Tensor(b!) value) -> ()",
    "PagedCacheLoad",
)
def npu_paged_cache_load(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    seq_starts: torch.Tensor | None = None,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Copies ``context_lens[i]`` tokens of each sequence, from ``seq_starts[i]`` on, from caches to key and value.

    Caches are (blocks, block size, N, D), key and value (tokens of all sequences, N, D), of any dtype.
    """
    op = "npu_paged_cache_load"
    lengths = host_lengths(op, "context_lens", context_lens)
    starts = [0] * len(lengths) if seq_starts is None else host_lengths(op, "seq_starts", seq_starts)
    require_dtype(op, "block_table", block_table, _INDICES)
    shape = tuple(block_table.shape)
    fits = len(shape) == 2 and shape[0] == len(lengths) == len(starts)
    require(
        op,
        fits,
        f"block_table, context_lens and seq_starts must have a row for each sequence, got {shape[:1]}, "
        f"({len(lengths)},) and ({len(starts)},)",
    )
    rows = []
    for name, cache, target in (("key_cache", key_cache, key), ("value_cache", value_cache, value)):
        require(op, cache.dim() == 4, f"{name} must have 4 axes, FRACTAL_NZ is not implemented, got {cache.dim()}")
        require_out(op, name.removesuffix("_cache"), target, (sum(lengths), *cache.shape[2:]), cache.dtype)
        places = [
            _places(op, cache, table, start, length)
            for table, start, length in zip(block_table.long(), starts, lengths, strict=True)
        ]
        flat = torch.cat(places) if places else block_table.new_empty(0, dtype=torch.long)
        rows.append(cache.flatten(0, 1)[flat])
    key.copy_(rows[0])
    value.copy_(rows[1])


@published(
    "npu_gather_pa_kv_cache(Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor seq_lens, "
    "Tensor(a!) key, Tensor(b!) value, *, Tensor? seq_offset=None, bool is_seq_lens_cumsum=False) -> ()",
    "aclnnGatherPaKvCache",
)
def npu_gather_pa_kv_cache(
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    seq_offset: torch.Tensor | None = None,
    is_seq_lens_cumsum: bool = False,
) -> None:
    """``npu_paged_cache_load`` with other names of its arguments."""
    require_absent(is_seq_lens_cumsum=is_seq_lens_cumsum or None)
    npu_paged_cache_load(key_cache, value_cache, block_tables, seq_lens, seq_starts=seq_offset, key=key, value=value)


def _places(op: str, cache: torch.Tensor, table: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """Where the tokens of one sequence lie in the cache with its first two axes joined."""
    blocks, size = cache.shape[:2]
    most = table.shape[0] * size
    require(op, start + length <= most, f"seq_starts + context_lens must be at most {most}, got {start + length}")
    tokens = torch.arange(start, start + length, device=cache.device)
    used = table[tokens // size]
    known = ((used >= 0) & (used < blocks)).all()
    torch._assert_async(known, f"{op}: the blocks of block_table that hold tokens must be blocks of the cache")
    return used * size + tokens % size
