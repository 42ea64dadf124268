# SPDX-License-Identifier: Apache-2.0
"""Argument rules and sample calls of fused_attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "fused_attention"
ALL = 2147483647  # columns before or after: no limit
SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? q_rope=None, Tensor? k_rope=None, Tensor? k_scale=None, "
    "Tensor? k_offset=None, Tensor? v_scale=None, Tensor? v_offset=None, Tensor? block_table=None, Tensor? mask=None, "
    "Tensor? sink=None, Tensor? q_lengths=None, Tensor? kv_lengths=None, float? softmax_scale=None, "
    f"int before={ALL}, int after={ALL}, bool from_end=False, bool packed=False, bool with_lse=False, "
    "Tensor? out_scale=None, Tensor? out_offset=None, Tensor? bias=None, Tensor? p_scale=None) "
    "-> (Tensor, Tensor)"
)
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
CODES = (torch.int8, torch.int32)  # of k and v; int32: eight int4
MASKS = (torch.bool, torch.int8, torch.uint8)
MOST = 1 << 16  # heads, and values of one


def _require_axes(name: str, tensor: torch.Tensor, axes: int) -> None:
    require(OP, tensor.dim() == axes, f"{name} must have {axes} axes, got shape {tuple(tensor.shape)}")


def head_size(x: torch.Tensor) -> int:
    """Values of a head: int32 words hold eight int4."""
    return x.shape[3] * (8 if x.dtype == torch.int32 else 1)


def unpacked(x: torch.Tensor) -> torch.Tensor:
    """The int4 of int32 words, the first in the lowest bits, each in an int32; other tensors as they are."""
    if x.dtype != torch.int32:
        return x
    return (x.unsqueeze(-1) << torch.arange(28, -4, -4, dtype=torch.int32, device=x.device) >> 28).flatten(-2)


def _check_heads(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    require_dtype(OP, name, tensor, dtypes)
    _require_axes(name, tensor, 4)
    shape = tuple(tensor.shape)
    require(OP, shape[2] >= 1 and shape[3] >= 1, f"{name} must have heads with values, got shape {shape}")
    few = shape[2] <= MOST and head_size(tensor) <= MOST
    require(OP, few, f"{name} must have at most {MOST} heads of at most as many values, got shape {shape}")
    require(OP, shape[3] == 1 or tensor.stride(3) == 1, f"the last axis of {name} should be contiguous")


def _check_same(name: str, tensor: torch.Tensor, like_name: str, like: torch.Tensor, first: int, last: int) -> None:
    """``tensor`` has the axes of ``like`` from ``first`` up to ``last``."""
    expected, got = tuple(like.shape[first:last]), tuple(tensor.shape[first:last])
    require(OP, expected == got, f"{name} must have axes {first} to {last - 1} of {like_name}, {expected}, got {got}")


def _check_q_k_v(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    _check_heads("q", q, (*FLOATS, torch.int8))
    _check_heads("k", k, (torch.int8,) if q.dtype == torch.int8 else (q.dtype, *CODES))
    _check_heads("v", v, (k.dtype,))
    _check_same("v", v, "k", k, 0, 3)
    sizes = q.shape[3], head_size(k)
    require(OP, sizes[0] == sizes[1], f"the heads of k must be as long as those of q, {sizes[0]}, got {sizes[1]}")
    heads = q.shape[2], k.shape[2]
    require(
        OP, heads[0] % heads[1] == 0, f"the heads of q must be a multiple of those of k, got {heads[0]} and {heads[1]}"
    )


def _check_rope(q: torch.Tensor, k: torch.Tensor, q_rope: torch.Tensor | None, k_rope: torch.Tensor | None) -> None:
    require(OP, (q_rope is None) == (k_rope is None), "q_rope and k_rope must be given together")
    if q_rope is None:
        return
    if k.dtype in CODES:
        raise NotImplementedError(f"{OP}: q_rope is not implemented with int8 or int4 k and v")
    for name, rope, like_name, like in (("q_rope", q_rope, "q", q), ("k_rope", k_rope, "k", k)):
        _check_heads(name, rope, (q.dtype,))
        _check_same(name, rope, like_name, like, 0, 3)
    _check_same("k_rope", k_rope, "q_rope", q_rope, 3, 4)


def _check_factors(name: str, factors: torch.Tensor | None, codes: torch.Tensor, required: bool) -> None:
    if codes.dtype not in CODES:
        if factors is not None:
            raise TypeError(f"{OP}: {name} is for int8 or int4 k and v")
        return
    if factors is None and not required:
        return
    require_dtype(OP, name, factors, FLOATS)
    _require_axes(name, factors, 4)
    got, whole = tuple(factors.shape), (*codes.shape[:3], head_size(codes))
    of_tokens = got[0] != 1 or got[1] != 1
    fits = all(size == 1 or size >= all_ for size, all_ in zip(got[:2], whole[:2], strict=True))
    fits = fits and all(size in (1, all_) for size, all_ in zip(got[2:], whole[2:], strict=True))
    fits = fits and (not of_tokens or got[3] == 1)
    sentence = f"{name} must have a value for each head and channel, or for each token, of {whole}, got {got}"
    require(OP, fits, sentence)


def _check_lengths(
    q: torch.Tensor, k: torch.Tensor, lengths: dict[str, torch.Tensor | None], paged: bool, packed: bool
) -> int:
    """How many sequences there are."""
    batch = q.shape[0]
    for name, tensor in lengths.items():
        if tensor is None and not packed:
            continue
        require_dtype(OP, name, tensor, (torch.int64,))
        _require_axes(name, tensor, 1)
        batch = tensor.shape[0] if packed and name == "q_lengths" else batch
        shape = tuple(tensor.shape)
        require(OP, shape == (batch,), f"{name} must have one value for each of {batch} sequences, got shape {shape}")
        require(OP, tensor.is_contiguous(), f"{name} should be contiguous")
    if packed:
        planes = (q.shape[0], 1 if paged else k.shape[0])
        require(OP, planes == (1, 1), f"packed q and k must have one plane, got {planes[0]} and {planes[1]}")
    elif not paged:
        require(OP, k.shape[0] == batch, f"k must have {batch} sequences as q has, got {k.shape[0]}")
    return batch


def _check_block_table(table: torch.Tensor, batch: int, kv_lengths: torch.Tensor | None) -> None:
    require_dtype(OP, "block_table", table, (torch.int32,))
    _require_axes("block_table", table, 2)
    got = tuple(table.shape)
    require(OP, got[0] == batch, f"block_table must be [B, blocks] with B = {batch}, got shape {got}")
    require(OP, kv_lengths is not None, "kv_lengths must be given for a block_table")


def _check_planes(
    name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], batch: int, heads: int, packed: bool
) -> None:
    """A mask or bias."""
    require_dtype(OP, name, tensor, dtypes)
    _require_axes(name, tensor, 4)
    if packed:
        raise NotImplementedError(f"{OP}: {name} is not implemented for packed sequences")
    shape = tuple(tensor.shape)
    fits = shape[0] in (1, batch) and shape[1] in (1, heads)
    require(OP, fits, f"{name} must have 1 or {batch} sequences and 1 or {heads} heads, got shape {shape}")


def _check_integer_products(
    q: torch.Tensor, p_scale: torch.Tensor | None, factors: tuple[torch.Tensor | None, ...]
) -> None:
    """``factors``: k_scale, v_scale and the offsets."""
    if q.dtype != torch.int8:
        if p_scale is not None:
            raise TypeError(f"{OP}: p_scale is for int8 q")
        return
    require_dtype(OP, "p_scale", p_scale, FLOATS)
    require(OP, tuple(p_scale.shape) == (1,), f"p_scale must have shape (1,), got {tuple(p_scale.shape)}")
    by_head = factors[2] is None and factors[3] is None and all(x.shape[:2] == (1, 1) for x in factors[:2])
    by_head = by_head and all(x.shape[3] == 1 for x in factors[:2])
    require(OP, by_head, "k and v of int8 q must have one scale for each head and no offsets")


def _check_out_factors(name: str, factors: torch.Tensor, heads: int, size: int) -> None:
    require_dtype(OP, name, factors, FLOATS)
    _require_axes(name, factors, 2)
    shape = tuple(factors.shape)
    fits = shape[0] in (1, heads) and (shape[1] == 1 or (shape[1] == size and factors.stride(1) == 1))
    values = f"1 or {heads} heads of 1 or {size} contiguous values"
    require(OP, fits, f"{name} must have {values}, got shape {shape}")


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    k_offset: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    v_offset: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    q_lengths: torch.Tensor | None = None,
    kv_lengths: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    before: int = ALL,
    after: int = ALL,
    from_end: bool = False,
    packed: bool = False,
    with_lse: bool = False,
    out_scale: torch.Tensor | None = None,
    out_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    p_scale: torch.Tensor | None = None,
) -> None:
    """Checks what can be checked without data."""
    _check_q_k_v(q, k, v)
    _check_rope(q, k, q_rope, k_rope)
    for name, factors, codes in (("k_scale", k_scale, k), ("v_scale", v_scale, v)):
        _check_factors(name, factors, codes, required=True)
    for name, factors, codes in (("k_offset", k_offset, k), ("v_offset", v_offset, v)):
        _check_factors(name, factors, codes, required=False)
    _check_integer_products(q, p_scale, (k_scale, v_scale, k_offset, v_offset))
    lengths = {"q_lengths": q_lengths, "kv_lengths": kv_lengths}
    batch = _check_lengths(q, k, lengths, block_table is not None, packed)
    if block_table is not None:
        _check_block_table(block_table, batch, kv_lengths)
    if mask is not None:
        _check_planes("mask", mask, MASKS, batch, q.shape[2], packed)
    if bias is not None:
        _check_planes("bias", bias, FLOATS, batch, q.shape[2], packed)
        dense = bias.shape[3] <= 1 or bias.stride(3) == 1
        require(OP, dense, "the last axis of bias should be contiguous")
    if sink is not None:
        require_dtype(OP, "sink", sink, FLOATS)
        shape = tuple(sink.shape)
        require(OP, shape == (q.shape[2],), f"sink must have shape ({q.shape[2]},), one score a head, got {shape}")
    require(OP, out_offset is None or out_scale is not None, "out_scale must be given for an out_offset")
    for name, factors in (("out_scale", out_scale), ("out_offset", out_offset)):
        if factors is not None:
            _check_out_factors(name, factors, q.shape[2], head_size(v))


def named_arguments(*args, **kwargs) -> dict[str, Any]:
    """Those of a call, checked, and the defaults of the others."""
    check(*args, **kwargs)
    bound = inspect.signature(check).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def out_dtype(q: torch.Tensor, out_scale: torch.Tensor | None) -> torch.dtype:
    """That of the result."""
    if out_scale is not None:
        return torch.int8
    return torch.float16 if q.dtype == torch.int8 else q.dtype


def fake(*args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake kernel of fused_attention."""
    named = named_arguments(*args, **kwargs)
    q = named["q"]
    lse = q.new_empty(q.shape[:3] if named["with_lse"] else (0,), dtype=torch.float32)
    return q.new_empty((*q.shape[:3], head_size(named["v"])), dtype=out_dtype(q, named["out_scale"])), lse


def samples() -> Iterator[Sample]:
    """Valid calls of fused_attention."""
    generator = torch.Generator().manual_seed(0)

    def reals(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values)

    none = (None,) * 9
    decode = (reals(2, 1, 6, 16), reals(2, 30, 2, 16), reals(2, 30, 2, 24))
    yield Sample("decode", (*decode, *none, None, numbers(30, 7)))
    half = [reals(2, 9, *sizes, dtype=torch.float16) for sizes in ((4, 16), (4, 16), (4, 8))]
    causal = (None, ALL, 0, True, False, True)
    yield Sample("causal with log-sum-exp", (*half, *none, numbers(9, 4), numbers(9, 6), *causal))
    table = torch.tensor([[4, 0, 3], [2, -1, -1]], dtype=torch.int32)
    scale = reals(1, 1, 2, 32).abs() / 99
    cache = (reals(2, 1, 4, 32, dtype=torch.bfloat16), codes(5, 8, 2, 32), codes(5, 8, 2, 32))
    factors = (None, None, scale, None, scale, scale)
    yield Sample("int8 in blocks", (*cache, *factors, table, None, None, None, numbers(20, 3)))
    tokens = reals(2, 20, 1, 1).abs() / 99
    rows = (reals(2, 3, 2, 8), codes(2, 20, 1, 8), codes(2, 20, 1, 8))
    mask = reals(1, 1, 3, 20) > 0.5
    yield Sample("int8 by tokens, mask", (*rows, None, None, tokens, tokens, tokens, None, None, mask))
    to_codes = (*[None] * 3, ALL, ALL, False, False, False, reals(6, 24).abs() * 50, reals(1, 1))
    yield Sample("decode, int8 result", (*decode, *none, *to_codes))
    numbers_8 = codes(2, 3, 4, 16), codes(2, 20, 2, 16), codes(2, 20, 2, 16)
    products = (None, None, reals(1, 1, 1, 1).abs() / 500, None, reals(1, 1, 1, 1).abs() / 9)
    rest = (*[None] * 6, ALL, 0, True, False, True, None, None, reals(1, 4, 3, 20), torch.tensor([127.0]))
    yield Sample("int8 products, bias", (*numbers_8, *products, None, *rest))
    words = [torch.randint(-(2**31), 2**31, (5, 8, 2, 4), generator=generator, dtype=torch.int32) for _ in range(2)]
    yield Sample("int4 in blocks", (cache[0], *words, *factors, table, None, None, None, numbers(20, 3)))
    packed = (reals(1, 10, 4, 8), reals(1, 14, 2, 8), reals(1, 14, 2, 8), reals(1, 10, 4, 4), reals(1, 14, 2, 4))
    ends = (numbers(4, 10), numbers(8, 14), 0.3, 3, 0, True, True)
    yield Sample("packed with ropes and sinks", (*packed, *[None] * 6, reals(4), *ends))
