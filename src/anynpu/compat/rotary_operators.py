# SPDX-License-Identifier: Apache-2.0
"""The published rotary embeddings that look cosines and sines up by position, in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.published import published, require_absent

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INDICES = (torch.int32, torch.int64)


def _check(
    op: str, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, cache: torch.Tensor, head_size: int
) -> None:
    require_dtype(op, "positions", positions, _INDICES)
    require_dtype(op, "query", query, _FLOATS)
    require(op, head_size > 0 and head_size % 2 == 0, f"head_size must be even and positive, got {head_size}")
    tokens = positions.shape[-1] if positions.dim() else 0
    for name, x in (("query", query), ("key", key)):
        require_dtype(op, name, x, (query.dtype,))
        got = tuple(x.shape)
        fits = len(got) == 2 and got[0] == tokens and got[1] % head_size == 0
        require(op, fits, f"{name} must have shape ({tokens}, heads * {head_size}), got {got}")
    require_dtype(op, "cos_sin_cache", cache, _FLOATS)
    shape = tuple(cache.shape)
    if len(shape) == 2 and shape[1] < head_size:
        raise NotImplementedError(f"cos_sin_cache must have the width of a head, {head_size}, got {shape[1]}")
    require(op, len(shape) == 2 and shape[1] == head_size, f"cos_sin_cache must be (P, {head_size}), got {shape}")
    known = ((positions >= 0) & (positions < shape[0])).all()
    torch._assert_async(
        known, f"{op}: positions must be at least 0 and less than the rows of cos_sin_cache, {shape[0]}"
    )


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, halves: bool) -> torch.Tensor:
    """x (T, N * D) with each pair of a head turned: value i and i + D / 2, or the two of neighbours."""
    heads = x.float().unflatten(-1, (-1, 2 * cos.shape[-1]))
    cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)
    first, second = heads.chunk(2, -1) if halves else heads.unflatten(-1, (-1, 2)).unbind(-1)
    parts = first * cos - second * sin, second * cos + first * sin
    turned = torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2)
    return turned.flatten(-2).to(x.dtype)


@published(
    "_npu_rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!) key, int head_size, Tensor cos_sin_cache, "
    "bool is_neox_style) -> ()",
    "Rope",
)
def _npu_rotary_embedding(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    head_size: int,
    cos_sin_cache: torch.Tensor,
    is_neox_style: bool,
) -> None:
    """Rotates query and key (T, N * head_size) in place by the rows ``positions`` (T,) of ``cos_sin_cache``.

    The cache (P, head_size) holds cosines, then sines. ``is_neox_style``: the halves of a head, else neighbours.
    """
    op = "_npu_rotary_embedding"
    require(op, positions.dim() == 1, f"positions must have 1 axis, got {positions.dim()}")
    _check(op, positions, query, key, cos_sin_cache, head_size)
    cos, sin = cos_sin_cache[positions.long()].chunk(2, -1)
    turned = [_turned(x, cos, sin, is_neox_style) for x in (query, key)]
    query.copy_(turned[0])
    key.copy_(turned[1])


@published(
    "npu_mrope(Tensor positions, Tensor query, Tensor key, Tensor cos_sin_cache, int head_size, *, "
    "int[]? mrope_section=None, str? rotary_mode='half', str? cache_mode='default') -> (Tensor, Tensor)",
    "aclnnRopeWithSinCosCache",
)
def npu_mrope(
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    head_size: int,
    *,
    mrope_section: Sequence[int] | None = None,
    rotary_mode: str | None = "half",
    cache_mode: str | None = "default",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key (T, N * head_size) rotated as by ``_npu_rotary_embedding``, by one or three positions a token.

    ``mrope_section``: how many cosines come from each of the rows of ``positions`` (3, T), together head_size / 2; None
    or zeros for ``positions`` (T,). ``rotary_mode``: half or interleave.
    """
    op = "npu_mrope"
    require_absent(cache_mode=None if cache_mode == "default" else cache_mode)
    known = rotary_mode in ("half", "interleave", None)
    require(op, known, f"rotary_mode must be half or interleave, got {rotary_mode!r}")
    sections = list(mrope_section or ())
    several = any(sections)
    shape = tuple(positions.shape)
    if several:
        fits = len(sections) == 3 and min(sections) >= 0 and sum(sections) * 2 == head_size
        require(
            op, fits, f"mrope_section must be 3 sizes that add up to head_size / 2, {head_size // 2}, got {sections}"
        )
        require(op, len(shape) == 2 and shape[0] == 3, f"positions must have shape (3, T), got {shape}")
    else:
        require(op, len(shape) == 1, f"positions must have shape (T,) without mrope_section, got {shape}")
    _check(op, positions, query, key, cos_sin_cache, head_size)
    rows = cos_sin_cache[positions.long()].chunk(2, -1)
    if several:
        rows = [torch.cat([part[i] for i, part in enumerate(row.split(sections, -1))], -1) for row in rows]
    halves = rotary_mode != "interleave"
    return _turned(query, *rows, halves), _turned(key, *rows, halves)
