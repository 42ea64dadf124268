# SPDX-License-Identifier: Apache-2.0
"""What the int4 weights of experts need beside :func:`anynpu.int4_pack`: scales as words, and the offline bias."""

from __future__ import annotations

import torch

from anynpu._check import require_dtype
from anynpu.ops.int4_pack import int4_unpack


def pack_scale(scale: torch.Tensor) -> torch.Tensor:
    """Puts float32 scales into the int64 words that grouped_matmul_combine wants for int4 weights.

    Args:
        scale: float32 of any shape, ``[E, 1, N]`` or ``[E, K / group, N]`` for the operator.

    Returns:
        int64 of the same shape: the float32 bits in the low half, zeros in the high half.

    Raises:
        TypeError: scale is not float32.

    >>> import torch, anynpu
    >>> [hex(word) for word in anynpu.pack_scale(torch.tensor([1.0, -2.0])).tolist()]
    ['0x3f800000', '0xc0000000']
    """
    require_dtype("pack_scale", "scale", scale, (torch.float32,))
    return scale.contiguous().view(torch.int32).long() & 0xFFFFFFFF


def unpack_scale(words: torch.Tensor) -> torch.Tensor:
    """float32 scales out of words of :func:`pack_scale`: the bits in their low halves."""
    return words.contiguous().view(torch.int32)[..., ::2].contiguous().view(torch.float32)


def make_w4a8_bias(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Computes the documented bias of int4 weights, ``8 * sum_k W * scale``.

    Args:
        weight: int32 ``[E, K, N / 8]`` of :func:`anynpu.int4_pack`.
        scale: float32 ``[E, G, N]``, G a divisor of K.

    Returns:
        float32 ``[E, N]``, summed in float64.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes that do not fit.

    >>> import torch, anynpu
    >>> weight = anynpu.int4_pack(torch.full((1, 4, 8), 3, dtype=torch.int32))
    >>> anynpu.make_w4a8_bias(weight, torch.tensor([0.5, 0.25]).reshape(1, 2, 1).expand(1, 2, 8))
    tensor([[36., 36., 36., 36., 36., 36., 36., 36.]])
    """
    require_dtype("make_w4a8_bias", "weight", weight, (torch.int32,))
    require_dtype("make_w4a8_bias", "scale", scale, (torch.float32,))
    experts, k, words = weight.shape if weight.dim() == 3 else (-1, 0, 0)
    groups = scale.shape[1] if scale.dim() == 3 else 0
    if groups < 1 or k % groups != 0 or (experts, words * 8) != (scale.shape[0], scale.shape[2]):
        raise ValueError(
            "make_w4a8_bias: weight must have shape (E, K, N / 8) and scale (E, G, N) with G a divisor of K, got "
            f"{tuple(weight.shape)} and {tuple(scale.shape)}"
        )
    sums = int4_unpack(weight.contiguous()).reshape(experts, groups, k // groups, words * 8).sum(2)
    return (8.0 * sums.double() * scale.double()).sum(1).float()
