# SPDX-License-Identifier: Apache-2.0
"""CUDA kernel of rope_kv_cache: one pass over x, in which programs with keys or values find their rows of the cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._repeat import increment_version
from anynpu._triton import ceil_divide, launch, power_of_two, report, rounded
from anynpu.ops.rope_kv_cache.spec import OP, Arguments, check

_IN_PLANE = _device_errors.new_rule(OP, "indices", "must be in [0, C2 - S]")
_IN_CACHE = _device_errors.new_rule(OP, "indices", "must be below C1 * C2")
_OTHERS = 1024  # tokens that a program compares its own with at once
_ELEMENTS = 2048  # of a token that a program rotates


@triton.jit
def _place(token, indices_ptr, error_ptr, tokens, length, rows, all_rows, IN_PLANE: tl.constexpr,
           IN_CACHE: tl.constexpr, PAGE: tl.constexpr, OTHERS: tl.constexpr):  # fmt: skip
    """A token's row of the cache seen as [C1 * C2, Nkv, D], or -1 where it is not to be written."""
    one = tl.arange(0, 1)
    if PAGE:
        place = tl.load(indices_ptr + token)
        report(error_ptr, IN_CACHE, one + place >= all_rows, one + token)
        # Of the tokens with one index the last is written: the others step back.
        follows = tl.zeros((OTHERS,), tl.int32)
        for first in range((token // OTHERS * OTHERS).to(tl.int32), tokens, OTHERS):
            other = first + tl.arange(0, OTHERS)
            index = tl.load(indices_ptr + other, mask=other < tokens, other=-1)
            follows |= ((index == place) & (other > token)).to(tl.int32)
        return tl.where((place >= all_rows) | (tl.max(follows, axis=0) > 0), -1, place).to(tl.int64)
    else:
        batch = token // length
        index = tl.load(indices_ptr + batch)
        report(error_ptr, IN_PLANE, (one + index < 0) | (one + index > rows - length), one + batch)
        return tl.where((index < 0) | (index > rows - length), -1, batch * rows + index + token % length)


@triton.jit
def _dequantised(x_token, column, inside, column_stride, weight_scale_ptr, activation_scale, bias_ptr,
                 DEQUANT: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """float32 of x; an int32 bias is added before scaling, and exactly, a float bias after it."""
    x = tl.load(x_token + column.to(tl.int64) * column_stride, mask=inside, other=0)
    if DEQUANT:
        integer_bias: tl.constexpr = BIAS and bias_ptr.dtype.element_ty == tl.int32
        if integer_bias:
            x = x.to(tl.int64) + tl.load(bias_ptr + column, mask=inside, other=0)
        scale = tl.load(weight_scale_ptr + column, mask=inside, other=0.0) * activation_scale
        value = x.to(tl.float32) * scale
        if BIAS and not integer_bias:
            value += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        return value
    else:
        return x.to(tl.float32)


@triton.jit
def _codes(value, of_k, of_v, is_k, is_v, scale_k_ptr, scale_v_ptr, offset_k_ptr, offset_v_ptr, OFFSET_K: tl.constexpr,
           OFFSET_V: tl.constexpr):  # fmt: skip
    """int8 of keys and values, whose places in [Nkv, D] are ``of_k`` and ``of_v``."""
    scale = tl.load(tl.where(is_k, scale_k_ptr + of_k, scale_v_ptr + of_v), mask=is_k | is_v, other=1.0)
    code = tl.div_rn(value, scale)
    if OFFSET_K:
        code += tl.load(offset_k_ptr + of_k, mask=is_k, other=0.0)
    if OFFSET_V:
        code += tl.load(offset_v_ptr + of_v, mask=is_v, other=0.0)
    return rounded(code, tl.int8)


@triton.jit
def _rope_kernel(x_ptr, cos_ptr, sin_ptr, k_cache_ptr, v_cache_ptr, indices_ptr, scale_k_ptr, scale_v_ptr, offset_k_ptr,
                 offset_v_ptr, weight_scale_ptr, activation_scale_ptr, bias_ptr, q_ptr, k_ptr, v_ptr, error_ptr, tokens,
                 length, rows, all_rows, q_heads, kv_heads, x_batch, x_row, x_column, cos_batch, cos_row, cos_column,
                 sin_batch, sin_row, sin_column, IN_PLANE: tl.constexpr, IN_CACHE: tl.constexpr, PAGE: tl.constexpr,
                 OFFSET_K: tl.constexpr, OFFSET_V: tl.constexpr, DEQUANT: tl.constexpr, ACTIVATION: tl.constexpr,
                 BIAS: tl.constexpr, KV_OUTPUT: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
                 OTHERS: tl.constexpr):  # fmt: skip
    """Some HEADS of one token, the two halves of each beside each other."""
    heads = q_heads + 2 * kv_heads
    token = (tl.program_id(0) // tl.cdiv(heads, HEADS)).to(tl.int64)
    batch, row = token // length, token % length
    first_head = (tl.program_id(0) % tl.cdiv(heads, HEADS)) * HEADS
    head = first_head + tl.arange(0, HEADS)[:, None]
    element = tl.arange(0, HALF)[None, :]
    real = (head < heads) & (element < D // 2)
    is_q, is_k, is_v = real & (head < q_heads), real & (head >= q_heads), real & (head >= q_heads + kv_heads)
    is_k &= head < q_heads + kv_heads
    low, high = head * D + element, head * D + D // 2 + element
    x_token = x_ptr + batch * x_batch + row * x_row
    activation_scale = 1.0
    if ACTIVATION:
        activation_scale = tl.load(activation_scale_ptr + token)
    t_low = _dequantised(x_token, low, real, x_column, weight_scale_ptr, activation_scale, bias_ptr, DEQUANT, BIAS)
    t_high = _dequantised(x_token, high, real, x_column, weight_scale_ptr, activation_scale, bias_ptr, DEQUANT, BIAS)
    in_half = element < D // 2
    cos, sin = cos_ptr + batch * cos_batch + row * cos_row, sin_ptr + batch * sin_batch + row * sin_row
    cos_low = tl.load(cos + element * cos_column, mask=in_half, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + (D // 2 + element) * cos_column, mask=in_half, other=0.0).to(tl.float32)
    sin_low = tl.load(sin + element * sin_column, mask=in_half, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + (D // 2 + element) * sin_column, mask=in_half, other=0.0).to(tl.float32)
    rotated = head < q_heads + kv_heads
    y_low = tl.where(rotated, t_low * cos_low - t_high * sin_low, t_low)
    y_high = tl.where(rotated, t_high * cos_high + t_low * sin_high, t_high)
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    q_width, kv_width = q_heads * D, kv_heads * D
    tl.store(q_ptr + token * q_width + low, rounded(y_low, dtype), mask=is_q)
    tl.store(q_ptr + token * q_width + high, rounded(y_high, dtype), mask=is_q)
    if KV_OUTPUT:
        k, v = k_ptr + token * kv_width - q_width, v_ptr + token * kv_width - q_width - kv_width
        tl.store(k + low, rounded(y_low, dtype), mask=is_k)
        tl.store(k + high, rounded(y_high, dtype), mask=is_k)
        tl.store(v + low, rounded(y_low, dtype), mask=is_v)
        tl.store(v + high, rounded(y_high, dtype), mask=is_v)
    if first_head + HEADS > q_heads:
        is_kv, of_k, of_v = is_k | is_v, head * D - q_width + element, head * D - q_width - kv_width + element
        code_low = _codes(y_low, of_k, of_v, is_k, is_v, scale_k_ptr, scale_v_ptr, offset_k_ptr, offset_v_ptr, OFFSET_K,
                          OFFSET_V)  # fmt: skip
        code_high = _codes(y_high, of_k + D // 2, of_v + D // 2, is_k, is_v, scale_k_ptr, scale_v_ptr, offset_k_ptr,
                           offset_v_ptr, OFFSET_K, OFFSET_V)  # fmt: skip
        place = _place(token, indices_ptr, error_ptr, tokens, length, rows, all_rows, IN_PLANE, IN_CACHE, PAGE, OTHERS)
        if place >= 0:
            cache = tl.where(is_k, k_cache_ptr + of_k, v_cache_ptr + of_v) + place * kv_width
            tl.store(cache, code_low, mask=is_kv)
            tl.store(cache + D // 2, code_high, mask=is_kv)


@takes(Arguments)
def rope_kv_cache(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``anynpu.rope_kv_cache``; a token with a wrong index is not written, ``check_device_errors`` tells of it."""
    sizes = check(a)
    q = a.cos.new_empty(sizes.q_shape)
    k, v = (a.cos.new_empty(sizes.kv_shape if a.kv_output else (0,)) for _ in "kv")
    tokens, size = sizes.batch * sizes.length, sizes.head_size
    planes, rows = a.k_cache.shape[:2]
    angles = [angle.unsqueeze(1) if angle.dim() == 2 else angle.squeeze(2) for angle in (a.cos, a.sin)]  # [B, S, D]
    x = a.x.unsqueeze(1) if a.x.dim() == 2 else a.x
    dequant = (a.weight_scale, a.activation_scale, a.bias) if x.dtype == torch.int32 else (None, None, None)
    scales = [scale.reshape(-1).contiguous() for scale in (a.scale_k, a.scale_v)]
    parameters = [
        None if value is None else value.reshape(-1).contiguous() for value in (a.offset_k, a.offset_v, *dequant)
    ]
    present = [scales[0] if value is None else value for value in parameters]  # what is absent is not read
    weight_scale, activation_scale, bias = dequant
    half = power_of_two(size // 2, 1, 1 << 20)
    heads = power_of_two(max(1, _ELEMENTS // 2 // half), 1, 64)
    all_heads = sizes.q_heads + 2 * sizes.kv_heads
    launch(
        _rope_kernel, tokens * ceil_divide(all_heads, heads), x, *angles, a.k_cache, a.v_cache,
        a.indices.reshape(-1).contiguous(), *scales, *present, q, k, v, _device_errors.word(x.device), tokens,
        sizes.length, rows, planes * rows, sizes.q_heads, sizes.kv_heads, *x.stride(), *angles[0].stride(),
        *angles[1].stride(), IN_PLANE=_IN_PLANE, IN_CACHE=_IN_CACHE, PAGE=a.cache_mode == "page",
        OFFSET_K=a.offset_k is not None, OFFSET_V=a.offset_v is not None, DEQUANT=weight_scale is not None,
        ACTIVATION=activation_scale is not None, BIAS=bias is not None, KV_OUTPUT=a.kv_output, D=size, HALF=half,
        HEADS=heads, OTHERS=_OTHERS,
    )  # fmt: skip
    increment_version((a.k_cache, a.v_cache))
    return q, k, v
