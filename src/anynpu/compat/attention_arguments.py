# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values of attention out of the published arguments, which say how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.antiquant import NONE, AntiQuant
from anynpu.compat.attention import Attention
from anynpu.compat.attention_layouts import (
    FLOATS,
    Lengths,
    blocks_by_tokens,
    by_tokens,
    listed,
    require_ends,
    require_lengths,
    require_table,
)


@dataclass(frozen=True)
class Placement:
    """How sequences and heads lie in query, key and value.

    Attributes:
        layout: what the caller chose of the ``layouts`` of the operator.
        kv_heads: of key and value; 0: as many as ``heads``, those of query.
        lengths: of the sequences of query and of those of key, by the names of their arguments.
        block_table: int32 ``[B, blocks of a sequence]``, with key and value in blocks of ``block_size`` tokens.
    """

    layout: str
    layouts: Sequence[str]
    heads: int
    kv_heads: int
    lengths: dict[str, Lengths]
    block_table: torch.Tensor | None = None
    block_size: int = 0

    @property
    def source(self) -> str:
        """The layout of query, and of key and value that lie in no blocks."""
        return self.layout.partition("_")[0]

    @property
    def key_heads(self) -> int:
        """Heads of key and value."""
        return self.kv_heads or self.heads

    @property
    def packed(self) -> bool:
        """Whether sequences lie one after the other."""
        return self.source in ("TND", "NTD")

    def check(self, op: str) -> None:
        """What can be told without the tensors."""
        known = " or ".join(self.layouts)
        require(op, self.layout in self.layouts, f"Layout {self.layout} is not supported! input_layout must be {known}")
        require(op, self.heads > 0, f"numHeads should be greater than 0, but got {self.heads}")
        whole = self.key_heads > 0 and self.heads % self.key_heads == 0
        counts = f"{self.heads} and {self.key_heads}"
        require(op, whole, f"num_heads must be a multiple of num_key_value_heads, got {counts}")

    def attention(self, op: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Attention:
        """Query, key and value by tokens, and the lengths of their sequences."""
        q_name, kv_name = self.lengths
        query = by_tokens(op, "query", query, self.source, self.heads)
        q_lengths = self._lengths(op, q_name, query)
        pairs = ("key", key), ("value", value)
        if self.block_table is None:
            key, value = (by_tokens(op, *each, self.source, self.key_heads) for each in pairs)
            kv_lengths = self._lengths(op, kv_name, key)
        else:
            require_table(op, self.block_table)
            key, value = (blocks_by_tokens(op, *each, self.key_heads, self.block_size) for each in pairs)
            kv_lengths = self._lengths_in_blocks(op, kv_name)
        layout = self.layout.partition("_")[2] or self.source
        return Attention(query, key, value, layout, self.packed, q_lengths, kv_lengths, self.block_table)

    def _lengths(self, op: str, name: str, rows: torch.Tensor) -> Sequence[int] | None:
        """Of the sequences of ``rows`` [B, S, N, D]."""
        lengths, (batch, most) = listed(self.lengths[name]), rows.shape[:2]
        return require_ends(op, name, lengths, most) if self.packed else require_lengths(op, name, lengths, batch, most)

    def _lengths_in_blocks(self, op: str, name: str) -> Sequence[int]:
        lengths = listed(self.lengths[name])
        if lengths is None:
            raise TypeError(f"{op}: {name} must be given for a block_table")
        batch, blocks = self.block_table.shape
        return require_lengths(op, name, lengths, batch, blocks * self.block_size)


def attention_of(
    op: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    placement: Placement,
    antiquant: tuple[AntiQuant | None, AntiQuant | None] = NONE,
    takes_int8: bool = False,
) -> Attention:
    """The attention of these tensors; ``takes_int8``: query may be int8, as key and value then are.

    Raises:
        TypeError, ValueError: dtypes, shapes, lengths or heads that do not fit, by the names of the arguments.
    """
    placement.check(op)
    require_dtype(op, "query", query, (*FLOATS, torch.int8) if takes_int8 else FLOATS)
    if query.dtype == torch.int8:
        require(op, antiquant[0] is None, "an int8 query excludes scales of antiquantisation")
    for name, tensor, codes in zip(("key", "value"), (key, value), antiquant, strict=True):
        if codes is None:
            require_dtype(op, name, tensor, (query.dtype,))
        else:
            codes.check(op, tensor)
    attention = placement.attention(op, query, key, value)
    attention.check(op)
    return attention if antiquant[0] is None else attention.with_antiquant(op, antiquant)
