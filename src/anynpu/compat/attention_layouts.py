# SPDX-License-Identifier: Apache-2.0
"""Tensors of attention in the published layouts as views [B, S, N, D], and back; lengths of their sequences.

Layout TND, sequences that lie one after the other, is [1, T, N, D].
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from itertools import pairwise

import torch

from anynpu._check import require, require_dtype

FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_INTS = (int, torch.SymInt, numbers.Integral)

Lengths = Sequence[int] | torch.Tensor | None


def by_tokens(op: str, name: str, x: torch.Tensor, layout: str, heads: int) -> torch.Tensor:
    """[B, S, N, D] or [1, T, N, D]; a view where values of a head lie side by side."""
    shape = tuple(x.shape)
    require(op, len(shape) == len(layout), f"Layout {layout}, {name} must have {len(layout)} axes, got shape {shape}")
    if "H" in layout:
        whole = shape[-1] % heads == 0
        require(op, whole, f"the last axis of {name} must be a multiple of its {heads} heads, got shape {shape}")
        x, layout = x.unflatten(-1, (heads, -1)), layout.replace("H", "ND")
    axis = layout.index("N")
    require(op, x.shape[axis] == heads, f"axis {axis} of {name} must be its {heads} heads, got shape {shape}")
    if "T" in layout:
        x, layout = x.unsqueeze(0), "B" + layout.replace("T", "S")
    return side_by_side(x.permute([layout.index(axis) for axis in "BSND"]))


def side_by_side(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """[B, S, N, D], or [1, T, N, D], in ``layout``."""
    names = "TND" if "T" in layout else "BSND"
    x = x.squeeze(0) if "T" in layout else x
    x = x.permute([names.index(axis) for axis in layout.replace("H", "ND")]).contiguous()
    return x.flatten(-2) if "H" in layout else x


def blocks_by_tokens(op: str, name: str, cache: torch.Tensor, heads: int, block_size: int) -> torch.Tensor:
    """[P, block_size, N, D] of blocks (P, block_size, N * D), (P, N, block_size, D) or 5-D FRACTAL_NZ."""
    if cache.dim() == 5:  # FRACTAL_NZ spelled out: (P, N, D / C0, block_size, C0)
        cache = cache.transpose(2, 3).flatten(3)
    axes = cache.dim()
    require(op, axes in (3, 4), f"when Page Attention enabled, {name}'s dim should be 3/4/5, but got {axes}")
    blocks = by_tokens(op, name, cache, "BSH" if axes == 3 else "BNSD", heads)
    fits = block_size >= 1 and blocks.shape[1] == block_size
    require(op, fits, f"block_size must be that of {name}, {blocks.shape[1]}, got {block_size}")
    return blocks


def listed(lengths: Lengths) -> Sequence[int] | None:
    """Lengths in a 1-D tensor as a list, as torch takes such a tensor for a list of ints."""
    whole = isinstance(lengths, torch.Tensor) and lengths.dim() == 1 and not lengths.is_floating_point()
    return lengths.tolist() if whole else lengths


def _require_ints(op: str, name: str, lengths: object, where: str = "") -> None:
    wrong = [each for each in lengths if not isinstance(each, _INTS)] if isinstance(lengths, Sequence) else [lengths]
    if wrong:
        raise TypeError(f"{op}: {name} must be a list of ints{where}, got {type(wrong[0]).__name__}")


def require_lengths(op: str, name: str, lengths: Sequence[int] | None, batch: int, most: int) -> Sequence[int] | None:
    """The length of each of ``batch`` sequences: a list of one serves all."""
    if lengths is None:
        return None
    _require_ints(op, name, lengths)
    require(op, len(lengths) in (1, batch), f"{name} must have 1 or {batch} entries, got {len(lengths)}")
    for length in lengths:
        require(op, 0 <= length <= most, f"{name} must be in [0, {most}], got {length}")
    return list(lengths) * batch if len(lengths) == 1 else lengths


def require_ends(op: str, name: str, lengths: Sequence[int] | None, total: int) -> Sequence[int]:
    """Running sums of the lengths of sequences that lie one after the other."""
    _require_ints(op, name, lengths, " in layout TND")
    ends = (0, *lengths)
    ordered = all(start <= end for start, end in pairwise(ends)) and ends[-1] == total
    require(op, ordered, f"{name} must be cumulative and end with T = {total} in layout TND, got {list(lengths)}")
    return lengths


def require_table(op: str, table: torch.Tensor) -> None:
    """A ``block_table``."""
    require_dtype(op, "block_table", table, (torch.int32,))
    shape = tuple(table.shape)
    require(op, len(shape) == 2, f"block_table must have 2 axes, got shape {shape}")
