# SPDX-License-Identifier: Apache-2.0
"""The published operators of sparse attention (DeepSeek-V3.2): an index finds the keys that a query attends to.

Lengths are tensors whose values are read: a graph does not capture these operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.attention_layouts import require_table
from anynpu.compat.gradients import with_gradients
from anynpu.compat.paged_operators import host_lengths
from anynpu.compat.published import Dtype, published, require_absent
from anynpu.ops.fused_attention import composite

_FLOATS = (torch.float16, torch.bfloat16)
_SCALES = (torch.float16, torch.float32)
_ALL = 2**63 - 1  # of pre_tokens and next_tokens
_CAUSAL = 3  # sparse_mode: query i of s1 sees s2 - s1 + i + 1 of the s2 keys
_LENGTHS = "Tensor? actual_seq_lengths_query=None, Tensor? actual_seq_lengths_{0}=None, "
_LAYOUTS = "str layout_query='BSND', str layout_{0}='BSND', "
_MODE = f"int sparse_mode=3, int pre_tokens={_ALL}, int next_tokens={_ALL}"
_INDEXER = f"*, {_LENGTHS}Tensor? block_table=None, {_LAYOUTS}int sparse_count=2048, ".format("key") + _MODE


@dataclass(frozen=True)
class _Sequences:
    """Where the tokens of each sequence are in (B, S, ..), (T, ..), or the blocks (P, places, ..) of a table."""

    layout: str
    counts: list[int]
    table: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        op: str,
        name: str,
        x: torch.Tensor,
        layout: str,
        lengths: torch.Tensor | None,
        block_table: torch.Tensor | None = None,
    ) -> _Sequences:
        layouts = ("BSND", "TND") if name == "query" else ("BSND", "TND", "PA_BSND")
        require(op, layout in layouts, f"layout_{name} must be {' or '.join(layouts)}, got {layout}")
        axes, paged = (3 if layout == "TND" else 4), layout == "PA_BSND"
        require(op, x.dim() == axes, f"{name} must have {axes} axes in layout {layout}, got {x.dim()}")
        require(op, paged == (block_table is not None), "block_table must be given with layout PA_BSND, and only there")
        argument = f"actual_seq_lengths_{name}"
        if lengths is None:
            require(op, layout == "BSND", f"{argument} must be given in layout {layout}")
            return cls(layout, [x.shape[1]] * x.shape[0])
        counts = host_lengths(op, argument, lengths)
        if layout == "TND":
            counts = [end - start for start, end in pairwise((0, *counts))]
            ordered = min(counts, default=0) >= 0 and sum(counts) <= x.shape[0]
            require(op, ordered, f"{argument} must be running sums up to {x.shape[0]} in layout TND, got {counts}")
            return cls(layout, counts)
        if paged:
            require_table(op, block_table)
        sequences, most = x.shape[:2] if not paged else (block_table.shape[0], block_table.shape[1] * x.shape[1])
        fits = len(counts) == sequences and max(counts, default=0) <= most
        require(op, fits, f"{argument} must be {sequences} lengths up to {most}, got {counts}")
        return cls(layout, counts, block_table)

    def tokens(self, op: str, x: torch.Tensor, sequence: int) -> torch.Tensor:
        """(tokens, ..) of one of them; a view but for blocks."""
        count = self.counts[sequence]
        if self.layout == "TND":
            start = sum(self.counts[:sequence])
            return x[start : start + count]
        if self.table is None:
            return x[sequence, :count]
        blocks = self.table[sequence, : -(-count // x.shape[1])].long()
        known = bool(((blocks >= 0) & (blocks < x.shape[0])).all())
        require(op, known, f"block_table must be in [0, {x.shape[0] - 1}] where keys are used, got {blocks.tolist()}")
        return x[blocks].flatten(0, 1)[:count]


@dataclass(frozen=True)
class _Call:
    """What the operators have in common: queries and keys, with one head of keys."""

    op: str
    queries: _Sequences
    keys: _Sequences
    causal: bool

    @classmethod
    def of(
        cls,
        op: str,
        query: torch.Tensor,
        key: torch.Tensor,
        query_layout: tuple[str, torch.Tensor | None],
        key_layout: tuple[str, str, torch.Tensor | None, torch.Tensor | None],
        sparse_mode: int,
        pre_tokens: int,
        next_tokens: int,
    ) -> _Call:
        name, *of_keys = key_layout
        queries = _Sequences.of(op, "query", query, *query_layout)
        keys = _Sequences.of(op, name, key, *of_keys)
        counts = len(queries.counts), len(keys.counts)
        require(op, counts[0] == counts[1], f"query has {counts[0]} sequences, {name} {counts[1]}")
        require(op, sparse_mode in (0, _CAUSAL), f"sparse_mode must be 0 or 3, got {sparse_mode}")
        bounds = {"pre_tokens": pre_tokens, "next_tokens": next_tokens}
        require_absent(**{bound: None if value == _ALL else value for bound, value in bounds.items()})
        if key.shape[-2] != 1:
            raise NotImplementedError(f"{op}: key must have one head, others are not implemented, got {key.shape[-2]}")
        return cls(op, queries, keys, sparse_mode == _CAUSAL)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.queries.counts)))

    def of_queries(self, x: torch.Tensor, sequence: int) -> torch.Tensor:
        return self.queries.tokens(self.op, x, sequence)

    def of_keys(self, x: torch.Tensor, sequence: int) -> torch.Tensor:
        return self.keys.tokens(self.op, x, sequence)

    def seen(self, sequence: int, device: torch.device) -> torch.Tensor:
        """How many keys each query of a sequence may see, (s1, 1)."""
        rows, columns = self.queries.counts[sequence], self.keys.counts[sequence]
        behind = torch.arange(rows, device=device).flip(0) if self.causal else torch.zeros(rows, device=device).long()
        return columns - behind[:, None]


def _require_shape(op: str, name: str, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    got = tuple(x.shape)
    require(op, got == shape, f"{name} must have shape {shape}, got {got}")


def _best_keys(
    query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor, seen: torch.Tensor, count: int
) -> torch.Tensor:
    """int32 (s1, count): the keys (s2, D) with the greatest ``sum(weights * relu(query @ key.T))`` over the heads.

    The greatest first, -1 behind the last; query (s1, N, D), weights (s1, N).
    """
    scores = query.new_zeros(query.shape[0], key.shape[0])
    for head in range(query.shape[1]):  # all at once would take N times the memory
        scores += weights[:, head, None] * (query[:, head] @ key.T).relu()
    scores.masked_fill_(torch.arange(key.shape[0], device=key.device) >= seen, -torch.inf)
    values, best = scores.topk(min(count, key.shape[0]))
    best = best.masked_fill(values == -torch.inf, -1).int()
    return torch.nn.functional.pad(best, (0, count - best.shape[1]), value=-1)


def _index(
    call: _Call,
    query: tuple[torch.Tensor, ...],
    key: tuple[torch.Tensor, ...],
    weights: torch.Tensor,
    sparse_count: int,
) -> torch.Tensor:
    """The keys of all queries; ``query`` and ``key`` are values, and behind them their scales."""
    op, heads = call.op, tuple(query[0].shape[:-1])
    _require_shape(op, "weights", weights, heads)
    sizes = query[0].shape[-1], key[0].shape[-1]
    require(op, sizes[0] == sizes[1], f"the heads of key must be as long as query's, {sizes[0]}, got {sizes[1]}")
    require(op, sparse_count > 0, f"sparse_count should be greater than 0, but got {sparse_count}")
    best = torch.full((*heads[:-1], 1, sparse_count), -1, dtype=torch.int32, device=weights.device)
    for sequence in call:
        rows = [call.of_queries(part, sequence).float() for part in (*query, weights)]
        columns = [call.of_keys(part, sequence).float() for part in key]
        scaled_query = rows[0] if len(query) == 1 else rows[0] * rows[1].unsqueeze(-1)
        scaled_key = columns[0] if len(key) == 1 else columns[0] * columns[1].unsqueeze(-1)
        found = _best_keys(
            scaled_query, scaled_key.squeeze(1), rows[-1], call.seen(sequence, weights.device), sparse_count
        )
        call.of_queries(best, sequence).copy_(found.unsqueeze(1))
    return best


@published(
    f"npu_lightning_indexer(Tensor query, Tensor key, Tensor weights, {_INDEXER}, bool return_value=False) "
    "-> (Tensor, Tensor)",
    "aclnnLightningIndexer",
)
def npu_lightning_indexer(
    query: torch.Tensor,
    key: torch.Tensor,
    weights: torch.Tensor,
    *,
    actual_seq_lengths_query: torch.Tensor | None = None,
    actual_seq_lengths_key: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = _CAUSAL,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    return_value: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 places of the ``sparse_count`` keys with the greatest ``sum(weights * relu(query @ key.T))`` over heads.

    The greatest first, -1 behind the last. Query is (B, S, N, D) or (T, N, D), weights lack D, key has one head. The
    second result is empty.
    """
    op = "npu_lightning_indexer"
    require_absent(return_value=return_value or None)
    for name, x in (("query", query), ("key", key), ("weights", weights)):
        require_dtype(op, name, x, _FLOATS)
    call = _Call.of(
        op, query, key, (layout_query, actual_seq_lengths_query),
        ("key", layout_key, actual_seq_lengths_key, block_table), sparse_mode, pre_tokens, next_tokens,
    )  # fmt: skip
    return _index(call, (query,), (key,), weights, sparse_count), query.new_empty(0)


@published(
    "npu_quant_lightning_indexer(Tensor query, Tensor key, Tensor weights, Tensor query_dequant_scale, "
    f"Tensor key_dequant_scale, int query_quant_mode, int key_quant_mode, {_INDEXER}, int? query_dtype=None, "
    "int? key_dtype=None) -> Tensor",
    "aclnnQuantLightningIndexer",
)
def npu_quant_lightning_indexer(
    query: torch.Tensor,
    key: torch.Tensor,
    weights: torch.Tensor,
    query_dequant_scale: torch.Tensor,
    key_dequant_scale: torch.Tensor,
    query_quant_mode: int,
    key_quant_mode: int,
    *,
    actual_seq_lengths_query: torch.Tensor | None = None,
    actual_seq_lengths_key: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    layout_query: str = "BSND",
    layout_key: str = "BSND",
    sparse_count: int = 2048,
    sparse_mode: int = _CAUSAL,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    query_dtype: Dtype | None = None,
    key_dtype: Dtype | None = None,
) -> torch.Tensor:
    """``npu_lightning_indexer`` of int8 query and key, with a scale for each of their tokens and heads."""
    op = "npu_quant_lightning_indexer"
    modes = {"query_quant_mode": query_quant_mode, "key_quant_mode": key_quant_mode}
    require_absent(query_dtype=query_dtype, key_dtype=key_dtype, **{name: mode or None for name, mode in modes.items()})
    for name, x, scale in (("query", query, query_dequant_scale), ("key", key, key_dequant_scale)):
        require_dtype(op, name, x, (torch.int8,))
        require_dtype(op, f"{name}_dequant_scale", scale, _SCALES)
        _require_shape(op, f"{name}_dequant_scale", scale, tuple(x.shape[:-1]))
    require_dtype(op, "weights", weights, _FLOATS)
    call = _Call.of(
        op, query, key, (layout_query, actual_seq_lengths_query),
        ("key", layout_key, actual_seq_lengths_key, block_table), sparse_mode, pre_tokens, next_tokens,
    )  # fmt: skip
    return _index(call, (query, query_dequant_scale), (key, key_dequant_scale), weights, sparse_count)


def _hidden(call: _Call, sequence: int, indices: torch.Tensor, block: int) -> torch.Tensor:
    """The mask (s1, s2 or more) of all keys but those of ``indices`` (s1, 1, blocks) that a query may see."""
    indices, columns = call.of_queries(indices, sequence).squeeze(1).long(), call.keys.counts[sequence]
    wanted = (indices[..., None] * block + torch.arange(block, device=indices.device)).flatten(1)
    wanted = wanted.where((wanted >= 0) & (wanted < call.seen(sequence, wanted.device)), columns)
    hidden = torch.ones(len(wanted), columns + 1, dtype=torch.bool, device=wanted.device)
    return hidden.scatter_(1, wanted, False)


def _check_indices(op: str, query: torch.Tensor, indices: torch.Tensor, block: int) -> None:
    require_dtype(op, "sparse_indices", indices, (torch.int32,))
    _require_shape(op, "sparse_indices", indices, (*query.shape[:-2], 1, indices.shape[-1]))
    require(op, block > 0, f"sparse_block_size must be at least 1, got {block}")


@published(
    "npu_sparse_flash_attention(Tensor query, Tensor key, Tensor value, Tensor sparse_indices, float scale_value, *, "
    "Tensor? block_table=None, " + _LENGTHS.format("kv") + "Tensor? query_rope=None, Tensor? key_rope=None, "
    "int sparse_block_size=1, " + _LAYOUTS.format("kv") + f"{_MODE}, int attention_mode=0, "
    "bool return_softmax_lse=False, Tensor? sinks=None) -> (Tensor, Tensor, Tensor)",
    "aclnnSparseFlashAttention",
)
def npu_sparse_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sparse_indices: torch.Tensor,
    scale_value: float,
    *,
    block_table: torch.Tensor | None = None,
    actual_seq_lengths_query: torch.Tensor | None = None,
    actual_seq_lengths_kv: torch.Tensor | None = None,
    query_rope: torch.Tensor | None = None,
    key_rope: torch.Tensor | None = None,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = _CAUSAL,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    attention_mode: int = 0,
    return_softmax_lse: bool = False,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``softmax(scale_value * query @ key.T) @ value`` over those keys of ``sparse_indices`` that a query may see.

    ``sparse_indices`` (.., 1, K) are places of keys, or of ``sparse_block_size`` keys; negative ones are left out, one
    that comes twice counts once. The other results are empty.
    """
    op = "npu_sparse_flash_attention"
    require_absent(return_softmax_lse=return_softmax_lse or None, sinks=sinks)
    require(op, attention_mode in (0, 2), f"attention_mode must be 0 or 2, got {attention_mode}")
    require(op, (query_rope is None) == (key_rope is None), "query_rope and key_rope must be given together")
    require_dtype(op, "query", query, _FLOATS)
    tensors = {"key": key, "value": value, "query_rope": query_rope, "key_rope": key_rope}
    for name, x in tensors.items():
        if x is not None:
            require_dtype(op, name, x, (query.dtype,))
            rest = (query if name.startswith("query") else key).shape[:-1]
            size = x.shape[-1] if name.endswith("rope") else query.shape[-1]
            _require_shape(op, name, x, (*rest, size))
    _check_indices(op, query, sparse_indices, sparse_block_size)
    call = _Call.of(
        op, query, key, (layout_query, actual_seq_lengths_query), ("kv", layout_kv, actual_seq_lengths_kv, block_table),
        sparse_mode, pre_tokens, next_tokens,
    )  # fmt: skip
    out = torch.zeros_like(query)
    for sequence in call:
        ropes = {}
        if query_rope is not None:
            ropes["q_rope"] = call.of_queries(query_rope, sequence)[None]
            ropes["k_rope"] = call.of_keys(key_rope, sequence)[None]
        rows = call.of_queries(query, sequence)[None]
        columns = [call.of_keys(x, sequence)[None] for x in (key, value)]
        mask = _hidden(call, sequence, sparse_indices, sparse_block_size)[None, None]
        result = with_gradients(
            anynpu.fused_attention, composite.fused_attention, rows, *columns, **ropes, mask=mask,
            softmax_scale=scale_value,
        )[0]  # fmt: skip
        call.of_queries(out, sequence).copy_(result[0])
    nothing = query.new_empty(0, dtype=torch.float32)
    return out, nothing, nothing.clone()


@published(
    "npu_kv_quant_sparse_flash_attention(Tensor query, Tensor key, Tensor value, Tensor sparse_indices, "
    "float scale_value, int key_quant_mode, int value_quant_mode, *, Tensor? key_dequant_scale=None, "
    "Tensor? value_dequant_scale=None, Tensor? block_table=None, " + _LENGTHS.format("kv") + "int sparse_block_size=1, "
    + _LAYOUTS.format("kv") + f"{_MODE}, int attention_mode=0, int quant_scale_repo_mode=1, int tile_size=128, "
    "int rope_head_dim=64, int? key_dtype=None, int? value_dtype=None) -> Tensor",
    "aclnnKvQuantSparseFlashAttention",
)  # fmt: skip
def npu_kv_quant_sparse_flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sparse_indices: torch.Tensor,
    scale_value: float,
    key_quant_mode: int,
    value_quant_mode: int,
    *,
    key_dequant_scale: torch.Tensor | None = None,
    value_dequant_scale: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    actual_seq_lengths_query: torch.Tensor | None = None,
    actual_seq_lengths_kv: torch.Tensor | None = None,
    sparse_block_size: int = 1,
    layout_query: str = "BSND",
    layout_kv: str = "BSND",
    sparse_mode: int = _CAUSAL,
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    attention_mode: int = 0,
    quant_scale_repo_mode: int = 1,
    tile_size: int = 128,
    rope_head_dim: int = 64,
    key_dtype: Dtype | None = None,
    value_dtype: Dtype | None = None,
) -> torch.Tensor:
    """``npu_sparse_flash_attention`` of rows (.., D + R) of query over latent keys, whose D codes are the values too.

    A row of ``key``, int8, is D codes, R values in the dtype of query, and a float32 scale for each ``tile_size``
    codes. ``value`` is not read. In float32, rounded once.
    """
    op = "npu_kv_quant_sparse_flash_attention"
    require_absent(
        key_dequant_scale=key_dequant_scale, value_dequant_scale=value_dequant_scale, key_dtype=key_dtype,
        value_dtype=value_dtype,
    )  # fmt: skip
    for name, got, known in (
        ("key_quant_mode", key_quant_mode, 2),
        ("value_quant_mode", value_quant_mode, 2),
        ("attention_mode", attention_mode, 2),
        ("quant_scale_repo_mode", quant_scale_repo_mode, 1),
    ):
        require(op, got == known, f"{name} must be {known}, got {got}")
    require_dtype(op, "query", query, _FLOATS)
    require_dtype(op, "key", key, (torch.int8,))
    latent = query.shape[-1] - rope_head_dim
    whole = rope_head_dim >= 0 and latent > 0 and tile_size > 0 and latent % tile_size == 0
    require(op, whole, f"the heads of query but for rope_head_dim must be of whole tiles of {tile_size}, got {latent}")
    sizes = (latent, rope_head_dim * query.element_size(), latent // tile_size * 4)
    require(op, key.shape[-1] == sum(sizes), f"rows of key must have {sum(sizes)} bytes, got {key.shape[-1]}")
    _check_indices(op, query, sparse_indices, sparse_block_size)
    call = _Call.of(
        op, query, key, (layout_query, actual_seq_lengths_query), ("kv", layout_kv, actual_seq_lengths_kv, block_table),
        sparse_mode, pre_tokens, next_tokens,
    )  # fmt: skip
    out = query.new_zeros(*query.shape[:-1], latent)
    for sequence in call:
        codes, rope, scales = call.of_keys(key, sequence).split(sizes, -1)
        scales = scales.contiguous().view(torch.float32).repeat_interleave(tile_size, -1)
        values = codes.float() * scales
        keys = torch.cat([values, rope.contiguous().view(query.dtype).float()], -1)
        rows = call.of_queries(query, sequence).float()[None]
        mask = _hidden(call, sequence, sparse_indices, sparse_block_size)[None, None]
        result = anynpu.fused_attention(rows, keys[None], values[None], mask=mask, softmax_scale=scale_value)[0]
        call.of_queries(out, sequence).copy_(result[0])
    return out
