# SPDX-License-Identifier: Apache-2.0
"""Keys and values of attention in int8 and int4: what their scales belong to, by the published modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anynpu._check import dtype_name, require, require_dtype
from anynpu.ops.fused_attention.spec import CODES, head_size

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_CHANNEL, _TOKEN, _HEAD, _TOKEN_HEAD, _PAGED_TOKEN, _PAGED_TOKEN_HEAD = range(6)


@dataclass(frozen=True)
class AntiQuant:
    """``(codes + offset) * scale`` of int8 or int4 keys, or of values.

    Modes: 0 a scale for each head and channel, or one in all; 1 for each token (B, S); 2 for each head (N,); 3 for each
    head and token (B, N, S); 4 and 5 as 1 and 3, in blocks (blocks, block_size) and (blocks, N, block_size).
    """

    names: tuple[str, str]  # of scale and offset
    scale: torch.Tensor
    offset: torch.Tensor | None
    mode: int

    def check(self, op: str, codes: torch.Tensor) -> None:
        """All but shapes."""
        if codes.dtype not in CODES:
            raise TypeError(
                f"{op}: {self.names[0]} is for int8 codes and int32 of int4 ones, got {dtype_name(codes.dtype)}"
            )
        for name, factors in zip(self.names, (self.scale, self.offset), strict=True):
            if factors is not None:
                require_dtype(op, name, factors, _FLOATS)

    @property
    def of_sequences(self) -> bool:
        """Whether scales are those of the tokens of sequences, not of blocks."""
        return self.mode in (_TOKEN, _TOKEN_HEAD)

    def factors(
        self, op: str, codes: torch.Tensor, lengths: Sequence[int] | None, packed: bool, paged: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and offset as ``fused_attention`` takes them, for ``codes`` [B, S, N, D] or in blocks.

        ``lengths`` of the sequences, where a mode is of their tokens.
        """
        pairs = zip(self.names, (self.scale, self.offset), strict=True)
        scale, offset = (
            None if factors is None else self._placed(op, name, factors, codes, lengths, packed, paged)
            for name, factors in pairs
        )
        return scale, offset

    def _placed(
        self,
        op: str,
        name: str,
        factors: torch.Tensor,
        codes: torch.Tensor,
        lengths: Sequence[int] | None,
        packed: bool,
        paged: bool,
    ) -> torch.Tensor:
        heads, width = codes.shape[2], head_size(codes)
        if self.mode == _CHANNEL and factors.numel() == 1:
            return factors.reshape(1, 1, 1, 1)
        if self.mode in (_HEAD, _CHANNEL):
            size = heads * (width if self.mode == _CHANNEL else 1)
            got = tuple(factors.shape)
            require(op, factors.numel() == size, f"{name} must have {size} elements for mode {self.mode}, got {got}")
            return factors.reshape(1, 1, heads, -1)
        if self.of_sequences:
            return self._of_tokens(op, name, factors, lengths, heads, packed)
        require(op, paged, f"{name} of mode {self.mode} is for a block_table")
        blocks, size = codes.shape[:2]
        expected, got = (
            (blocks, heads, size) if self.mode == _PAGED_TOKEN_HEAD else (blocks, size),
            tuple(factors.shape),
        )
        require(op, expected == got, f"{name} must have shape {expected} for mode {self.mode}, got {got}")
        return (factors.transpose(1, 2) if self.mode == _PAGED_TOKEN_HEAD else factors.unsqueeze(2)).unsqueeze(-1)

    def _of_tokens(
        self, op: str, name: str, factors: torch.Tensor, lengths: Sequence[int], heads: int, packed: bool
    ) -> torch.Tensor:
        axes = 3 if self.mode == _TOKEN_HEAD else 2
        if factors.dim() == axes + 1 and factors.shape[0] == 1:
            factors = factors[0]
        shape, sizes = tuple(factors.shape), (len(lengths), heads, max(lengths))
        expected = sizes if axes == 3 else (sizes[0], sizes[2])
        fits = len(shape) == axes and shape[:-1] == expected[:-1] and shape[-1] >= expected[-1]
        require(op, fits, f"{name} must have shape {expected} for mode {self.mode}, or more tokens, got {shape}")
        rows = (factors.transpose(1, 2) if axes == 3 else factors.unsqueeze(2)).unsqueeze(-1)
        if not packed:
            return rows
        return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)]).unsqueeze(0)


NONE = None, None  # of float keys and values


def separate(
    op: str, factors: dict[str, torch.Tensor | None], modes: tuple[int, int]
) -> tuple[AntiQuant | None, AntiQuant | None]:
    """Of the arguments, by their names, with scale and offset of keys and scale and offset of values."""
    (key_scale, key_offset, value_scale, value_offset), names = factors.values(), tuple(factors)
    both = (key_scale is None) == (value_scale is None)
    require(op, both, f"{names[0]} and {names[2]} must be given together")
    if key_scale is None:
        for name, tensor in factors.items():
            require(op, tensor is None, f"{name} needs a scale")
        return NONE
    known = modes[0] in range(6) and (modes[0] == modes[1] or modes == (_CHANNEL, _TOKEN))
    require(op, known, f"modes of key and value must be equal, 0 to 5, or 0 and 1, got {modes[0]} and {modes[1]}")
    key = AntiQuant(names[:2], key_scale, key_offset, modes[0])
    return key, AntiQuant(names[2:], value_scale, value_offset, modes[1])


def stacked(
    op: str, factors: dict[str, torch.Tensor | None], mode: int = _CHANNEL
) -> tuple[AntiQuant | None, AntiQuant | None]:
    """Of the arguments, by their names, with the scales and with the offsets, of keys before those of values."""
    (scale, offset), names = factors.values(), tuple(factors)
    if scale is None:
        require(op, offset is None, f"{names[1]} needs a scale")
        return NONE
    require(op, mode in (_CHANNEL, _TOKEN), f"antiquant_mode must be 0 or 1, got {mode}")
    for name, tensor in factors.items():
        fits = tensor is None or (tensor.dim() >= 1 and tensor.shape[0] == 2)
        require(op, fits, f"the first axis of {name} must be 2, for key and value")
    key, value = (AntiQuant(names, *pair, mode) for pair in zip(scale, NONE if offset is None else offset, strict=True))
    return key, value
