# SPDX-License-Identifier: Apache-2.0
"""Conversion between the layouts ND and FRACTAL_NZ."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._register import Operator, register
from anynpu.ops.format_cast import cpu, reference, spec

_nd_to_nz = register(
    Operator(
        "nd_to_nz",
        spec.TO_NZ_SCHEMA,
        spec.nd_to_nz_fake,
        cpu.nd_to_nz,
        reference.nd_to_nz,
        spec.nd_to_nz_samples,
        cuda=reference.__name__,  # two copies
    )
)
_nz_to_nd = register(
    Operator(
        "nz_to_nd",
        spec.TO_ND_SCHEMA,
        spec.nz_to_nd_fake,
        cpu.nz_to_nd,
        reference.nz_to_nd,
        spec.nz_to_nd_samples,
        cuda=reference.__name__,
    )
)


def nd_to_nz(x: torch.Tensor, c0: int | None = None) -> torch.Tensor:
    """The FRACTAL_NZ storage of ``x``: blocks of 16 rows by ``c0`` columns, column by column of blocks::

        storage[..., j, i, r, c] = x[..., 16 * i + r, c0 * j + c], or 0 beyond the edges

    Args:
        x: ``[..., R, C]`` of 2 to 8 axes, any strides; any float, integer or bool dtype.
        c0: columns of a block. None: 32 bytes of elements; for int32 that is 8, also when each holds eight int4, which
            are then 64 columns.

    Returns:
        ``[..., ceil(C / c0), ceil(R / 16), 16, c0]`` of ``x``'s dtype.

    Raises:
        TypeError: a dtype without a code, such as complex.
        ValueError: fewer than 2 or more than 8 axes, or ``c0`` below 1.

    Source: torch_npu.npu_format_cast with format 29; the layout is specified in docs/formats.md.

    >>> import torch, anynpu
    >>> storage = anynpu.nd_to_nz(torch.arange(40, dtype=torch.int8).reshape(1, 40))
    >>> storage.shape
    torch.Size([2, 1, 16, 32])
    >>> storage[1, 0, 0, :9].tolist()
    [32, 33, 34, 35, 36, 37, 38, 39, 0]
    """
    return _nd_to_nz(x, c0)


def nz_to_nd(storage: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The ordinary tensor of ``shape`` whose FRACTAL_NZ storage :func:`nd_to_nz` made.

    Args:
        storage: ``[..., ceil(C / c0), ceil(R / 16), 16, c0]``, contiguous. The padding is not looked at.
        shape: ``[..., R, C]`` of the result, 2 to 8 axes.

    Returns:
        A contiguous tensor of ``shape`` and of ``storage``'s dtype.

    Raises:
        TypeError: a dtype without a code, such as complex.
        ValueError: ``storage`` is not contiguous, or its shape is not that of the storage of ``shape``.

    >>> import torch, anynpu
    >>> x = torch.randn(20, 50)
    >>> torch.equal(anynpu.nz_to_nd(anynpu.nd_to_nz(x), x.shape), x)
    True
    """
    return _nz_to_nd(storage, shape)
