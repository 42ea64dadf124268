# SPDX-License-Identifier: Apache-2.0
"""The published operators of storage formats, under their published names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require_tensor
from anynpu.compat import formats
from anynpu.compat.formats import Format
from anynpu.compat.published import Dtype, published


def _format(value: int) -> Format:
    try:
        format = Format(value)
    except ValueError:
        format = Format.UNDEFINED
    if format == Format.UNDEFINED:
        known = ", ".join(f"{entry.name} {entry.value}" for entry in Format if entry != Format.UNDEFINED)
        raise ValueError(f"acl_format must be one of {known}, got {value}")
    return format


@published(
    "npu_format_cast(Tensor self, int acl_format, int? customize_dtype=None, int? input_dtype=None) -> Tensor",
    "aclnnNpuFormatCast",
)
def _format_cast_to_number(
    self: torch.Tensor, acl_format: int, customize_dtype: Dtype | None = None, input_dtype: Dtype | None = None
) -> torch.Tensor:
    return formats.cast(self, _format(acl_format))


@published("npu_format_cast.Tensor(Tensor self, Tensor dst) -> Tensor", "aclnnNpuFormatCast")
def _format_cast_like(self: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    return formats.cast(self, formats.format_of(dst))


@published("npu_format_cast_.acl_format(Tensor(a!) self, int acl_format) -> Tensor(a!)", "aclnnNpuFormatCast")
def _format_cast_in_place(self: torch.Tensor, acl_format: int) -> torch.Tensor:
    return formats.set_format(self, _format(acl_format))


@published("npu_format_cast_(Tensor(a!) self, Tensor src) -> Tensor(a!)", "aclnnNpuFormatCast")
def _format_cast_in_place_like(self: torch.Tensor, src: torch.Tensor) -> torch.Tensor:
    return formats.set_format(self, formats.format_of(src))


def npu_format_cast(
    self: torch.Tensor,
    acl_format: int | torch.Tensor,
    customize_dtype: Dtype | None = None,
    input_dtype: Dtype | None = None,
) -> torch.Tensor:
    """A tensor of the same shape, dtype and contents in another format, or in that of another tensor.

    ``customize_dtype`` and ``input_dtype`` choose block sizes on a chip and have no effect.
    """
    if isinstance(acl_format, torch.Tensor):
        return _format_cast_like(self, acl_format)
    return _format_cast_to_number(self, acl_format, customize_dtype, input_dtype)


def npu_format_cast_(self: torch.Tensor, acl_format: int | torch.Tensor) -> torch.Tensor:
    """Gives ``self`` another format, in place."""
    if isinstance(acl_format, torch.Tensor):
        return _format_cast_in_place_like(self, acl_format)
    return _format_cast_in_place(self, acl_format)


def get_npu_format(self: torch.Tensor) -> Format:
    """The format of a tensor; ND unless it was cast. Not for use in a captured graph."""
    require_tensor("get_npu_format", "self", self)
    return formats.format_of(self)


def empty_with_format(
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | str | int | None = None,
    pin_memory: bool | None = None,
    acl_format: int = Format.ND,
) -> torch.Tensor:
    """``torch.empty`` on npu, in a format. Not for use in a captured graph."""
    chosen = torch.device("npu", device) if isinstance(device, int) else device or "npu"
    made = torch.empty(tuple(size), dtype=dtype, layout=layout or torch.strided, device=chosen)
    return formats.set_format(made, _format(acl_format))
