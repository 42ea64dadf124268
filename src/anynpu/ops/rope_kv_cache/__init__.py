# SPDX-License-Identifier: Apache-2.0
"""Dequantisation, rotary embedding and the write into an INT8 KV cache, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._register import Operator, register
from anynpu.ops.rope_kv_cache import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def rope_kv_cache(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    size_splits: Sequence[int],
    *,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_mode: int = 0,
    input_layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dequantises x, splits it into q, k and v, rotates q and k, and writes k and v into an INT8 cache.

    With H = (Nq + 2 Nkv) D, and ``rot(t) = concat(-t[D/2:], t[:D/2])`` for every head::

        y       = x                                     x is a float
                = x * weight_scale * activation_scale   x is int32; an int32 bias is added before, a float one after
        q, k, v = split(y, size_splits)
        q, k    = q * cos + rot(q) * sin, k * cos + rot(k) * sin
        code    = saturate(round_half_even(k / scale_k + offset_k)), the same for v; NaN gives 0

    Args:
        x: int32, float16, bfloat16 or float32, ``[B, S, H]`` or ``[B, H]`` (then S = 1), of any strides.
        cos, sin: ``[B, S, 1, D]`` or, for 2-D x, ``[B, D]``; a float, that of x unless x is int32; of any strides.
        k_cache, v_cache: int8 ``[C1, C2, Nkv, D]``, contiguous, D even. Written in place.
        indices: int32, 1-D or 2-D. ``contiguous``: B of them, token s of batch b goes to row ``indices[b] + s`` of
            plane b. ``page``: one a token, a row of the cache seen as ``[C1 * C2, Nkv, D]``; a token with a negative
            index is not written, and the last of the tokens with one index wins.
        scale_k, scale_v, offset_k, offset_v: float32 ``[Nkv, D]`` (``[D]`` when Nkv = 1).
        size_splits: ``[Nq * D, Nkv * D, Nkv * D]``.
        weight_scale: float32 ``[H]``, required for int32 x; this and the next two have no effect for other x.
        activation_scale: float32, at least B * S elements.
        bias: int32 or a float, at least H elements.
        quant_mode: 0, static scales.
        input_layout: ``"BSND"``.
        kv_output: whether k and v are returned.
        cache_mode: ``"contiguous"`` or ``"page"``.

    Returns:
        q, k, v: ``[B, S, N, D]`` or ``[B, N, D]`` in the dtype of cos, rotated, not quantised; k and v are empty
        unless ``kv_output``. Then k_cache and v_cache.

    Raises:
        TypeError: a dtype.
        ValueError: a shape, an option, or an index out of range: then nothing has been written.
        NotImplementedError: a quant_mode other than 0 or an input_layout other than BSND.

    Source: aclnnDequantRopeQuantKvcache, torch_npu.npu_dequant_rope_quant_kvcache.

    >>> import torch, anynpu
    >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], dtype=torch.float16)  # Nq = Nkv = 1, D = 2
    >>> cos, sin = torch.zeros(1, 2, dtype=torch.float16), torch.ones(1, 2, dtype=torch.float16)
    >>> k_cache, v_cache = torch.zeros(2, 1, 4, 1, 2, dtype=torch.int8)
    >>> row, scale = torch.tensor([3], dtype=torch.int32), torch.full((1, 2), 0.5)
    >>> q, *_ = anynpu.rope_kv_cache(x, cos, sin, k_cache, v_cache, row, scale, scale, [2, 2, 2])
    >>> q.tolist(), k_cache[0, 3].tolist(), v_cache[0, 3].tolist()
    ([[[-2.0, 1.0]]], [[-8, 6]], [[10, 12]])
    """
    if quant_mode != 0:
        raise NotImplementedError(f"rope_kv_cache: quant_mode must be 0 (static), got {quant_mode!r}")
    if input_layout != "BSND":
        raise NotImplementedError(f"rope_kv_cache: input_layout must be BSND, got {input_layout!r}")
    q, k, v = _op(
        x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, size_splits, offset_k, offset_v, weight_scale,
        activation_scale, bias, kv_output, cache_mode,
    )  # fmt: skip
    return q, k, v, k_cache, v_cache
