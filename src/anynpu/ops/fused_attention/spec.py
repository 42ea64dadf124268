# SPDX-License-Identifier: Apache-2.0
"""Argument rules and sample calls of fused_attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
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


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    q_rope: torch.Tensor | None = None
    k_rope: torch.Tensor | None = None
    k_scale: torch.Tensor | None = None
    k_offset: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    v_offset: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    sink: torch.Tensor | None = None
    q_lengths: torch.Tensor | None = None
    kv_lengths: torch.Tensor | None = None
    softmax_scale: float | None = None
    before: int = ALL
    after: int = ALL
    from_end: bool = False
    packed: bool = False
    with_lse: bool = False
    out_scale: torch.Tensor | None = None
    out_offset: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    p_scale: torch.Tensor | None = None

    @property
    def scale(self) -> float:
        """``softmax_scale`` or what stands for it."""
        return self.q.shape[3] ** -0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def out_dtype(self) -> torch.dtype:
        """That of the result."""
        if self.out_scale is not None:
            return torch.int8
        return torch.float16 if self.q.dtype == torch.int8 else self.q.dtype


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


def _check_q_k_v(a: Arguments) -> None:
    _check_heads("q", a.q, (*FLOATS, torch.int8))
    _check_heads("k", a.k, (torch.int8,) if a.q.dtype == torch.int8 else (a.q.dtype, *CODES))
    _check_heads("v", a.v, (a.k.dtype,))
    _check_same("v", a.v, "k", a.k, 0, 3)
    sizes = a.q.shape[3], head_size(a.k)
    require(OP, sizes[0] == sizes[1], f"the heads of k must be as long as those of q, {sizes[0]}, got {sizes[1]}")
    heads = a.q.shape[2], a.k.shape[2]
    require(
        OP, heads[0] % heads[1] == 0, f"the heads of q must be a multiple of those of k, got {heads[0]} and {heads[1]}"
    )


def _check_rope(a: Arguments) -> None:
    require(OP, (a.q_rope is None) == (a.k_rope is None), "q_rope and k_rope must be given together")
    if a.q_rope is None:
        return
    if a.k.dtype in CODES:
        raise NotImplementedError(f"{OP}: q_rope is not implemented with int8 or int4 k and v")
    for name, rope, like_name, like in (("q_rope", a.q_rope, "q", a.q), ("k_rope", a.k_rope, "k", a.k)):
        _check_heads(name, rope, (a.q.dtype,))
        _check_same(name, rope, like_name, like, 0, 3)
    _check_same("k_rope", a.k_rope, "q_rope", a.q_rope, 3, 4)


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


def _check_lengths(a: Arguments) -> int:
    """How many sequences there are."""
    batch, paged = a.q.shape[0], a.block_table is not None
    for name, tensor in (("q_lengths", a.q_lengths), ("kv_lengths", a.kv_lengths)):
        if tensor is None and not a.packed:
            continue
        require_dtype(OP, name, tensor, (torch.int64,))
        _require_axes(name, tensor, 1)
        batch = tensor.shape[0] if a.packed and name == "q_lengths" else batch
        shape = tuple(tensor.shape)
        require(OP, shape == (batch,), f"{name} must have one value for each of {batch} sequences, got shape {shape}")
        require(OP, tensor.is_contiguous(), f"{name} should be contiguous")
    if a.packed:
        planes = (a.q.shape[0], 1 if paged else a.k.shape[0])
        require(OP, planes == (1, 1), f"packed q and k must have one plane, got {planes[0]} and {planes[1]}")
    elif not paged:
        require(OP, a.k.shape[0] == batch, f"k must have {batch} sequences as q has, got {a.k.shape[0]}")
    return batch


def _check_block_table(a: Arguments, batch: int) -> None:
    require_dtype(OP, "block_table", a.block_table, (torch.int32,))
    _require_axes("block_table", a.block_table, 2)
    got = tuple(a.block_table.shape)
    require(OP, got[0] == batch, f"block_table must be [B, blocks] with B = {batch}, got shape {got}")
    require(OP, a.kv_lengths is not None, "kv_lengths must be given for a block_table")


def _check_planes(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...], batch: int, a: Arguments) -> None:
    """A mask or bias."""
    require_dtype(OP, name, tensor, dtypes)
    _require_axes(name, tensor, 4)
    if a.packed:
        raise NotImplementedError(f"{OP}: {name} is not implemented for packed sequences")
    shape, heads = tuple(tensor.shape), a.q.shape[2]
    fits = shape[0] in (1, batch) and shape[1] in (1, heads)
    require(OP, fits, f"{name} must have 1 or {batch} sequences and 1 or {heads} heads, got shape {shape}")


def _check_integer_products(a: Arguments) -> None:
    if a.q.dtype != torch.int8:
        if a.p_scale is not None:
            raise TypeError(f"{OP}: p_scale is for int8 q")
        return
    require_dtype(OP, "p_scale", a.p_scale, FLOATS)
    require(OP, tuple(a.p_scale.shape) == (1,), f"p_scale must have shape (1,), got {tuple(a.p_scale.shape)}")
    scales = (a.k_scale, a.v_scale)
    by_head = a.k_offset is None and a.v_offset is None and all(scale.shape[:2] == (1, 1) for scale in scales)
    by_head = by_head and all(scale.shape[3] == 1 for scale in scales)
    require(OP, by_head, "k and v of int8 q must have one scale for each head and no offsets")


def _check_out_factors(name: str, factors: torch.Tensor, heads: int, size: int) -> None:
    require_dtype(OP, name, factors, FLOATS)
    _require_axes(name, factors, 2)
    shape = tuple(factors.shape)
    fits = shape[0] in (1, heads) and (shape[1] == 1 or (shape[1] == size and factors.stride(1) == 1))
    values = f"1 or {heads} heads of 1 or {size} contiguous values"
    require(OP, fits, f"{name} must have {values}, got shape {shape}")


def check(a: Arguments) -> None:
    """Checks what can be checked without data."""
    _check_q_k_v(a)
    _check_rope(a)
    for name, factors, codes in (("k_scale", a.k_scale, a.k), ("v_scale", a.v_scale, a.v)):
        _check_factors(name, factors, codes, required=True)
    for name, factors, codes in (("k_offset", a.k_offset, a.k), ("v_offset", a.v_offset, a.v)):
        _check_factors(name, factors, codes, required=False)
    _check_integer_products(a)
    batch = _check_lengths(a)
    if a.block_table is not None:
        _check_block_table(a, batch)
    if a.mask is not None:
        _check_planes("mask", a.mask, MASKS, batch, a)
    if a.bias is not None:
        _check_planes("bias", a.bias, FLOATS, batch, a)
        dense = a.bias.shape[3] <= 1 or a.bias.stride(3) == 1
        require(OP, dense, "the last axis of bias should be contiguous")
    heads = a.q.shape[2]
    if a.sink is not None:
        require_dtype(OP, "sink", a.sink, FLOATS)
        shape = tuple(a.sink.shape)
        require(OP, shape == (heads,), f"sink must have shape ({heads},), one score a head, got {shape}")
    require(OP, a.out_offset is None or a.out_scale is not None, "out_scale must be given for an out_offset")
    for name, factors in (("out_scale", a.out_scale), ("out_offset", a.out_offset)):
        if factors is not None:
            _check_out_factors(name, factors, heads, head_size(a.v))


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake kernel of fused_attention."""
    check(a)
    lse = a.q.new_empty(a.q.shape[:3] if a.with_lse else (0,), dtype=torch.float32)
    return a.q.new_empty((*a.q.shape[:3], head_size(a.v)), dtype=a.out_dtype), lse


def samples() -> Iterator[Sample]:
    """Valid calls of fused_attention."""
    generator = torch.Generator().manual_seed(0)

    def reals(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def codes(*shape: int) -> torch.Tensor:
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values)

    queries, keys, values = reals(2, 1, 6, 16), reals(2, 30, 2, 16), reals(2, 30, 2, 24)
    yield Sample("decode", Arguments(queries, keys, values, kv_lengths=numbers(30, 7)))
    half = [reals(2, 9, *sizes, dtype=torch.float16) for sizes in ((4, 16), (4, 16), (4, 8))]
    lengths = {"q_lengths": numbers(9, 4), "kv_lengths": numbers(9, 6)}
    yield Sample("causal with log-sum-exp", Arguments(*half, **lengths, after=0, from_end=True, with_lse=True))
    table = torch.tensor([[4, 0, 3], [2, -1, -1]], dtype=torch.int32)
    scale = reals(1, 1, 2, 32).abs() / 99
    few = reals(2, 1, 4, 32, dtype=torch.bfloat16)
    paged = {"k_scale": scale, "v_scale": scale, "v_offset": scale, "block_table": table, "kv_lengths": numbers(20, 3)}
    yield Sample("int8 in blocks", Arguments(few, codes(5, 8, 2, 32), codes(5, 8, 2, 32), **paged))
    tokens = reals(2, 20, 1, 1).abs() / 99
    by_tokens = {"k_scale": tokens, "k_offset": tokens, "v_scale": tokens, "mask": reals(1, 1, 3, 20) > 0.5}
    rows = (reals(2, 3, 2, 8), codes(2, 20, 1, 8), codes(2, 20, 1, 8))
    yield Sample("int8 by tokens, mask", Arguments(*rows, **by_tokens))
    to_codes = {"out_scale": reals(6, 24).abs() * 50, "out_offset": reals(1, 1)}
    yield Sample("decode, int8 result", Arguments(queries, keys, values, **to_codes))
    products = {
        "k_scale": reals(1, 1, 1, 1).abs() / 500,
        "v_scale": reals(1, 1, 1, 1).abs() / 9,
        "after": 0,
        "from_end": True,
        "with_lse": True,
        "bias": reals(1, 4, 3, 20),
        "p_scale": torch.tensor([127.0]),
    }
    int8 = codes(2, 3, 4, 16), codes(2, 20, 2, 16), codes(2, 20, 2, 16)
    yield Sample("int8 products, bias", Arguments(*int8, **products))
    words = [torch.randint(-(2**31), 2**31, (5, 8, 2, 4), generator=generator, dtype=torch.int32) for _ in range(2)]
    yield Sample("int4 in blocks", Arguments(few, *words, **paged))
    packed = {
        "q_rope": reals(1, 10, 4, 4),
        "k_rope": reals(1, 14, 2, 4),
        "sink": reals(4),
        "q_lengths": numbers(4, 10),
        "kv_lengths": numbers(8, 14),
        "softmax_scale": 0.3,
        "before": 3,
        "after": 0,
        "from_end": True,
        "packed": True,
    }
    together = (reals(1, 10, 4, 8), reals(1, 14, 2, 8), reals(1, 14, 2, 8))
    yield Sample("packed with ropes and sinks", Arguments(*together, **packed))
