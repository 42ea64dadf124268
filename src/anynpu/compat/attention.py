# SPDX-License-Identifier: Apache-2.0
"""The published attention operators as calls of ``anynpu.fused_attention``, which reads caches where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.antiquant import AntiQuant
from anynpu.compat.attention_calls import Call
from anynpu.compat.attention_layouts import (
    FLOATS,
    Lengths,
    by_tokens,
    listed,
    require_lengths,
    side_by_side,
)
from anynpu.compat.attention_masks import Mask
from anynpu.compat.attention_padding import padded_mask, padding_size
from anynpu.ops.fused_attention.spec import head_size


def refuse(**arguments: object) -> None:
    """None of these arguments, which anynpu has not, is given."""
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, int) and value == 0):
            raise NotImplementedError(
                f"{name} is not supported by anynpu, supported: float query, key and value of one dtype, atten_mask, "
                "lengths of sequences, paged caches, query_rope and key_rope, int8 and int4 key and value"
            )


@dataclass(frozen=True)
class Attention:
    """Query, key and value [B, S, N, D], or blocks of key and value, and the lengths of their sequences."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    layout: str  # of the result
    packed: bool = False
    q_lengths: Sequence[int] | None = None
    kv_lengths: Sequence[int] | None = None
    block_table: torch.Tensor | None = None
    paddings: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)  # rows behind queries and behind keys
    further: dict[str, Any] = field(default_factory=dict)  # arguments of fused_attention

    def check(self, op: str) -> None:
        """What can be told in the names of the published arguments."""
        counts = len(self.q_lengths) if self.packed else self.query.shape[0], self._kv_sequences()
        require(op, counts[0] > 0, "query must have at least one sequence")
        require(op, counts[0] == counts[1], f"query has {counts[0]} sequences, key {counts[1]}")
        sizes = self.query.shape[3], head_size(self.key)
        require(op, sizes[0] == sizes[1], f"the heads of key must be as long as query's, {sizes[0]}, got {sizes[1]}")
        sizes = self.key.shape[1], self.value.shape[1]
        require(op, sizes[0] == sizes[1], f"value must have as many tokens as key, {sizes[0]}, got {sizes[1]}")

    def _kv_sequences(self) -> int:
        if self.block_table is not None:
            return self.block_table.shape[0]
        return len(self.kv_lengths) if self.packed else self.key.shape[0]

    @property
    def one_row(self) -> bool:
        """Whether the queries have one token."""
        return not self.packed and self.query.shape[1] == 1

    def with_rope(self, op: str, query: torch.Tensor, key: torch.Tensor) -> Attention:
        """The same with the rotated parts of the heads of query and key behind the others."""
        for name, part, rope in (("query", self.query, query), ("key", self.key, key)):
            require_dtype(op, f"{name}_rope", rope, (part.dtype,))
            expected, got = (part.shape[2], part.shape[1]), (rope.shape[2], rope.shape[1])
            require(op, expected == got, f"{name}_rope must have the heads and tokens {expected}, got {got}")
        return replace(self, further={**self.further, "q_rope": query, "k_rope": key})

    def with_antiquant(self, op: str, antiquant: tuple[AntiQuant, AntiQuant]) -> Attention:
        """The same with the scales and offsets of int8 or int4 key and value."""
        by_sequence = any(codes.of_sequences for codes in antiquant)
        attention = self._by_sequence() if by_sequence else self
        arguments = {}
        for letter, codes, tensor in zip("kv", antiquant, (attention.key, attention.value), strict=True):
            counts = attention._kv_counts() if by_sequence else None
            scale, offset = codes.factors(op, tensor, counts, attention.packed, attention.block_table is not None)
            arguments |= {f"{letter}_scale": scale, f"{letter}_offset": offset}
        return replace(attention, further={**attention.further, **arguments})

    def with_int8_products(self, op: str, factors: dict[str, torch.Tensor | None]) -> Attention:
        """The same with what the products of an int8 query need: ``factors`` by their names, in order of the products.

        They are those of the scores, of the weights and of the result. Dequantisation may be given as 64-bit words.
        """
        if self.query.dtype != torch.int8:
            refuse(**factors)
            return self
        placed = []
        for name, factor in factors.items():
            if factor is None:
                raise TypeError(f"{op}: {name} must be given for an int8 query")
            words = (torch.int64, torch.uint64) if name.startswith("deq") else ()
            require_dtype(op, name, factor, (*FLOATS, *words))
            require(op, factor.numel() == 1, f"{name} must have 1 element, got shape {tuple(factor.shape)}")
            factor = factor.reshape(1)
            placed.append(factor.view(torch.float32)[:1] if factor.dtype in words else factor)  # the low half
        scores, weights, values = placed
        scales = {"k_scale": scores.reshape(1, 1, 1, 1), "v_scale": values.reshape(1, 1, 1, 1), "p_scale": weights}
        return replace(self, further={**self.further, **scales})

    def with_shift(self, op: str, name: str, shift: torch.Tensor | None) -> Attention:
        """The same with ``shift`` (1 or B, N, S, Skv) added to the scaled scores."""
        if shift is None:
            return self
        require_dtype(op, name, shift, FLOATS)
        if self.packed:
            raise NotImplementedError(f"{op}: {name} is not supported by anynpu in layout TND")
        rows, columns = (max(axis) for axis in zip(*self._sizes(), strict=True))
        heads, shape = (self.query.shape[0], self.query.shape[2]), tuple(shift.shape)
        fits = len(shape) == 4 and shape[0] in (1, heads[0]) and shape[1] == heads[1]
        fits = fits and shape[2] >= rows and shape[3] >= columns
        expected = f"({heads[0]} or 1, {heads[1]}, {rows}, {columns})"
        require(op, fits, f"{name} must have shape {expected}, or larger in the last two axes, got {shape}")
        return replace(self, further={**self.further, "bias": side_by_side(shift)})

    def with_prefix(
        self, op: str, parts: dict[str, torch.Tensor | None], lengths: Lengths, layout: str, kv_heads: int
    ) -> Attention:
        """The same with ``parts``, keys and values that all sequences share, copied in front of their own.

        ``lengths``: one, of how many of the shared tokens count; all if None.
        """
        (key, value), names = parts.values(), tuple(parts)
        require(op, (key is None) == (value is None), f"{names[0]} and {names[1]} must be given together")
        if key is None:
            require(op, not lengths, f"actual_shared_prefix_len needs {names[0]}")
            return self
        self._require_rows(op, names[0])
        key, value = (
            self._shared(op, names[0], key, layout, kv_heads),
            self._shared(op, names[1], value, layout, kv_heads),
        )
        counts = key.shape[1], value.shape[1]
        require(
            op,
            counts[0] == counts[1],
            f"{names[1]} must have as many tokens as {names[0]}, {counts[0]}, got {counts[1]}",
        )
        lengths = require_lengths(op, "actual_shared_prefix_len", listed(lengths), 1, counts[0]) or [counts[0]]
        joined = (
            torch.cat([shared[:, : lengths[0]].expand(own.shape[0], -1, -1, -1), own], 1)
            for shared, own in ((key, self.key), (value, self.value))
        )
        kv_lengths = self.kv_lengths and [length + lengths[0] for length in self.kv_lengths]
        return replace(self, **dict(zip(("key", "value"), joined, strict=True)), kv_lengths=kv_lengths)

    def _shared(self, op: str, name: str, part: torch.Tensor, layout: str, kv_heads: int) -> torch.Tensor:
        """[1, S, N, D] like key, or value."""
        own = self.key if name.startswith("key") else self.value
        require_dtype(op, name, part, (own.dtype,))
        part = by_tokens(op, name, part, layout, kv_heads)
        expected, got = (1, own.shape[3]), (part.shape[0], part.shape[3])
        require(
            op, expected == got, f"{name} must have one sequence of heads of {expected[1]}, got {got[0]} of {got[1]}"
        )
        return part

    def with_padding(self, op: str, **sizes: torch.Tensor | None) -> Attention:
        """The same with sequences at the right ends of their rows, but for so many: of queries, then of keys."""
        pairs = zip(sizes.items(), (self.q_lengths, self.kv_lengths), strict=True)
        paddings = tuple(padding_size(op, *each, lengths) for each, lengths in pairs)
        if paddings[0] is None and paddings[1] is None:
            return self
        self._require_rows(op, " and ".join(name for name, size in sizes.items() if size is not None))
        return replace(self, paddings=paddings)

    def _require_rows(self, op: str, names: str) -> None:
        """A plane for each sequence, whose rows can move: they have no scales that would have to move along."""
        scales_of_tokens = any(not _of_channels(self.further.get(f"{letter}_scale")) for letter in "kv")
        if self.packed or self.block_table is not None or scales_of_tokens:
            rule = "in layout TND, with a block_table or with scales of tokens"
            raise NotImplementedError(f"{op}: {names} is not supported by anynpu {rule}")

    def _hidden_by_padding(self, op: str, hidden: dict[str, Any]) -> dict[str, Any]:
        """What ``hidden`` and the lengths of padded sequences hide, as a mask."""
        sides = self.query.shape[1], self.key.shape[1]
        mask = hidden.get("mask")
        if mask is not None:
            got = tuple(mask.shape[2:])
            fits = got[0] >= sides[0] and got[1] >= sides[1]
            require(op, fits, f"atten_mask must have all rows and columns, {sides}, beside padding sizes, got {got}")
        lengths = self._on_device(self.q_lengths), self._on_device(self.kv_lengths)
        return {"mask": padded_mask(sides, lengths, self.paddings, self.query.device, **hidden)}

    def with_int8_result(self, op: str, factors: dict[str, torch.Tensor | None]) -> Attention:
        """The same with an int8 result, where the first of ``factors``, scale and offset by their names, is there."""
        (scale, offset), names = factors.values(), tuple(factors)
        if scale is None:
            require(op, offset is None, f"{names[1]} needs {names[0]}")
            return self
        heads, size = self.query.shape[2], head_size(self.value)
        placed = []
        for name, tensor in factors.items():
            if tensor is None:
                continue
            require_dtype(op, name, tensor, FLOATS)
            fits = tensor.numel() in (1, heads * size)
            require(op, fits, f"{name} must have 1 or {heads * size} elements, got shape {tuple(tensor.shape)}")
            placed.append(tensor.reshape((1, 1) if tensor.numel() == 1 else (heads, size)))
        further = dict(zip(("out_scale", "out_offset"), placed, strict=False))
        return replace(self, further={**self.further, **further})

    def _by_sequence(self) -> Attention:
        """The same without blocks, and no longer than the longest sequence, as scales of its tokens may be."""
        if self.packed and self.block_table is None:
            return self
        most, key, value = max(self._kv_counts()), self.key, self.value
        if self.block_table is not None:
            table = self.block_table[:, : -(-most // key.shape[1])].long()
            known = (
                torch.arange(table.shape[1], device=table.device) * key.shape[1]
                < self._on_device(self.kv_lengths)[:, None]
            )
            table = torch.where(known, table, 0)
            inside = ((table >= 0) & (table < key.shape[0])).all()
            torch._assert_async(inside, "block_table must be in the blocks of key where rows are used")
            key, value = (cache[table].flatten(1, 2) for cache in (key, value))
        return replace(self, key=key[:, :most], value=value[:, :most], block_table=None)

    def _kv_counts(self) -> list[int]:
        """The length of each sequence of the keys."""
        if self.kv_lengths is None:
            return [self.key.shape[1]] * self.key.shape[0]
        return _differences(self.kv_lengths) if self.packed and self.block_table is None else list(self.kv_lengths)

    def _sizes(self) -> list[tuple[int, int]]:
        if self.packed:
            rows = _differences(self.q_lengths)
        else:
            rows = [self.query.shape[1]] * self.query.shape[0] if self.q_lengths is None else self.q_lengths
        return list(zip(rows, self._kv_counts(), strict=True))

    def _on_device(self, lengths: Sequence[int] | None) -> torch.Tensor | None:
        if lengths is None:
            return None
        options = {"dtype": torch.int64, "device": self.query.device}
        if any(isinstance(length, torch.SymInt) for length in lengths):  # torch.tensor would make constants of them
            return torch.stack([torch.full((), length, **options) for length in lengths])
        return torch.tensor(lengths, **options)

    def attend(
        self, op: str, mask: Mask, scale: float, sink: torch.Tensor | None = None, with_lse: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The result in its layout, and the log-sum-exp, (B, N, S, 1) or (T, N, 1), a 0 unless asked for."""
        return self.call(op, mask, scale, sink, with_lse)()

    def call(self, op: str, mask: Mask, scale: float, sink: torch.Tensor | None = None, with_lse: bool = False) -> Call:
        """The call of ``fused_attention`` that gives these."""
        hidden = {}
        if mask.tensor is not None or mask.sparse_mode != 0:
            hidden = mask.arguments(op, self._sizes(), self.query.shape[2], self.packed, self.one_row)
        unread = None if "mask" in hidden else mask.tensor
        lengths = {"q_lengths": self._on_device(self.q_lengths), "kv_lengths": self._on_device(self.kv_lengths)}
        if any(padding is not None for padding in self.paddings):
            hidden, lengths = self._hidden_by_padding(op, hidden), {}
        arguments = {
            "q": self.query, "k": self.key, "v": self.value, "block_table": self.block_table, "sink": sink,
            "softmax_scale": scale, "packed": self.packed, "with_lse": with_lse, **lengths, **hidden, **self.further,
        }  # fmt: skip
        return Call(arguments, self.layout, unread)


def _of_channels(scale: torch.Tensor | None) -> bool:
    """Whether a scale, as ``fused_attention`` takes it, is the same for all tokens."""
    return scale is None or tuple(scale.shape[:2]) == (1, 1)


def _differences(ends: Sequence[int]) -> list[int]:
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
