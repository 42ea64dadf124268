# SPDX-License-Identifier: Apache-2.0
"""Oracle of rope_kv_cache in float64, written for reading, and how far a float32 kernel may be from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._arguments import takes
from anynpu.ops.rope_kv_cache.spec import OP, Arguments, Sizes, check


def _dequantise(a: Arguments) -> torch.Tensor:
    """float64 [B * S, H]; an int32 bias is added before scaling, a float bias after it."""
    y = a.x.double().flatten(0, -2)
    if a.x.dtype != torch.int32:
        return y
    tokens, width = y.shape
    scale = a.weight_scale.double()
    if a.activation_scale is not None:
        scale = scale * a.activation_scale[:tokens].double().unsqueeze(1)
    if a.bias is None:
        return y * scale
    bias = a.bias[:width]
    if bias.dtype == torch.int32:
        return (y + bias.double()) * scale
    return y * scale + bias.double()


def _heads(y: torch.Tensor, size_splits: Sequence[int], head_size: int) -> list[torch.Tensor]:
    """q, k, v: [B * S, N, D] each."""
    parts = y.split(list(size_splits), dim=-1)
    return [part.unflatten(-1, (part.shape[-1] // head_size, head_size)) for part in parts]


def _rotate(t: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Half rotation; t is [B * S, N, D], cos and sin are [B * S, 1, D]."""
    low, high = t.chunk(2, dim=-1)
    return t * cos + torch.cat([-high, low], dim=-1) * sin


def _angles(cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if cos.dim() == 2:
        return cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    return cos.double().flatten(0, 1), sin.double().flatten(0, 1)


def _code(value: torch.Tensor) -> torch.Tensor:
    """float64 -> int8: half to even, saturated, NaN is 0."""
    return value.nan_to_num(nan=0.0).clamp(-128, 127).round().to(torch.int8)


def _unrounded_code(value: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    code = value / scale.double()
    return code if offset is None else code + offset.double()


def _cache_rows(a: Arguments, sizes: Sizes) -> list[int]:
    """For each token the row of the cache, seen as [C1 * C2, Nkv, D]; -1 for a token that is not written."""
    planes, rows = a.k_cache.shape[:2]
    found = a.indices.reshape(-1).tolist()
    if a.cache_mode == "page":
        for position, index in enumerate(found):
            if index >= planes * rows:
                raise ValueError(
                    f"{OP}: indices must be below C1 * C2 = {planes} * {rows} = {planes * rows}, "
                    f"got {index} at [{position}]"
                )
        return found
    last = rows - sizes.length
    for position, index in enumerate(found):
        if not 0 <= index <= last:
            raise ValueError(
                f"{OP}: indices must be in [0, C2 - S] = [0, {rows} - {sizes.length}] = [0, {last}], "
                f"got {index} at [{position}]"
            )
    return [batch * rows + index + s for batch, index in enumerate(found) for s in range(sizes.length)]


def _write(cache: torch.Tensor, rows: list[int], values: torch.Tensor) -> None:
    """Token by token, so that the last one of a slot stays."""
    flat = cache.view(-1, *cache.shape[2:])
    for row, value in zip(rows, values, strict=True):
        if row >= 0:
            flat[row] = value


@takes(Arguments)
def rope_kv_cache(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Writes the caches and returns q, k, v (k and v empty unless ``kv_output``), as ``torch.ops.anynpu`` does."""
    sizes = check(a)
    rows = _cache_rows(a, sizes)
    q, k, v = _heads(_dequantise(a), a.size_splits, sizes.head_size)
    angles = _angles(a.cos, a.sin)
    q, k = _rotate(q, *angles), _rotate(k, *angles)
    _write(a.k_cache, rows, _code(_unrounded_code(k, a.scale_k, a.offset_k)))
    _write(a.v_cache, rows, _code(_unrounded_code(v, a.scale_v, a.offset_v)))
    outputs = [t.reshape(*sizes.leading, *t.shape[1:]).to(a.cos.dtype) for t in (q, k, v)]
    empty = a.cos.new_empty(0)
    return (outputs[0], outputs[1], outputs[2]) if a.kv_output else (outputs[0], empty, empty.clone())


_U = 2.0**-24  # half a unit in the last place of float32
_TINY = 2.0**-149  # the smallest float32


def _dequantise_error(a: Arguments) -> torch.Tensor:
    """At most four roundings (of x, of two products, of the sum with a bias), each of at most _U or _TINY."""
    if a.x.dtype != torch.int32:
        return torch.zeros_like(a.x, dtype=torch.float64).flatten(0, -2)
    integer_bias = a.bias if a.bias is not None and a.bias.dtype == torch.int32 else None
    error = 4.01 * _U * _dequantise(a._replace(bias=integer_bias)).abs()
    if a.activation_scale is not None:
        error = error + _TINY * a.activation_scale[: error.shape[0]].double().abs().unsqueeze(1)
    if a.bias is not None and a.bias.dtype != torch.int32:
        error = error + 1.01 * _U * a.bias[: a.x.shape[-1]].double().abs()
    return error + 2 * _TINY


def _rotate_error(t: torch.Tensor, error: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Two products and their sum: two roundings of each term, and what was wrong with t before."""
    swapped = [value.roll(value.shape[-1] // 2, dims=-1).abs() for value in (t, error)]
    magnitude = t.abs() * cos.abs() + swapped[0] * sin.abs()
    return error * cos.abs() + swapped[1] * sin.abs() + 2.01 * _U * magnitude + 3 * _TINY


def _code_error(
    value: torch.Tensor, error: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None
) -> torch.Tensor:
    """How many codes lie within reach: 0 but where a rounding error can carry the value over a tie."""
    code = _unrounded_code(value, scale, offset)
    parts = (value / scale.double()).abs() + (0.0 if offset is None else offset.double().abs())
    reach = (error / scale.double().abs() + 2.01 * _U * parts + _TINY).nan_to_num(nan=0.0)
    return _code(code + reach).double() - _code(code - reach).double()


def _last_place(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of ``value`` in ``dtype``."""
    info = torch.finfo(dtype)
    exponent = value.abs().clamp(info.smallest_normal, info.max).log2().floor()
    return torch.exp2(exponent) * info.eps


@takes(Arguments)
def error_bound(a: Arguments) -> tuple[torch.Tensor, ...]:
    """For q, k, v, k_cache and v_cache: float32 rounding errors, and one unit in the last place of the outputs."""
    sizes = check(a)
    rows = _cache_rows(a, sizes)
    values = _heads(_dequantise(a), a.size_splits, sizes.head_size)
    errors = _heads(_dequantise_error(a), a.size_splits, sizes.head_size)
    angles = _angles(a.cos, a.sin)
    for i in (0, 1):
        errors[i] = _rotate_error(values[i], errors[i], *angles)
        values[i] = _rotate(values[i], *angles)
    bounds = [error + _last_place(value, a.cos.dtype) for value, error in zip(values, errors, strict=True)]
    bounds = [bound.reshape(*sizes.leading, *bound.shape[1:]) for bound in bounds]
    caches = [torch.zeros(a.k_cache.shape, dtype=torch.float64) for _ in "kv"]
    _write(caches[0], rows, _code_error(values[1], errors[1], a.scale_k, a.offset_k))
    _write(caches[1], rows, _code_error(values[2], errors[2], a.scale_v, a.offset_v))
    if not a.kv_output:
        bounds[1:] = [torch.zeros(0, dtype=torch.float64)] * 2
    return (*bounds, *caches)
