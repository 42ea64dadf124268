# SPDX-License-Identifier: Apache-2.0
"""The published float attention operators, over torch's scaled_dot_product_attention with an explicit mask.

Each sequence of a batch is attended to on its own, in float32, and its result rounded once: neither padding nor what a
paged cache holds behind a sequence has a say in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu.compat import antiquant as codes_of
from anynpu.compat.antiquant import AntiQuant
from anynpu.compat.published import published

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MASKS = (torch.bool, torch.int8, torch.uint8)
_ALL = 2147483647  # tokens: no limit
_COMPRESSED = 2048  # rows and columns of the mask that stands for a causal or banded one
_CAUSAL_FROM_TOP_LEFT, _CAUSAL, _BAND = 2, 3, 4  # of sparse_mode

Lengths = Sequence[int] | torch.Tensor | None


def _refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, int) and value == 0):
            raise NotImplementedError(
                f"{name} is not supported by anynpu, supported: float query, key and value of one dtype, atten_mask, "
                "lengths of sequences, paged caches, query_rope and key_rope, int8 key and value"
            )


@dataclass(frozen=True)
class _Mask:
    """Which keys each query sees: ``tensor`` hides some, ``sparse_mode`` with its tokens before and after others."""

    tensor: torch.Tensor | None
    sparse_mode: int = 0
    before: int = _ALL
    after: int = _ALL

    def check(self, op: str) -> None:
        mode, mask = self.sparse_mode, self.tensor
        if mode not in range(5):
            raise NotImplementedError(f"{op}: sparse_mode must be 0, 1, 2, 3 or 4, got {mode}")
        require(op, mode == 0 or mask is not None, f"atten_mask must be given for sparse_mode {mode}")
        if mask is None:
            return
        require_dtype(op, "atten_mask", mask, _MASKS)
        if mode >= _CAUSAL_FROM_TOP_LEFT:
            shape = tuple(mask.shape)
            fits = 2 <= len(shape) <= 4 and shape == (*[1] * (len(shape) - 2), _COMPRESSED, _COMPRESSED)
            sides = f"({_COMPRESSED}, {_COMPRESSED}), or with leading axes of 1,"
            require(op, fits, f"atten_mask must have shape {sides} for sparse_mode {mode}, got {shape}")

    def of_sequences(self, op: str, operands: _Operands, one_row: bool = False) -> list[torch.Tensor | None]:
        """The hidden places of each sequence, broadcast over its heads; ``one_row``: queries have one token."""
        self.check(op)
        sizes = operands.sizes()
        if self.tensor is None:
            return [None] * len(sizes)
        if self.sparse_mode >= _CAUSAL_FROM_TOP_LEFT:
            return [self._outside(*size) for size in sizes]
        if operands.padded is None:
            raise NotImplementedError(
                f"{op}: atten_mask with sparse_mode {self.sparse_mode} is not supported by anynpu in layout TND, "
                "supported: sparse_mode 2, 3 and 4"
            )
        masks = _masks_of_sequences(op, self.tensor, operands.query[0].shape[0], sizes, one_row)
        if self.sparse_mode == 0 and (self.before, self.after) != (_ALL, _ALL):
            return [mask | self._outside(*size) for mask, size in zip(masks, sizes, strict=True)]
        return masks

    def _outside(self, rows: int, columns: int) -> torch.Tensor:
        """The places outside the causal triangle or the band."""
        device = self.tensor.device
        row, column = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
        if self.sparse_mode in (_CAUSAL, _BAND):  # the last query sees the last key
            row = row + (columns - rows)
        if self.sparse_mode in (_CAUSAL_FROM_TOP_LEFT, _CAUSAL):
            return column > row
        return (column < row - self.before) | (column > row + self.after)


def _masks_of_sequences(
    op: str, mask: torch.Tensor, heads: int, sizes: Sequence[tuple[int, int]], one_row: bool
) -> list[torch.Tensor]:
    """(S, Skv), (B or 1, S, Skv) or (B or 1, N or 1, S, Skv), at least as large as every sequence; bool.

    ``one_row``: the queries have one token, and an axis S may be left out.
    """
    batch, shape = len(sizes), tuple(mask.shape)
    rows, columns = (max(axis) for axis in zip(*sizes, strict=True))
    require(op, 2 <= len(shape) <= 4, f"atten_mask must have 2 to 4 axes, got shape {shape}")
    if len(shape) == 2:
        mask = mask[:, None] if one_row else mask[None]
    if mask.dim() == 3:
        mask = mask[:, None]
    fits = (
        mask.shape[0] in (1, batch)
        and mask.shape[1] in (1, heads)
        and mask.shape[2] >= rows
        and mask.shape[3] >= columns
    )
    expected = f"({batch}, {columns}) or ({batch}, 1, {columns})" if one_row else f"({rows}, {columns})"
    require(op, fits, f"atten_mask must have shape {expected}, a leading axis of 1 or {batch}, or more, got {shape}")
    hidden = mask.bool().expand(batch, -1, -1, -1)
    return [one[:, :row, :column] for one, (row, column) in zip(hidden, sizes, strict=True)]


def _by_head(op: str, name: str, x: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    """(B, N, S, D), or (N, T, D), a view."""
    shape = tuple(x.shape)
    require(op, len(shape) == len(layout), f"Layout {layout}, {name} must have {len(layout)} axes, got shape {shape}")
    if "H" in layout:
        whole = shape[-1] % heads == 0
        require(op, whole, f"the last axis of {name} must be a multiple of its {heads} heads, got shape {shape}")
        x, layout = x.unflatten(-1, (heads, -1)), layout.replace("H", "ND")
    axis = layout.index("N")
    require(op, x.shape[axis] == heads, f"axis {axis} of {name} must be its {heads} heads, got shape {shape}")
    return x.permute([layout.index(axis) for axis in ("NTD" if "T" in layout else "BNSD")])


def _laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """(B, N, S, D), or (N, T, D), in ``layout``."""
    names = "NTD" if "T" in layout else "BNSD"
    x = x.permute([names.index(axis) for axis in layout.replace("H", "ND")]).contiguous()
    return x.flatten(-2) if "H" in layout else x


def _listed(lengths: Lengths) -> Sequence[int] | None:
    """Lengths in a 1-D tensor as a list, as torch takes such a tensor for a list of ints."""
    whole = isinstance(lengths, torch.Tensor) and lengths.dim() == 1 and not lengths.is_floating_point()
    return lengths.tolist() if whole else lengths


def _require_lengths(op: str, name: str, lengths: Sequence[int] | None, batch: int, most: int) -> Sequence[int]:
    """The length of each of ``batch`` sequences: a list of one serves all."""
    if lengths is None:
        return [most] * batch
    if not isinstance(lengths, Sequence):
        raise TypeError(f"{op}: {name} must be a list of ints, got {type(lengths).__name__}")
    require(op, len(lengths) in (1, batch), f"{name} must have 1 or {batch} entries, got {len(lengths)}")
    for length in lengths:
        require(op, 0 <= length <= most, f"{name} must be in [0, {most}], got {length}")
    return list(lengths) * batch if len(lengths) == 1 else lengths


def _sequences(op: str, name: str, x: torch.Tensor, lengths: Lengths) -> list[torch.Tensor]:
    """The sequences (N, S, D) in (B, N, S, D), or in (N, T, D) with cumulative ``lengths``."""
    if x.dim() == 4:
        lengths = _require_lengths(op, name, lengths, x.shape[0], x.shape[2])
        return [row[:, :length] for row, length in zip(x, lengths, strict=True)]
    total = x.shape[1]
    if not isinstance(lengths, Sequence):
        raise TypeError(f"{op}: {name} must be a list of ints in layout TND, got {type(lengths).__name__}")
    ends = (0, *lengths)
    ordered = all(start <= end for start, end in pairwise(ends)) and ends[-1] == total
    require(op, ordered, f"{name} must be cumulative and end with T = {total} in layout TND, got {list(lengths)}")
    return [x[:, start:end] for start, end in pairwise(ends)]


def paged_sequences(
    op: str,
    name: str,
    cache: torch.Tensor,
    heads: int,
    table: torch.Tensor,
    block_size: int,
    lengths_name: str,
    lengths: Lengths,
) -> list[torch.Tensor]:
    """The sequences (N, S, D) in blocks (blocks, block_size, N * D), (blocks, N, block_size, D), or 5-D FRACTAL_NZ."""
    require_dtype(op, "block_table", table, (torch.int32,))
    shape = tuple(table.shape)
    require(op, len(shape) == 2, f"block_table must have 2 axes, got shape {shape}")
    if cache.dim() == 5:  # FRACTAL_NZ spelled out: (blocks, N, D / C0, block_size, C0)
        cache = cache.transpose(2, 3).flatten(3)
    shape = tuple(cache.shape)
    require(
        op, len(shape) in (3, 4), f"when Page Attention enabled, {name}'s dim should be 3/4/5, but got {len(shape)}"
    )
    blocks = _by_head(op, name, cache, "BSH" if len(shape) == 3 else "BNSD", heads)
    fits = block_size >= 1 and blocks.shape[2] == block_size
    require(op, fits, f"block_size must be that of {name}, {blocks.shape[2]}, got {block_size}")
    if lengths is None:
        raise TypeError(f"{op}: {lengths_name} must be given for a block_table")
    lengths = _require_lengths(op, lengths_name, lengths, table.shape[0], table.shape[1] * block_size)
    sequences = []
    for row, length in zip(table, lengths, strict=True):
        used = row[: (length + block_size - 1) // block_size].long()
        known = ((used >= 0) & (used < blocks.shape[0])).all()
        torch._assert_async(known, f"{op}: the blocks of block_table that hold tokens must be blocks of {name}")
        sequences.append(blocks[used].transpose(0, 1).flatten(1, 2)[:, :length])
    return sequences


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor | None,
    scale: float,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """One sequence; 0 where everything is hidden. ``sink``: of each head, the score of a key whose value is 0."""
    if key.shape[1] == 0:
        return query.new_zeros(*query.shape[:2], value.shape[-1])
    operands = [operand.float().unsqueeze(0) for operand in (query, key, value)]
    visible = None if hidden is None else ~hidden
    result = torch.nn.functional.scaled_dot_product_attention(
        *operands, attn_mask=visible, scale=scale, enable_gqa=query.shape[0] != key.shape[0]
    ).squeeze(0)
    if hidden is not None:
        result = result.masked_fill(hidden.all(-1, keepdim=True), 0)
    if sink is not None:
        result = result * torch.sigmoid(_log_sum_exp(query, key, hidden, scale) - sink.float()[:, None, None])
    return result.to(query.dtype)


def _log_sum_exp(query: torch.Tensor, key: torch.Tensor, hidden: torch.Tensor | None, scale: float) -> torch.Tensor:
    """Of the scores of one sequence, (N, S, 1); -inf where everything is hidden."""
    grouped = query.float().unflatten(0, (key.shape[0], -1))
    scores = (grouped @ key.float().mT.unsqueeze(1)).flatten(0, 1) * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.logsumexp(-1, keepdim=True)


@dataclass(frozen=True)
class _Operands:
    """The sequences of query, key and value, and what puts results together again."""

    query: list[torch.Tensor]
    key: list[torch.Tensor]
    value: list[torch.Tensor]
    padded: int | None  # S of a batch; None: TND
    layout: str  # of the result

    def check(self, op: str) -> None:
        require(op, len(self.query) > 0, "query must have at least one sequence")
        require(op, len(self.query) == len(self.key), f"query has {len(self.query)} sequences, key {len(self.key)}")
        for query, key, value in zip(self.query, self.key, self.value, strict=True):
            sizes = query.shape[-1], key.shape[-1]
            require(
                op, sizes[0] == sizes[1], f"the heads of key must be as long as query's, {sizes[0]}, got {sizes[1]}"
            )
            sizes = key.shape[1], value.shape[1]
            require(op, sizes[0] == sizes[1], f"value must have as many tokens as key, {sizes[0]}, got {sizes[1]}")

    def with_rope(self, op: str, query: list[torch.Tensor], key: list[torch.Tensor]) -> _Operands:
        """The same with the rotated parts of the heads of query and key behind the others."""
        longer = []
        for name, parts, ropes in (("query", self.query, query), ("key", self.key, key)):
            for part, rope in zip(parts, ropes, strict=True):
                require_dtype(op, f"{name}_rope", rope, (part.dtype,))
                expected, got = tuple(part.shape[:2]), tuple(rope.shape[:2])
                require(op, expected == got, f"{name}_rope must have the heads and tokens {expected}, got {got}")
            longer.append([torch.cat(both, -1) for both in zip(parts, ropes, strict=True)])
        operands = replace(self, query=longer[0], key=longer[1])
        operands.check(op)
        return operands

    def sizes(self) -> list[tuple[int, int]]:
        return [(query.shape[1], key.shape[1]) for query, key in zip(self.query, self.key, strict=True)]

    def attend(self, masks: list[torch.Tensor | None], scale: float, sink: torch.Tensor | None = None) -> torch.Tensor:
        operands = zip(self.query, self.key, self.value, masks, strict=True)
        return _laid_out(self._joined([_attend(*one, scale, sink) for one in operands]), self.layout)

    def log_sum_exp(self, masks: list[torch.Tensor | None], scale: float) -> torch.Tensor:
        """(B, N, S, 1), or (T, N, 1)."""
        operands = zip(self.query, self.key, masks, strict=True)
        joined = self._joined([_log_sum_exp(*one, scale) for one in operands])
        return joined if self.padded is not None else joined.transpose(0, 1).contiguous()

    def _joined(self, results: list[torch.Tensor]) -> torch.Tensor:
        if self.padded is None:
            return torch.cat(results, 1)
        return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, self.padded - x.shape[1])) for x in results])


def operands_of(
    op: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    layouts: Sequence[str],
    heads: int,
    kv_heads: int,
    lengths: dict[str, Lengths],
    block_table: torch.Tensor | None = None,
    block_size: int = 0,
    antiquant: tuple[AntiQuant | None, AntiQuant | None] = (None, None),
) -> _Operands:
    """``lengths`` of the queries and of the keys, by the names of their arguments; ``kv_heads`` 0: ``heads``."""
    require(op, layout in layouts, f"Layout {layout} is not supported! input_layout must be {' or '.join(layouts)}")
    require(op, heads > 0, f"numHeads should be greater than 0, but got {heads}")
    kv_heads = kv_heads or heads
    whole = kv_heads > 0 and heads % kv_heads == 0
    require(op, whole, f"num_heads must be a multiple of num_key_value_heads, got {heads} and {kv_heads}")
    require_dtype(op, "query", query, _FLOATS)
    for name, tensor, codes in zip(("key", "value"), (key, value), antiquant, strict=True):
        if codes is None:
            require_dtype(op, name, tensor, (query.dtype,))
        else:
            codes.check(op, tensor)
    source, _, target = layout.partition("_")
    (q_name, q_lengths), (kv_name, kv_lengths) = ((name, _listed(value)) for name, value in lengths.items())
    queries = _sequences(op, q_name, _by_head(op, "query", query, source, heads), q_lengths)
    paged = None
    if block_table is None:
        keys, values = (
            _sequences(op, kv_name, _by_head(op, name, tensor, source, kv_heads), kv_lengths)
            for name, tensor in (("key", key), ("value", value))
        )
    else:

        def paged(name: str, cache: torch.Tensor, heads: int) -> list[torch.Tensor]:
            return paged_sequences(op, name, cache, heads, block_table, block_size, kv_name, kv_lengths)

        keys, values = (paged(name, cache, kv_heads) for name, cache in (("key", key), ("value", value)))
    keys, values = (
        tensors if codes is None else codes.floats(op, tensors, paged)
        for tensors, codes in zip((keys, values), antiquant, strict=True)
    )
    padded = None if source == "TND" else query.shape[source.index("S")]
    operands = _Operands(queries, keys, values, padded, target or source)
    operands.check(op)
    return operands


def attend_to(
    op: str,
    query: torch.Tensor,
    heads: int,
    kv_heads: int,
    key: list[torch.Tensor],
    value: list[torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """One token (N, D) of query for each of the sequences (N, S, D) of key and value; (B, N, D)."""
    require_dtype(op, "query", query, _FLOATS)
    shape = tuple(query.shape)
    require(op, len(shape) == 3 and shape[1] == heads, f"query must have shape (B, {heads}, D), got {shape}")
    require(op, kv_heads > 0 and heads % kv_heads == 0, f"num_heads must be a multiple of {kv_heads}, got {heads}")
    operands = _Operands([one.unsqueeze(1) for one in query], key, value, 1, "BSND")
    operands.check(op)
    return operands.attend([None] * len(key), scale).squeeze(1)


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
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    input_layout: str = "BSH",
    num_key_value_heads: int = 0,
    sparse_mode: int = 0,
    inner_precise: int = 0,
    block_size: int = 0,
    antiquant_mode: int = 0,
    key_antiquant_mode: int = 0,
    value_antiquant_mode: int = 0,
    softmax_lse_flag: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``softmax(scale * query @ key.T, masked) @ value``, and the log-sum-exp of its scores, a 0 unless asked for.

    ``query_rope`` and ``key_rope`` are further values of the heads of query and key, behind those, in their layout.

    See docs/torch_npu.md for layouts, masks and lengths. Queries beyond their length, and those that see no key, give
    0, their log-sum-exp is 0 and -inf.
    """
    op = "npu_fused_infer_attention_score"
    _refuse(
        pse_shift=pse_shift, dequant_scale1=dequant_scale1, quant_scale1=quant_scale1, dequant_scale2=dequant_scale2,
        quant_scale2=quant_scale2, quant_offset2=quant_offset2, query_padding_size=query_padding_size,
        kv_padding_size=kv_padding_size, key_shared_prefix=key_shared_prefix, value_shared_prefix=value_shared_prefix,
        actual_shared_prefix_len=actual_shared_prefix_len, key_rope_antiquant_scale=key_rope_antiquant_scale,
    )  # fmt: skip
    separate = {
        "key_antiquant_scale": key_antiquant_scale,
        "key_antiquant_offset": key_antiquant_offset,
        "value_antiquant_scale": value_antiquant_scale,
        "value_antiquant_offset": value_antiquant_offset,
    }
    antiquant = codes_of.separate(op, separate, (key_antiquant_mode, value_antiquant_mode))
    if antiquant[0] is None:
        stacked = {"antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset}
        antiquant = codes_of.stacked(op, stacked, antiquant_mode)
    lengths = {"actual_seq_lengths": actual_seq_lengths, "actual_seq_lengths_kv": actual_seq_lengths_kv}
    mask = _Mask(atten_mask, sparse_mode, pre_tokens, next_tokens)
    return _fused_infer(
        op, query, key, value, input_layout, num_heads, num_key_value_heads, lengths, block_table, block_size, mask,
        scale, softmax_lse_flag, query_rope, key_rope, antiquant,
    )  # fmt: skip


def _fused_infer(
    op: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: str,
    heads: int,
    kv_heads: int,
    lengths: dict[str, Lengths],
    block_table: torch.Tensor | None,
    block_size: int,
    mask: _Mask,
    scale: float,
    with_lse: bool,
    query_rope: torch.Tensor | None,
    key_rope: torch.Tensor | None,
    antiquant: tuple[AntiQuant | None, AntiQuant | None],
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    layouts = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND_NTD")
    shared = layout, layouts, heads, kv_heads, lengths, block_table, block_size
    operands = operands_of(op, query, key, value, *shared, antiquant)
    if antiquant[0] is not None and query_rope is not None:
        raise NotImplementedError(f"{op}: query_rope is not supported by anynpu with int8 key and value")
    require(op, (query_rope is None) == (key_rope is None), "query_rope and key_rope must be given together")
    if query_rope is not None:
        ropes = operands_of(op, query_rope, key_rope, key_rope, *shared)
        operands = operands.with_rope(op, ropes.query, ropes.key)
    one_row = operands.padded == 1
    if one_row and (mask.tensor is None or mask.sparse_mode in (0, 1)):
        mask = _Mask(mask.tensor)  # sparse_mode and its tokens have no effect on queries of one token
    elif one_row and mask.sparse_mode != _CAUSAL:
        got = mask.sparse_mode
        raise NotImplementedError(f"{op}: sparse_mode must be 0, 1 or 3 for queries of one token, got {got}")
    masks = mask.of_sequences(op, operands, one_row)
    if sink is not None:
        _check_sink(op, sink, heads, with_lse)
    lse = operands.log_sum_exp(masks, scale) if with_lse else query.new_zeros(1, dtype=torch.float32)
    return operands.attend(masks, scale, sink), lse


def _check_sink(op: str, sink: torch.Tensor, heads: int, with_lse: bool) -> None:
    require_dtype(op, "learnable_sink", sink, _FLOATS)
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
    pre_tokens: int = _ALL,
    next_tokens: int = _ALL,
    input_layout: str = "BSH",
    sparse_mode: int = 0,
    block_size: int = 0,
    inner_precise: int = 0,
    return_softmax_lse: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``npu_fused_infer_attention_score`` with other names of its arguments; ``others`` are refused.

    ``learnable_sink``, (N,), is the score of one more key of each head, which all queries see and whose value is 0.
    """
    op = "npu_fused_infer_attention_score_v2"
    for name in others:
        if name not in (*_V2_TENSORS, *_V2_MODES, *_V2_DTYPES):
            raise TypeError(f"{op}: got an unexpected keyword argument {name!r}")
    separate = {name: others.pop(name, None) for name in _V2_ANTIQUANT}
    modes = others.pop("key_quant_mode", 0), others.pop("value_quant_mode", 0)
    antiquant = codes_of.separate(op, separate, modes)
    _refuse(**others)
    lengths = {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen}
    mask = _Mask(atten_mask, sparse_mode, pre_tokens, next_tokens)
    return _fused_infer(
        op, query, key, value, input_layout, num_query_heads, num_key_value_heads, lengths, block_table, block_size,
        mask, softmax_scale, return_softmax_lse, query_rope, key_rope, antiquant, learnable_sink,
    )  # fmt: skip


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
    _refuse(
        pse_shift=pse_shift, padding_mask=padding_mask, deq_scale1=deq_scale1, quant_scale1=quant_scale1,
        deq_scale2=deq_scale2, quant_scale2=quant_scale2, quant_offset2=quant_offset2,
    )  # fmt: skip
    operands = operands_of(
        op, query, key, value, input_layout, ("BSH", "BSND", "BNSD", "BNSD_BSND"), num_heads, num_key_value_heads,
        {"actual_seq_lengths": actual_seq_lengths, "actual_seq_lengths_kv": actual_seq_lengths_kv},
    )  # fmt: skip
    mask = _Mask(atten_mask, sparse_mode, pre_tokens, next_tokens)
    return operands.attend(mask.of_sequences(op, operands), scale_value)


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
    _refuse(
        padding_mask=padding_mask, pse_shift=pse_shift, dequant_scale1=dequant_scale1, quant_scale1=quant_scale1,
        dequant_scale2=dequant_scale2, quant_scale2=quant_scale2, quant_offset2=quant_offset2,
        kv_padding_size=kv_padding_size,
    )  # fmt: skip
    stacked = {"antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset}
    operands = operands_of(
        op, query, key, value, input_layout, ("BSH", "BSND", "BNSD"), num_heads, num_key_value_heads,
        {"of the queries": None, "actual_seq_lengths": actual_seq_lengths}, block_table, block_size,
        codes_of.stacked(op, stacked),
    )  # fmt: skip
    require(op, operands.padded == 1, f"query must have one token for each sequence, got {operands.padded}")
    return operands.attend(_Mask(atten_mask).of_sequences(op, operands, one_row=True), scale_value)


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
    pre_tockens: int = _ALL,
    next_tockens: int = _ALL,
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
    _refuse(pse=pse, padding_mask=padding_mask, prefix=prefix)
    if keep_prob != 1:
        raise NotImplementedError(f"{op}: keep_prob must be 1.0, anynpu has no dropout here, got {keep_prob}")
    if input_layout != "TND" and not (actual_seq_qlen is None and actual_seq_kvlen is None):
        raise NotImplementedError(f"{op}: actual_seq_qlen and actual_seq_kvlen are for layout TND, got {input_layout}")
    operands = operands_of(
        op, query, key, value, input_layout, ("BSH", "SBH", "BSND", "BNSD", "TND"), head_num,
        _kv_heads(op, query, key, head_num, input_layout),
        {"actual_seq_qlen": actual_seq_qlen, "actual_seq_kvlen": actual_seq_kvlen},
    )  # fmt: skip
    mask = _Mask(atten_mask, sparse_mode, pre_tockens, next_tockens)
    unused = (query.new_empty(0, dtype=torch.float32) for _ in range(3))
    return operands.attend(mask.of_sequences(op, operands), scale), *unused, 0, 0, 0


def _kv_heads(op: str, query: torch.Tensor, key: torch.Tensor, heads: int, layout: str) -> int:
    """How many heads key has; 0, as many as query, where that cannot be told: then the shapes are refused."""
    if key.dim() != len(layout) or heads <= 0:
        return 0
    if "H" not in layout:
        return key.shape[layout.index("N")] if "N" in layout else 0
    return key.shape[-1] // max(query.shape[-1] // heads, 1)
