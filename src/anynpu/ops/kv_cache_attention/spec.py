# SPDX-License-Identifier: Apache-2.0
"""Argument rules and sample calls of kv_cache_attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "kv_cache_attention"
SCHEMA = (
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor scale_k, Tensor scale_v, "
    "Tensor? offset_k=None, Tensor? offset_v=None, Tensor? block_table=None, Tensor? starts=None, "
    "float? softmax_scale=None, bool causal=True) -> Tensor"
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    lengths: torch.Tensor
    scale_k: torch.Tensor
    scale_v: torch.Tensor
    offset_k: torch.Tensor | None = None
    offset_v: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    starts: torch.Tensor | None = None
    softmax_scale: float | None = None
    causal: bool = True

    @property
    def scale(self) -> float:
        """``softmax_scale`` or what stands for it."""
        return self.q.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale


def _check_caches(k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require_dtype(OP, name, cache, (torch.int8,))
    shape = tuple(k_cache.shape)
    valid = len(shape) == 4 and shape[2] >= 1 and shape[3] >= 1
    require(OP, valid, f"k_cache must be [C1, C2, Nkv, D], got shape {shape}")
    same = tuple(v_cache.shape) == shape
    require(OP, same, f"v_cache must have the shape of k_cache, {shape}, got {tuple(v_cache.shape)}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require(OP, cache.is_contiguous(), f"{name} should be contiguous")


def _check_q(q: torch.Tensor, kv_heads: int, head_size: int) -> None:
    require_dtype(OP, "q", q, FLOATS)
    require(OP, q.dim() == 4, f"q must be [B, S, Nq, D], got shape {tuple(q.shape)}")
    size, heads = q.shape[3], q.shape[2]
    require(OP, size == head_size, f"q.shape[3] must be D = k_cache.shape[3] = {head_size}, got {size}")
    valid = heads >= 1 and heads % kv_heads == 0
    require(OP, valid, f"q.shape[2] must be a multiple of Nkv = k_cache.shape[2] = {kv_heads}, got {heads}")


def _check_per_batch(name: str, tensor: torch.Tensor, batch: int) -> None:
    require_dtype(OP, name, tensor, (torch.int32,))
    shape = tuple(tensor.shape)
    require(OP, shape == (batch,), f"{name} must have shape [B] = {(batch,)}, got {shape}")


def _check_places(a: Arguments) -> None:
    planes, batch = a.k_cache.shape[0], a.q.shape[0]
    _check_per_batch("lengths", a.lengths, batch)
    if a.starts is not None:
        _check_per_batch("starts", a.starts, batch)
    if a.block_table is None:
        require(OP, planes >= batch, f"k_cache.shape[0] must be at least B = {batch}, got {planes}")
        return
    require_dtype(OP, "block_table", a.block_table, (torch.int32,))
    shape = tuple(a.block_table.shape)
    require(
        OP,
        shape[:1] == (batch,) and len(shape) == 2,
        f"block_table must be [B, blocks] with B = {batch}, got shape {shape}",
    )


def check(a: Arguments) -> None:
    """Checks what can be checked without data."""
    _check_caches(a.k_cache, a.v_cache)
    kv_heads, head_size = a.k_cache.shape[2:]
    _check_q(a.q, kv_heads, head_size)
    _check_places(a)
    parameters = {"scale_k": a.scale_k, "scale_v": a.scale_v, "offset_k": a.offset_k, "offset_v": a.offset_v}
    for name, parameter in parameters.items():
        if parameter is None and name.startswith("offset"):
            continue
        require_dtype(OP, name, parameter, (torch.float32,))
        full, shape = (kv_heads, head_size), tuple(parameter.shape)
        require(OP, shape == full, f"{name} must have shape [Nkv, D] = {full}, got {shape}")


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel of kv_cache_attention."""
    check(a)
    return a.q.new_empty(a.q.shape)


def sample_arguments(
    batch: int,
    length: int,
    heads: tuple[int, int],
    head_size: int,
    dtype: torch.dtype,
    cache: tuple[int, int],
    lengths: Sequence[int],
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Random required arguments of realistic size: Nq and Nkv are ``heads``, C1 and C2 are ``cache``."""
    generator = torch.Generator().manual_seed(seed)
    q_heads, kv_heads = heads
    caches = [
        torch.randint(-128, 128, (*cache, kv_heads, head_size), dtype=torch.int8, generator=generator) for _ in "kv"
    ]
    scales = [torch.rand(kv_heads, head_size, generator=generator) * 0.03 + 0.01 for _ in "kv"]
    return {
        "q": torch.randn(batch, length, q_heads, head_size, generator=generator).to(dtype),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "scale_k": scales[0],
        "scale_v": scales[1],
    }


def samples() -> Iterator[Sample]:
    """Valid calls of kv_cache_attention."""
    decode = sample_arguments(2, 1, (6, 2), 32, torch.float32, (2, 90), [90, 17])
    yield Sample("decode", tuple(decode.values()))
    prefill = sample_arguments(1, 37, (4, 1), 40, torch.bfloat16, (1, 100), [80])
    offset = torch.linspace(-40, 40, 40).reshape(1, 40)
    yield Sample("chunked prefill, offsets", (*prefill.values(), offset, -offset))
    paged = sample_arguments(2, 2, (2, 2), 16, torch.float16, (9, 8), [30, 3])
    table = torch.tensor([[8, 0, 3, 5], [2, -1, -1, -1]], dtype=torch.int32)
    yield Sample("paged", Arguments(**paged, block_table=table, starts=torch.tensor([9, 0], dtype=torch.int32)))
    split = sample_arguments(1, 1, (4, 2), 64, torch.float16, (1, 700), [700])
    yield Sample("split rows, not causal", Arguments(**split, softmax_scale=0.1, causal=False))
