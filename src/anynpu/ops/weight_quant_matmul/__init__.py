# SPDX-License-Identifier: Apache-2.0
"""Matrix product of float activations with int4 or int8 weights."""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Operator, register
from anynpu.ops.weight_quant_matmul import cpu, reference, spec

UNPREPACK = "weight_quant_unprepack"

_matmul = register(
    Operator(
        "weight_quant_matmul",
        spec.MATMUL_SCHEMA,
        spec.matmul_fake,
        cpu.weight_quant_matmul,
        reference.weight_quant_matmul,
        spec.matmul_samples,
        reference.error_bound,
        cuda=f"{__name__}.triton",
    )
)
_prepack = register(
    Operator(
        "weight_quant_prepack",
        spec.PREPACK_SCHEMA,
        spec.prepack_fake,
        cpu.weight_quant_prepack,
        reference.weight_quant_prepack,
        spec.prepack_samples,
        cuda=f"{__name__}.triton",
    )
)


def weight_quant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_size: int = 0,
    inner_precise: int = 0,
    n: int | None = None,
) -> torch.Tensor:
    """Multiplies float activations by quantised weights: ``y = x @ ((weight + offset) * scale) + bias``.

    The offset is *added*, before scaling: a producer whose rule is ``(w - z) * s`` passes ``offset = -z``.
    With quant_scale the result is ``int8(saturate(round_half_even(y * quant_scale + quant_offset)))``, NaN becomes 0.
    Float results are rounded once, from float32 sums; what is too large for float16 becomes infinite.

    Args:
        x: ``[..., M, K]`` float16, bfloat16 or float32.
        weight: one of

            - int8 ``[K, N]`` or ``[..., K, N]``,
            - int32 ``[..., K, N / 8]`` of :func:`int4_pack`, eight int4 along N in a word,
            - int32 ``[..., K / 8, N]``, a transposed view of packed ``[..., N, K / 8]``: eight int4 along K in a word.
              Strides tell the two apart, see ``docs/ops/weight_quant_matmul.md`` for axes of size 1,
            - uint8 of :func:`weight_quant_prepack`, then ``n`` must be given.
        scale: ``[1]``, ``[N]`` or ``[1, N]``; with groups ``[ceil(K / group_size), N]``. The dtype of x or float32; for
            int8 weights also the int64 of ``trans_quant_param``, without offset.
        offset: shapes as scale, the dtype of scale.
        bias: ``[N]`` or ``[1, N]`` float.
        quant_scale: ``[1]``, ``[N]`` or ``[1, N]`` float32, cut to 19 bits as ``trans_quant_param`` does, or its int64.
        quant_offset: float32 like quant_scale, rounded to an integer in [-256, 255]; an int64 quant_scale holds it.
        group_size: how many k share a row of scale and offset: 0 (all) or a multiple of 32 in ``[32, K - 1]``.
            The last group may be shorter.
        inner_precise: 0, or 1 to let a kernel hold x in 16-bit block fixed point where that is faster.
        n: N, for a prepacked weight.

    Any of x, weight, scale and offset may be a transposed view of its last two axes.

    Returns:
        ``[..., M, N]`` in the dtype of x, or int8 with quant_scale.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, strides, group_size or inner_precise outside these rules, or a blob that is none.

    Source: aclnnWeightQuantBatchMatmulV2 and V3, torch_npu.npu_weight_quant_batchmatmul.

    >>> import torch, anynpu
    >>> weight = anynpu.int4_pack(torch.arange(-8, 8, dtype=torch.int32).reshape(2, 8))
    >>> x = torch.tensor([[1.0, 10.0]])
    >>> anynpu.weight_quant_matmul(x, weight, scale=torch.tensor([0.5]), offset=torch.tensor([8.0]))
    tensor([[40.0000, 45.5000, 51.0000, 56.5000, 62.0000, 67.5000, 73.0000, 78.5000]])
    """
    return _matmul(x, weight, scale, offset, bias, quant_scale, quant_offset, group_size, inner_precise, n)


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """Rearranges a weight of :func:`weight_quant_matmul` into the format its kernels read fastest, for repeated use.

    Args:
        weight: int8 ``[K, N]`` or packed int4 (int32), plain or transposed, as :func:`weight_quant_matmul` takes it.

    Returns:
        uint8 ``[64 + ceil(N / 32) * ceil(K / 4) * 128]`` for int8, half the cells for int4: format w8p32 or w4p32 of
        ``docs/formats.md``, the same bytes on every machine.

    Raises:
        TypeError: a dtype other than these.
        ValueError: not two axes, or strides that are neither plain nor transposed.

    >>> import torch, anynpu
    >>> blob = anynpu.weight_quant_prepack(torch.ones(4, 3, dtype=torch.int8))
    >>> anynpu.weight_quant_matmul(torch.ones(1, 4), blob, scale=torch.ones(3), n=3)
    tensor([[4., 4., 4.]])
    """
    return _prepack(weight)


def weight_quant_unprepack(blob: torch.Tensor) -> torch.Tensor:
    """The codes in a blob of :func:`weight_quant_prepack`.

    Args:
        blob: uint8, one axis: format w4p32 or w8p32 of ``docs/formats.md``.

    Returns:
        int8 ``[K, N]``, in [-8, 7] for w4p32.

    Raises:
        ValueError: the bytes are no such blob.

    >>> import torch, anynpu
    >>> weight = torch.tensor([[1, -2], [3, -4]], dtype=torch.int8)
    >>> anynpu.weight_quant_unprepack(anynpu.weight_quant_prepack(weight))
    tensor([[ 1, -2],
            [ 3, -4]], dtype=torch.int8)
    """
    require_dtype(UNPREPACK, "blob", blob, (torch.uint8,))
    require(UNPREPACK, blob.dim() == 1, f"blob must have one axis, got shape {tuple(blob.shape)}")
    return reference.unprepacked(blob, UNPREPACK)
