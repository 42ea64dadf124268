# SPDX-License-Identifier: Apache-2.0
"""INT4 packing: eight (or two) signed 4-bit values in one int32 (or uint8)."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.int4_pack import cpu, reference, spec

_CUDA = f"{__name__}.triton"
_pack = register(
    Operator(
        "int4_pack",
        spec.PACK_SCHEMA,
        spec.pack_fake,
        cpu.int4_pack,
        reference.int4_pack,
        spec.pack_samples,
        cuda=_CUDA,
    )
)
_unpack = register(
    Operator(
        "int4_unpack",
        spec.UNPACK_SCHEMA,
        spec.unpack_fake,
        cpu.int4_unpack,
        reference.int4_unpack,
        spec.unpack_samples,
        cuda=_CUDA,
    )
)


def int4_pack(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Packs int4 values, held in int32, into words of eight or bytes of two.

    Value ``i`` of a word goes to bits ``4i .. 4i+3`` as two's complement: the even index of a byte is its low nibble::

        weight[..., 8j + 7]  ...  weight[..., 8j + 1]  weight[..., 8j]
        bits 31..28          ...  bits 7..4            bits 3..0        of packed[..., j]

    Args:
        weight: int32 ``[K, N]`` or ``[G, K, N]``, contiguous, not empty, values in ``[-8, 7]``;
            ``N`` a multiple of 8 (2 for bytes). The last axis is packed.
        dtype: ``torch.int32`` (eight values an element) or ``torch.uint8`` (two).

    Returns:
        ``[..., N / 8]`` int32 or ``[..., N / 2]`` uint8.

    Raises:
        TypeError: ``weight`` is not int32, or ``dtype`` is neither int32 nor uint8.
        ValueError: rank, size, alignment, strides, or a value outside ``[-8, 7]`` (with its index).

    Source: aclnnConvertWeightToINT4Pack, torch_npu.npu_convert_weight_to_int4pack.

    >>> import torch, anynpu
    >>> packed = anynpu.int4_pack(torch.arange(-4, 4, dtype=torch.int32).reshape(1, 8))
    >>> hex(packed.item() & 0xFFFFFFFF)
    '0x3210fedc'
    """
    return _pack(weight, dtype)


def int4_unpack(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Unpacks what :func:`int4_pack` packed.

    Args:
        packed: int32 ``[..., N / 8]`` or uint8 ``[..., N / 2]``, 2-D or 3-D, contiguous, not empty.
        dtype: of the result, ``torch.int32`` or ``torch.int8``.

    Returns:
        ``[..., N]`` with values in ``[-8, 7]``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: rank, size or strides.

    >>> import torch, anynpu
    >>> anynpu.int4_unpack(torch.tensor([[0x3210FEDC]], dtype=torch.int32)).tolist()
    [[-4, -3, -2, -1, 0, 1, 2, 3]]
    """
    return _unpack(packed, dtype)
