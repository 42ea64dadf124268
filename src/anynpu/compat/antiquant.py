# SPDX-License-Identifier: Apache-2.0
"""Keys and values of attention in int8: what their scales belong to, by the published modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from anynpu._check import dtype_name, require, require_dtype

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_CHANNEL, _TOKEN, _HEAD, _TOKEN_HEAD, _PAGED_TOKEN, _PAGED_TOKEN_HEAD = range(6)


@dataclass(frozen=True)
class AntiQuant:
    """``(codes + offset) * scale`` of int8 keys, or of values.

    Modes: 0 a scale for each head and channel, or one in all; 1 for each token (B, S); 2 for each head (N,); 3 for each
    head and token (B, N, S); 4 and 5 as 1 and 3, in blocks (blocks, block_size) and (blocks, N, block_size).
    """

    names: tuple[str, str]  # of scale and offset
    scale: torch.Tensor
    offset: torch.Tensor | None
    mode: int

    def check(self, op: str, codes: torch.Tensor) -> None:
        """All but shapes."""
        if codes.dtype != torch.int8:
            raise TypeError(f"{op}: {self.names[0]} is for int8 codes, got {dtype_name(codes.dtype)}")
        for name, factors in zip(self.names, (self.scale, self.offset), strict=True):
            if factors is not None:
                require_dtype(op, name, factors, _FLOATS)

    def floats(
        self, op: str, sequences: list[torch.Tensor], paged: Callable[[str, torch.Tensor, int], list] | None
    ) -> list[torch.Tensor]:
        """float32 of the sequences (N, S, D); ``paged`` takes those of a tensor in blocks."""
        scales = self._of_sequences(op, self.names[0], self.scale, sequences, paged)
        if self.offset is None:
            return [codes * scale for codes, scale in zip(sequences, scales, strict=True)]
        offsets = self._of_sequences(op, self.names[1], self.offset, sequences, paged)
        return [(codes + offset) * scale for codes, offset, scale in zip(sequences, offsets, scales, strict=True)]

    def _of_sequences(
        self, op: str, name: str, factors: torch.Tensor, sequences: list[torch.Tensor], paged: Callable | None
    ) -> list[torch.Tensor]:
        """The factors of each sequence in float32, broadcast to (N, S, D)."""
        factors = factors.float()
        batch, (heads, _, width) = len(sequences), sequences[0].shape
        if self.mode == _HEAD or (self.mode == _CHANNEL and factors.numel() != 1):
            size = heads * (width if self.mode == _CHANNEL else 1)
            got = tuple(factors.shape)
            require(op, factors.numel() == size, f"{name} must have {size} elements for mode {self.mode}, got {got}")
            return [factors.reshape(heads, 1, -1)] * batch
        if self.mode == _CHANNEL:
            return [factors.reshape(1, 1, 1)] * batch
        if self.mode in (_PAGED_TOKEN, _PAGED_TOKEN_HEAD):
            require(op, paged is not None, f"{name} of mode {self.mode} is for a block_table")
            by_head = self.mode == _PAGED_TOKEN_HEAD
            expected = "(blocks, N, block_size)" if by_head else "(blocks, block_size)"
            fits = factors.dim() == (3 if by_head else 2)
            require(op, fits, f"{name} must have shape {expected} for mode {self.mode}, got {tuple(factors.shape)}")
            blocks = factors.unsqueeze(-1) if by_head else factors[:, None, :, None]
            return paged(name, blocks, heads if by_head else 1)
        return self._of_tokens(op, name, factors, [codes.shape[1] for codes in sequences], heads)

    def _of_tokens(
        self, op: str, name: str, factors: torch.Tensor, lengths: Sequence[int], heads: int
    ) -> list[torch.Tensor]:
        axes = 3 if self.mode == _TOKEN_HEAD else 2
        if factors.dim() == axes + 1 and factors.shape[0] == 1:
            factors = factors[0]
        shape, sizes = tuple(factors.shape), (len(lengths), heads, max(lengths))
        expected = sizes if axes == 3 else (sizes[0], sizes[2])
        fits = len(shape) == axes and shape[:-1] == expected[:-1] and shape[-1] >= expected[-1]
        require(op, fits, f"{name} must have shape {expected} for mode {self.mode}, or more tokens, got {shape}")
        by_head = factors if axes == 3 else factors.unsqueeze(1)
        return [row[:, :length, None] for row, length in zip(by_head, lengths, strict=True)]


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
