# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of rope_kv_cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu._strict import check_rope_kv_cache_limits

OP = "rope_kv_cache"
SCHEMA = (
    "(Tensor x, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor indices, Tensor scale_k, "
    "Tensor scale_v, SymInt[] size_splits, Tensor? offset_k=None, Tensor? offset_v=None, Tensor? weight_scale=None, "
    "Tensor? activation_scale=None, Tensor? bias=None, bool kv_output=False, str cache_mode='contiguous') "
    "-> (Tensor, Tensor, Tensor)"
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
CACHE_MODES = {"contiguous": 0, "page": 1}


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    indices: torch.Tensor
    scale_k: torch.Tensor
    scale_v: torch.Tensor
    size_splits: Sequence[int]
    offset_k: torch.Tensor | None = None
    offset_v: torch.Tensor | None = None
    weight_scale: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    kv_output: bool = False
    cache_mode: str = "contiguous"


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call; S is 1 for 2-D x."""

    batch: int  # B
    length: int  # S
    q_heads: int  # Nq
    kv_heads: int  # Nkv
    head_size: int  # D
    leading: tuple[int, ...]  # (B, S) or (B,)

    @property
    def q_shape(self) -> tuple[int, ...]:
        return (*self.leading, self.q_heads, self.head_size)

    @property
    def kv_shape(self) -> tuple[int, ...]:
        return (*self.leading, self.kv_heads, self.head_size)


def _check_caches(k_cache: torch.Tensor, v_cache: torch.Tensor) -> tuple[int, int]:
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require_dtype(OP, name, cache, (torch.int8,))
    shape = tuple(k_cache.shape)
    require(OP, len(shape) == 4, f"k_cache must be [C1, C2, Nkv, D], got shape {shape}")
    same = tuple(v_cache.shape) == shape
    require(OP, same, f"v_cache must have the shape of k_cache, {shape}, got {tuple(v_cache.shape)}")
    valid = shape[2] >= 1 and shape[3] >= 2 and shape[3] % 2 == 0
    require(OP, valid, f"k_cache must have at least one head and an even head size, got shape {shape}")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        require(OP, cache.is_contiguous(), f"{name} should be contiguous")
    return shape[2], shape[3]


def _check_x(a: Arguments, kv_heads: int, head_size: int) -> Sizes:
    require_dtype(OP, "x", a.x, (torch.int32, *FLOATS))
    require(OP, a.x.dim() in (2, 3), f"x must be [B, S, H] or [B, H], got shape {tuple(a.x.shape)}")
    kv_width = kv_heads * head_size
    splits = list(a.size_splits)
    valid = len(splits) == 3 and splits[0] >= 0 and splits[0] % head_size == 0 and splits[1:] == [kv_width, kv_width]
    require(
        OP,
        valid,
        f"size_splits must be [Nq * D, Nkv * D, Nkv * D] with Nkv = {kv_heads} and D = {head_size} of k_cache, "
        f"got {splits}",
    )
    arithmetic = f"{splits[0]} + {splits[1]} + {splits[2]} = {sum(splits)}"
    *leading, width = a.x.shape
    require(OP, width == sum(splits), f"x.shape[-1] must be sum(size_splits) = {arithmetic}, got {width}")
    length = leading[1] if len(leading) == 2 else 1
    return Sizes(leading[0], length, splits[0] // head_size, kv_heads, head_size, tuple(leading))


def _check_angle(name: str, angle: torch.Tensor, a: Arguments, sizes: Sizes) -> None:
    require_dtype(OP, name, angle, FLOATS)
    require_same_dtype(name, angle, "cos", a.cos)
    if a.x.dtype != torch.int32:
        require_same_dtype(name, angle, "x", a.x)
    flat = a.x.dim() == 2
    expected = (sizes.batch, sizes.head_size) if flat else (sizes.batch, sizes.length, 1, sizes.head_size)
    symbols = "[B, D]" if flat else "[B, S, 1, D]"
    got = tuple(angle.shape)
    require(OP, got == expected, f"{name} must have shape {symbols} = {expected}, got {got}")


def require_same_dtype(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """``tensor`` has the dtype of ``other``."""
    if tensor.dtype != other.dtype:
        names = [str(dtype).removeprefix("torch.") for dtype in (other.dtype, tensor.dtype)]
        raise TypeError(f"{OP}: {name} must have the dtype of {other_name}, {names[0]}, got {names[1]}")


def _check_cache_room(a: Arguments, sizes: Sizes) -> None:
    require(OP, a.cache_mode in CACHE_MODES, f"cache_mode must be contiguous or page, got {a.cache_mode!r}")
    if a.cache_mode == "page":
        return
    planes, rows = a.k_cache.shape[:2]
    require(OP, planes >= sizes.batch, f"k_cache.shape[0] must be at least B = {sizes.batch}, got {planes}")
    require(OP, rows >= sizes.length, f"k_cache.shape[1] must be at least S = {sizes.length}, got {rows}")


def _check_indices(a: Arguments, sizes: Sizes) -> None:
    require_dtype(OP, "indices", a.indices, (torch.int32,))
    per_token = a.cache_mode == "page" and a.x.dim() == 3
    count = sizes.batch * sizes.length if per_token else sizes.batch
    valid = a.indices.dim() in (1, 2) and a.indices.numel() == count
    symbols = "B * S" if per_token else "B"
    shape = tuple(a.indices.shape)
    require(OP, valid, f"indices must have 1 or 2 axes and {symbols} = {count} elements, got shape {shape}")


def _check_head_parameter(name: str, tensor: torch.Tensor, sizes: Sizes) -> None:
    require_dtype(OP, name, tensor, (torch.float32,))
    full = (sizes.kv_heads, sizes.head_size)
    shape = tuple(tensor.shape)
    valid = shape == full or (sizes.kv_heads == 1 and shape == full[1:])
    require(OP, valid, f"{name} must have shape [Nkv, D] = {full}, got {shape}")


def _check_leading(name: str, tensor: torch.Tensor, symbols: str, count: int) -> None:
    valid = tensor.dim() == 1 and tensor.shape[0] >= count
    shape = tuple(tensor.shape)
    require(OP, valid, f"{name} must have one axis of at least {symbols} = {count} elements, got shape {shape}")


def _check_dequant(a: Arguments, sizes: Sizes) -> None:
    if a.x.dtype != torch.int32:
        return
    width = a.x.shape[-1]
    require(OP, a.weight_scale is not None, "weight_scale is required for int32 x, got none")
    require_dtype(OP, "weight_scale", a.weight_scale, (torch.float32,))
    shape = tuple(a.weight_scale.shape)
    require(OP, shape == (width,), f"weight_scale must have shape [H] = {(width,)}, got {shape}")
    if a.activation_scale is not None:
        require_dtype(OP, "activation_scale", a.activation_scale, (torch.float32,))
        symbols = "B * S" if a.x.dim() == 3 else "B"
        _check_leading("activation_scale", a.activation_scale, symbols, sizes.batch * sizes.length)
    if a.bias is not None:
        require_dtype(OP, "bias", a.bias, (torch.int32, torch.float32, torch.float16, torch.bfloat16))
        _check_leading("bias", a.bias, "H", width)


def check(a: Arguments) -> Sizes:
    """Checks what can be checked without data; returns the sizes of the call."""
    kv_heads, head_size = _check_caches(a.k_cache, a.v_cache)
    sizes = _check_x(a, kv_heads, head_size)
    require_tensor(OP, "cos", a.cos)
    _check_angle("cos", a.cos, a, sizes)
    _check_angle("sin", a.sin, a, sizes)
    _check_cache_room(a, sizes)
    _check_indices(a, sizes)
    _check_head_parameter("scale_k", a.scale_k, sizes)
    _check_head_parameter("scale_v", a.scale_v, sizes)
    for name, offset in (("offset_k", a.offset_k), ("offset_v", a.offset_v)):
        if offset is not None:
            _check_head_parameter(name, offset, sizes)
    _check_dequant(a, sizes)
    parameters = (a.scale_k, a.scale_v, a.offset_k, a.offset_v)
    check_rope_kv_cache_limits(a.x, a.cos, a.k_cache, parameters, a.activation_scale, a.bias, a.cache_mode)
    return sizes


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake kernel of rope_kv_cache; it leaves the caches alone, as a fake tensor has no data to change."""
    sizes = check(a)
    kv_shape = sizes.kv_shape if a.kv_output else (0,)
    return a.cos.new_empty(sizes.q_shape), a.cos.new_empty(kv_shape), a.cos.new_empty(kv_shape)


def sample_arguments(
    leading: tuple[int, ...],
    heads: tuple[int, int],
    head_size: int,
    dtype: torch.dtype,
    cos_dtype: torch.dtype,
    cache: tuple[int, int],
    indices: Sequence[int],
    seed: int = 0,
) -> dict[str, torch.Tensor | list[int]]:
    """Random required arguments of realistic size: Nq and Nkv are ``heads``, C1 and C2 are ``cache``."""
    generator = torch.Generator().manual_seed(seed)
    q_heads, kv_heads = heads
    width = (q_heads + 2 * kv_heads) * head_size
    if dtype == torch.int32:
        x = torch.randint(-20000, 20001, (*leading, width), dtype=dtype, generator=generator)
    else:
        x = torch.randn(*leading, width, generator=generator).to(dtype)
    angles = torch.rand(*leading, head_size, generator=generator) * 6.28
    if len(leading) == 2:
        angles = angles.unsqueeze(2)
    caches = [
        torch.randint(-128, 128, (*cache, kv_heads, head_size), dtype=torch.int8, generator=generator) for _ in "kv"
    ]
    scales = [torch.rand(kv_heads, head_size, generator=generator) * 0.02 + 0.01 for _ in "kv"]
    return {
        "x": x,
        "cos": angles.cos().to(cos_dtype),
        "sin": angles.sin().to(cos_dtype),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "indices": torch.tensor(indices, dtype=torch.int32),
        "scale_k": scales[0],
        "scale_v": scales[1],
        "size_splits": [q_heads * head_size, kv_heads * head_size, kv_heads * head_size],
    }


def samples() -> Iterator[Sample]:
    """Valid calls of rope_kv_cache."""
    half, wide, integer = torch.float16, torch.bfloat16, torch.int32

    plain = sample_arguments((2, 3), (4, 2), 16, half, half, (2, 8), [0, 5])
    yield Sample("float16, contiguous", Arguments(**plain))
    offset = torch.full((1, 10), 3.5)
    options = {"offset_k": offset, "offset_v": -offset, "kv_output": True, "cache_mode": "page"}
    flat = sample_arguments((5,), (3, 1), 10, wide, wide, (2, 4), [7, -1, 0, 2, 2])
    yield Sample("bfloat16, 2-D x, page, offsets", Arguments(**flat, **options))
    for bias in (None, integer, torch.float32, half):
        arguments = sample_arguments((3, 2), (2, 2), 34, integer, half, (3, 4), [0, 1, 2])
        generator = torch.Generator().manual_seed(1)
        arguments["weight_scale"] = torch.rand(204, generator=generator) * 1e-4
        arguments["activation_scale"] = torch.rand(6, generator=generator) + 0.5
        name = f"int32, bias {bias}"
        if bias is not None:
            bias = torch.randint(-9, 10, (204,), generator=generator).to(bias)
        yield Sample(name, Arguments(**arguments, bias=bias, kv_output=True))
    many = sample_arguments((64, 1), (8, 2), 64, wide, wide, (64, 8), list(range(64)))
    yield Sample("threads", Arguments(**many, cache_mode="page"))
