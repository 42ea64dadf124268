# SPDX-License-Identifier: Apache-2.0
"""The published operators that write rows to caches of keys and values, and do little else: torch moves the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from anynpu._check import require, require_dtype
from anynpu.compat import formats
from anynpu.compat.float_operators import interleaved_rope, rms_norm
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_INDICES = (torch.int32, torch.int64)


def _c0(cache: torch.Tensor) -> int:
    """The last axis of FRACTAL_NZ: 32 bytes."""
    return 32 // cache.element_size()


@dataclass(frozen=True)
class _Places:
    """Where rows go on the first two axes of a cache.

    A row that is left out writes what another writes, where that does: shapes then do not depend on the data.
    """

    first: torch.Tensor
    second: torch.Tensor
    kept: torch.Tensor  # which rows are not left out
    other: torch.Tensor  # (1,): one of them, if there are any

    @classmethod
    def of(cls, op: str, cache: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> _Places:
        """Of indices, which must fit; a negative ``second`` leaves a row out."""
        fits = ((second < cache.shape[1]) & (first < cache.shape[0])).all()
        torch._assert_async(fits, f"{op}: indices must be less than the places of the cache, {tuple(cache.shape[:2])}")
        kept = second >= 0
        if second.shape[0] == 0:
            return cls(first.long(), second.long(), kept, second.long())
        other = kept.to(torch.int8).argmax(0, keepdim=True)
        first, second = (torch.where(kept, x, x.index_select(0, other)).long().clamp_min(0) for x in (first, second))
        return cls(first, second, kept, other)

    @classmethod
    def of_slots(cls, op: str, cache: torch.Tensor, slots: torch.Tensor) -> _Places:
        """In a cache (blocks, places of a block, ...): slot s is place ``s % places`` of block ``s // places``."""
        places = max(cache.shape[1], 1)  # a block of none is refused with all others
        blocks = slots.div(places, rounding_mode="floor").clamp_min(0)
        return cls.of(op, cache, blocks, torch.where(slots < 0, -1, slots.remainder(places)))

    def write(self, cache: torch.Tensor, rows: torch.Tensor) -> None:
        """``cache[first[i], second[i]] = rows[i]``, in place."""
        if rows.shape[0] == 0:
            return
        there = cache[self.first[:1], self.second[:1]]  # where all go if none is kept
        other = torch.where(self.kept.any(), rows.index_select(0, self.other), there)
        values = torch.where(self.kept.view(-1, *[1] * (rows.dim() - 1)), rows, other)
        cache.index_put_((self.first, self.second), values)


def _of_each(places: Callable[[torch.Tensor], _Places], caches: Sequence[torch.Tensor]) -> list[_Places]:
    """The places in each cache; those of the first where another has as many."""
    first = places(caches[0])
    return [first if cache.shape[:2] == caches[0].shape[:2] else places(cache) for cache in caches]


def _by_slot(op: str, name: str, cache: torch.Tensor, heads: int, size: int, nz: bool) -> torch.Tensor:
    """The cache with its blocks and their slots on the first two axes."""
    c0 = _c0(cache)
    if not nz:
        order, row, expected = (0, 1, 2, 3), (heads, size), f"(blocks, block size, {heads}, {size})"
    elif cache.dim() == 5:
        order, row = (0, 3, 1, 2, 4), (heads, size // c0, c0)
        expected = f"(blocks, {heads}, {size // c0}, block size, {c0})"
    else:
        order, row = (0, 2, 1, 3), (heads * size // c0, c0)
        expected = f"(blocks, {row[0]}, block size, {c0})"
    by_slot = cache.permute(order) if cache.dim() == len(order) else cache
    fits = by_slot.dim() == len(order) and by_slot.shape[2:] == row
    require(op, fits, f"{name} must have shape {expected}, got {tuple(cache.shape)}")
    whole = math.prod(row) == heads * size
    require(op, whole, f"heads of {name} must be multiples of {c0} for FRACTAL_NZ, got {heads} of {size}")
    return by_slot


def _write_tokens(
    op: str, tokens: dict[str, torch.Tensor], caches: dict[str, torch.Tensor], slots: torch.Tensor, nz: bool
) -> None:
    require_dtype(op, "slots", slots, _INDICES)
    checked = []
    for (name, rows), (cache_name, cache) in zip(tokens.items(), caches.items(), strict=True):
        require(op, rows.dim() == 3, f"{name} must have shape (T, N, D), got {tuple(rows.shape)}")
        require_dtype(op, cache_name, cache, (rows.dtype,))
        count, heads, size = rows.shape
        require(
            op,
            tuple(slots.shape) == (count,),
            f"there must be {count} slots, as many as rows, got {tuple(slots.shape)}",
        )
        by_slot = _by_slot(op, cache_name, cache, heads, size, nz)
        checked.append((by_slot, rows.reshape(count, *by_slot.shape[2:])))
    places = _of_each(lambda cache: _Places.of_slots(op, cache, slots), [cache for cache, _ in checked])
    for (cache, rows), place in zip(checked, places, strict=True):
        place.write(cache, rows)


@published(
    "npu_scatter_pa_kv_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_mapping, *, Tensor? compress_lens=None, Tensor? compress_seq_offsets=None, Tensor? seq_lens=None, "
    "str? cache_mode='PA_NZ') -> ()",
    "aclnnScatterPaKvCache",
)
def npu_scatter_pa_kv_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    compress_lens: torch.Tensor | None = None,
    compress_seq_offsets: torch.Tensor | None = None,
    seq_lens: torch.Tensor | None = None,
    cache_mode: str | None = "PA_NZ",
) -> None:
    """Writes the keys and values of tokens to the slots of paged caches; a token with a negative slot is left out.

    Caches are (blocks, block size, N, D) for "Norm" and for "PA_NZ" (blocks, N * D / C0, block size, C0), or
    (blocks, N, D / C0, block size, C0).
    """
    op = "npu_scatter_pa_kv_cache"
    require_absent(compress_lens=compress_lens, compress_seq_offsets=compress_seq_offsets, seq_lens=seq_lens)
    require(op, cache_mode in ("PA_NZ", "Norm", None), f"cache_mode must be 'PA_NZ' or 'Norm', got {cache_mode!r}")
    caches = {"key_cache": key_cache, "value_cache": value_cache}
    _write_tokens(op, {"key": key, "value": value}, caches, slot_mapping, cache_mode == "PA_NZ")


@published(
    "_npu_reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_indices) -> ()",
    "ReshapeAndCache",
)
def _npu_reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_indices: torch.Tensor,
) -> None:
    """``npu_scatter_pa_kv_cache`` with caches (blocks, block size, N, D)."""
    if formats.is_nz(key_cache) or formats.is_nz(value_cache):
        raise NotImplementedError("caches must be in the format ND, got FRACTAL_NZ")
    caches = {"key_cache": key_cache, "value_cache": value_cache}
    _write_tokens("_npu_reshape_and_cache", {"key": key, "value": value}, caches, slot_indices, nz=False)


@published(
    "npu_kv_rmsnorm_rope_cache(Tensor kv, Tensor gamma, Tensor cos, Tensor sin, Tensor index, Tensor(a!) k_cache, "
    "Tensor(b!) ckv_cache, *, Tensor? k_rope_scale=None, Tensor? c_kv_scale=None, Tensor? k_rope_offset=None, "
    "Tensor? c_kv_offset=None, Tensor? v=None, float epsilon=1e-05, str cache_mode='Norm', bool is_output_kv=False) "
    "-> (Tensor(a!), Tensor(b!), Tensor, Tensor)",
    "aclnnKvRmsNormRopeCache",
)
def npu_kv_rmsnorm_rope_cache(
    kv: torch.Tensor,
    gamma: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    index: torch.Tensor,
    k_cache: torch.Tensor,
    ckv_cache: torch.Tensor,
    *,
    k_rope_scale: torch.Tensor | None = None,
    c_kv_scale: torch.Tensor | None = None,
    k_rope_offset: torch.Tensor | None = None,
    c_kv_offset: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    epsilon: float = 1e-5,
    cache_mode: str = "Norm",
    is_output_kv: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row of kv (B, 1, S, latent + rope) the latent part is normalised and the rest rotated, as by
    ``npu_interleave_rope``; both are written to the caches. Returns these, and what was written in the dtype of kv.

    An int8 cache takes ``round(value * scale)``. A token with a negative index is left out.
    """
    op = "npu_kv_rmsnorm_rope_cache"
    require_absent(k_rope_offset=k_rope_offset, c_kv_offset=c_kv_offset, v=v)
    require_dtype(op, "kv", kv, _FLOATS)
    require_dtype(op, "index", index, _INDICES)
    require(op, kv.dim() == 4, f"4D tensor expected for input kv, got {kv.dim()}D")
    require(op, gamma.dim() == 1, f"1D tensor expected for input gamma, got {gamma.dim()}D")
    require(op, cos.dim() == 4, f"4D tensor expected for input cos, got {cos.dim()}D")
    known = cache_mode in ("Norm", "PA", "PA_BNSD", "PA_NZ")
    require(op, known, f"cache_mode must be Norm, PA, PA_BNSD or PA_NZ (others are not implemented), got {cache_mode}")
    sizes = cos.shape[-1], gamma.shape[0]
    expected = (kv.shape[0], 1, kv.shape[2], sum(sizes))
    require(
        op,
        tuple(kv.shape) == expected,
        f"kv must have shape (B, 1, S, rope + latent), {expected}, got {tuple(kv.shape)}",
    )
    tokens = (kv.shape[0], kv.shape[2])
    places = tokens if cache_mode == "Norm" else (tokens[0] * tokens[1],)
    require(op, tuple(index.shape) == places, f"index must have shape {places}, got {tuple(index.shape)}")
    written = []
    for name, cache, scale, size in zip(
        ("k_cache", "ckv_cache"), (k_cache, ckv_cache), (k_rope_scale, c_kv_scale), sizes, strict=True
    ):
        require_dtype(op, name, cache, (kv.dtype if scale is None else torch.int8,))
        if scale is not None:
            require(op, scale.numel() == size, f"the scale of {name} must have {size} values, got {scale.numel()}")
        written.append(_latent_rows(op, name, cache, size, tokens[0], cache_mode))
    latent, rope = kv.split((sizes[1], sizes[0]), -1)
    values = (
        interleaved_rope(op, "the rotated part of kv", rope, cos, sin),
        rms_norm(op, "kv", latent, gamma, epsilon)[0],
    )
    rows = tokens[0] * tokens[1]
    if cache_mode == "Norm":
        batch = torch.arange(tokens[0], device=kv.device).repeat_interleave(tokens[1], output_size=rows)
        places = _of_each(lambda cache: _Places.of(op, cache, batch, index.flatten()), written)
    else:
        places = _of_each(lambda cache: _Places.of_slots(op, cache, index), written)
    for view, place, value, scale in zip(written, places, values, (k_rope_scale, c_kv_scale), strict=True):
        if scale is not None:
            value = (value * scale.float().flatten()).round().clamp(-128, 127)
        place.write(view, value.to(view.dtype).reshape(rows, *view.shape[2:]))
    return k_cache, ckv_cache, *(value.to(kv.dtype) for value in values)


def _latent_rows(op: str, name: str, cache: torch.Tensor, size: int, batch: int, mode: str) -> torch.Tensor:
    """The cache with its places in the first two axes."""
    got = tuple(cache.shape)
    if mode == "Norm":
        fits = len(got) == 4 and got[:2] == (batch, 1) and got[3] == size
        require(op, fits, f"{name} must have shape ({batch}, 1, L, {size}), got {got}")
        return cache[:, 0]
    fits = len(got) == 4 and got[2:] == (1, size)
    require(op, fits, f"{name} must have shape (blocks, block size, 1, {size}), got {got}")
    if mode != "PA_NZ":
        return cache
    c0 = _c0(cache)
    fits = size % c0 == 0 and cache.is_contiguous()
    require(op, fits, f"{name} must be contiguous and its last axis a multiple of {c0} for PA_NZ, got {size}")
    return cache.view(got[0], size // c0, got[1], c0).transpose(1, 2)


@published("scatter_update(Tensor data, Tensor indices, Tensor updates, int axis) -> Tensor", "aclnnScatterUpdate")
def scatter_update(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: int) -> torch.Tensor:
    """A copy of ``data`` with ``updates[i]`` in ``data[i]``, from ``indices[i]`` on along ``axis``."""
    return _scatter_update("scatter_update", data.clone(), indices, updates, axis)


@published(
    "scatter_update_(Tensor(a!) data, Tensor indices, Tensor updates, int axis) -> Tensor(a!)", "aclnnScatterUpdate"
)
def scatter_update_(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: int) -> torch.Tensor:
    """``scatter_update`` in place; returns ``data``."""
    return _scatter_update("scatter_update_", data, indices, updates, axis)


_QUANT_SCATTER = (
    "(Tensor{} self, Tensor indices, Tensor updates, Tensor quant_scales, Tensor? quant_zero_points=None, "
    "int axis=-2, int quant_axis=-1, str reduce='update', int? dst_type=None, str? round_mode='rint') -> Tensor{}"
)


@published("npu_quant_scatter" + _QUANT_SCATTER.format("", ""), "aclnnQuantScatter")
def npu_quant_scatter(
    self: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    quant_scales: torch.Tensor,
    quant_zero_points: torch.Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: Dtype | None = None,
    round_mode: str | None = "rint",
) -> torch.Tensor:
    """``scatter_update`` of an int8 tensor with ``round(updates / quant_scales + quant_zero_points)``."""
    op = "npu_quant_scatter"
    _require_int8_update(op, self, updates, quant_axis, reduce, dst_type, round_mode)
    codes = _codes(op, updates, quant_scales, quant_zero_points)
    return _scatter_update(op, self.clone(), indices, codes, axis)


@published("npu_quant_scatter_" + _QUANT_SCATTER.format("(a!)", "(a!)"), "aclnnInplaceQuantScatter")
def npu_quant_scatter_(
    self: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    quant_scales: torch.Tensor,
    quant_zero_points: torch.Tensor | None = None,
    axis: int = -2,
    quant_axis: int = -1,
    reduce: str = "update",
    dst_type: Dtype | None = None,
    round_mode: str | None = "rint",
) -> torch.Tensor:
    """``npu_quant_scatter`` in place; returns ``self``."""
    op = "npu_quant_scatter_"
    _require_int8_update(op, self, updates, quant_axis, reduce, dst_type, round_mode)
    codes = _codes(op, updates, quant_scales, quant_zero_points)
    return _scatter_update(op, self, indices, codes, axis)


def _require_int8_update(
    op: str,
    data: torch.Tensor,
    updates: torch.Tensor,
    quant_axis: int,
    reduce: str,
    dst_type: Dtype | None,
    round_mode: str | None,
) -> None:
    """int8 codes of the last axis take the place of others: all that ``npu_quant_scatter`` does here."""
    require_dtype(op, "self", data, (torch.int8,))
    require_dtype(op, "updates", updates, _FLOATS)
    require(op, reduce == "update", f"reduce must be 'update', got {reduce!r}")
    last = quant_axis in (-1, updates.dim() - 1)
    require(op, last, f"quant_axis must be the last of updates, got {quant_axis}")
    int8 = dst_type is None or torch_dtype("dst_type", dst_type) in (torch.int8, torch.qint8)
    require_absent(dst_type=None if int8 else dst_type, round_mode=None if round_mode in ("rint", None) else round_mode)


def _codes(op: str, updates: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None) -> torch.Tensor:
    """int8 of ``updates``, with a scale and a zero point for each place of the last axis."""
    require_dtype(op, "quant_scales", scales, _FLOATS)
    size = updates.shape[-1]
    for name, factors in (("quant_scales", scales), ("quant_zero_points", zero_points)):
        fits = factors is None or factors.numel() == size
        require(op, fits, f"{name} must have {size} elements, got {0 if factors is None else factors.numel()}")
    codes = updates.float() / scales.float().flatten()
    if zero_points is not None:
        require_dtype(op, "quant_zero_points", zero_points, (*_FLOATS, torch.int32))
        codes = codes + zero_points.float().flatten()
    return codes.round().clamp(-128, 127).to(torch.int8)


def _scatter_update(
    op: str, data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: int
) -> torch.Tensor:
    require_dtype(op, "indices", indices, _INDICES)
    require_dtype(op, "updates", updates, (data.dtype,))
    if indices.dim() != 1:
        raise NotImplementedError(f"indices must have 1 axis, others are not implemented, got {indices.dim()}")
    known = -data.dim() < axis < data.dim() and axis != 0
    require(op, known, f"axis must be one of data, which has {data.dim()}, but not the first, got {axis}")
    shapes = [list(tensor.shape) for tensor in (data, updates)]
    count, room = (shape.pop(axis) for shape in reversed(shapes))
    fits = shapes[0][1:] == shapes[1][1:] and len(indices) == len(updates) <= len(data) and count <= room
    got = tuple(data.shape), tuple(indices.shape), tuple(updates.shape)
    require(
        op,
        fits,
        f"updates must have the axes of data, at most as long in the first and axis {axis}, and an index each; {got}",
    )
    inside = ((indices >= 0) & (indices <= room - count)).all()
    torch._assert_async(inside, f"{op}: indices must be at least 0 and at most {room - count}")
    places = indices.long()[:, None] + torch.arange(count, device=data.device)
    batch = torch.arange(len(updates), device=data.device)[:, None]
    if torch.compiler.is_compiling() or updates.untyped_storage()._cdata == data.untyped_storage()._cdata:
        updates = updates.clone()  # they may be rows of data, which are read before they are written
    data.movedim(axis, 1).index_put_((batch, places), updates.movedim(axis, 1))
    return data
