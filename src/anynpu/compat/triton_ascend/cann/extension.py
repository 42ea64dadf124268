# SPDX-License-Identifier: Apache-2.0
"""``triton.language.extra.cann.extension``: parts of tensors, in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from anynpu._check import require
from anynpu.compat.errors import module_getattr

__all__ = ["extract_slice", "get_element", "insert_slice"]


def _integers(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(each.handle.data.item()) if isinstance(each, tl.tensor) else int(each) for each in values)


def _block(data: numpy.ndarray, dtype: tl.dtype) -> tl.tensor:
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def _place(
    op: str, ful: tl.tensor, offsets: Sequence, sizes: Sequence, strides: Sequence, whole: bool = True
) -> tuple[slice, ...]:
    """Where the part lies in ``ful``, which must hold all of it if it is to be ``whole``, and its first element."""
    shape = ful.handle.data.shape
    parts = [_integers(each) for each in (offsets, sizes, strides)]
    require(
        op,
        all(len(part) == len(shape) for part in parts),
        f"offsets, sizes and strides must have {len(shape)} values each, got {', '.join(map(str, map(len, parts)))}",
    )
    for axis, (extent, offset, size, stride) in enumerate(zip(shape, *parts, strict=True)):
        last = offset + (size - 1) * stride * whole
        fits = size > 0 and stride > 0 and 0 <= offset <= last < extent
        require(
            op,
            fits,
            f"the part must lie inside of axis {axis}, of {extent}, got offset {offset}, size {size}, stride {stride}",
        )
    return tuple(
        slice(offset, offset + (size - 1) * stride + 1, stride) for offset, size, stride in zip(*parts, strict=True)
    )


def extract_slice(ful: tl.tensor, offsets: Sequence, sizes: Sequence, strides: Sequence) -> tl.tensor:
    """The part of ``ful`` that begins at ``offsets``, of ``sizes``, with steps of ``strides``.

    Kernels cut a tensor into parts of one size and mask the rest of the last one: what lies behind the end of ``ful``
    has no value on the device, and all bits set here, NaN in floats.
    """
    inside = ful.handle.data[_place("extract_slice", ful, offsets, sizes, strides, whole=False)]
    part = numpy.frombuffer(b"\xff" * (math.prod(_integers(sizes)) * inside.itemsize), inside.dtype)
    part = part.reshape(_integers(sizes)).copy()
    part[tuple(map(slice, inside.shape))] = inside
    return _block(part, ful.dtype)


def insert_slice(ful: tl.tensor, sub: tl.tensor, offsets: Sequence, sizes: Sequence, strides: Sequence) -> tl.tensor:
    """``ful`` with ``sub`` in the place of the part that ``extract_slice`` gives."""
    place = _place("insert_slice", ful, offsets, sizes, strides)
    shape, got = _integers(sizes), sub.handle.data.shape
    require("insert_slice", got == shape, f"sub must have the shape {shape}, got {got}")
    require("insert_slice", sub.dtype == ful.dtype, f"sub must be {ful.dtype} as ful is, got {sub.dtype}")
    data = ful.handle.data.copy()
    data[place] = sub.handle.data
    return _block(data, ful.dtype)


def get_element(src: tl.tensor, indice: Sequence) -> tl.tensor:
    """The scalar of ``src`` at ``indice``, an index for each axis."""
    place = _place("get_element", src, indice, [1] * len(indice), [1] * len(indice))
    return tl.tensor(TensorHandle(src.handle.data[place].reshape(1).copy(), src.dtype), src.dtype)


__getattr__ = module_getattr("triton.language.extra.cann.extension", globals())
