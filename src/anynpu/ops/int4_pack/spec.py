# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of int4_pack and int4_unpack."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_allowed, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu._strict import check_int4_pack_limits

PACK_SCHEMA = "(Tensor weight, ScalarType? dtype=None) -> Tensor"
UNPACK_SCHEMA = "(Tensor packed, ScalarType? dtype=None) -> Tensor"

VALUES_PER_ELEMENT = {torch.int32: 8, torch.uint8: 2}


def _require_values_per_element(op: str, name: str, dtype: torch.dtype) -> int:
    require_allowed(op, name, dtype, VALUES_PER_ELEMENT)
    return VALUES_PER_ELEMENT[dtype]


def pack_shape(weight: torch.Tensor, dtype: torch.dtype) -> list[int]:
    """Checks the arguments of int4_pack that can be checked without data; returns the output's shape."""
    op = "int4_pack"
    require_dtype(op, "weight", weight, (torch.int32,))
    per_element = _require_values_per_element(op, "dtype", dtype)
    ndim = weight.dim()
    require(op, ndim in (2, 3), f"weight shape only support dim num 2/3, but it is {ndim}")
    check_int4_pack_limits(weight)
    require(op, weight.numel() > 0, f"weight dim should be greater than 0, got shape {tuple(weight.shape)}")
    last = weight.shape[-1]
    require(op, last % per_element == 0, f"weight last dim should be the multiple of {per_element}, but it is {last}")
    require(op, weight.is_contiguous(), f"weight should be contiguous, got strides {weight.stride()}")
    return [*weight.shape[:-1], last // per_element]


def unpack_shape(packed: torch.Tensor, dtype: torch.dtype) -> list[int]:
    """Checks the arguments of int4_unpack; returns the output's shape."""
    op = "int4_unpack"
    require_tensor(op, "packed", packed)
    per_element = _require_values_per_element(op, "packed", packed.dtype)
    require_allowed(op, "dtype", dtype, (torch.int32, torch.int8))
    ndim = packed.dim()
    require(op, ndim in (2, 3), f"packed must have 2 or 3 axes, got {ndim}")
    require(op, packed.numel() > 0, f"packed must not be empty, got shape {tuple(packed.shape)}")
    require(op, packed.is_contiguous(), f"packed should be contiguous, got strides {packed.stride()}")
    return [*packed.shape[:-1], packed.shape[-1] * per_element]


def pack_fake(weight: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Fake kernel of int4_pack."""
    return weight.new_empty(pack_shape(weight, dtype), dtype=dtype)


def unpack_fake(packed: torch.Tensor, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """Fake kernel of int4_unpack."""
    return packed.new_empty(unpack_shape(packed, dtype), dtype=dtype)


def _weight(*shape: int) -> torch.Tensor:
    return torch.randint(-8, 8, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def pack_samples() -> Iterator[Sample]:
    """Valid calls of int4_pack."""
    yield Sample("one word", (_weight(1, 8),))
    yield Sample("odd rows", (_weight(17, 72),))
    yield Sample("bytes", (_weight(5, 6), torch.uint8))
    yield Sample("3-D", (_weight(3, 7, 24),))
    yield Sample("threads", (_weight(512, 520),))


def unpack_samples() -> Iterator[Sample]:
    """Valid calls of int4_unpack."""
    words = torch.arange(-37, 38, dtype=torch.int32).mul(57_000_011).reshape(5, 15)
    yield Sample("words", (words,))
    yield Sample("words to int8", (words, torch.int8))
    yield Sample("bytes", (words.view(torch.uint8),))
    yield Sample("3-D", (words.reshape(5, 3, 5),))
