# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of nd_to_nz and nz_to_nd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample
from anynpu.ops.cast.spec import DTYPES

TO_NZ_SCHEMA = "(Tensor x, int? c0=None) -> Tensor"
TO_ND_SCHEMA = "(Tensor storage, SymInt[] shape) -> Tensor"
MAX_DIMS = 8
ROWS_OF_BLOCK = 16
BYTES_OF_BLOCK_ROW = 32


def _storage_shape(shape: Sequence[int], c0: int) -> list[int]:
    blocks = (shape[-1] + c0 - 1) // c0
    bands = (shape[-2] + ROWS_OF_BLOCK - 1) // ROWS_OF_BLOCK
    return [*shape[:-2], blocks, bands, ROWS_OF_BLOCK, c0]


def storage_shape(x: torch.Tensor, c0: int | None) -> list[int]:
    """Checks the arguments of nd_to_nz; returns the output's shape."""
    op = "nd_to_nz"
    require_dtype(op, "x", x, DTYPES)
    require(op, 2 <= x.dim() <= MAX_DIMS, f"x must have 2 to {MAX_DIMS} axes, got {x.dim()}")
    if c0 is None:
        c0 = BYTES_OF_BLOCK_ROW // x.dtype.itemsize
    require(op, 0 < c0 < 2**31, f"c0 must be positive and below 2**31, got {c0}")
    return _storage_shape(x.shape, c0)


def check_storage(storage: torch.Tensor, shape: Sequence[int]) -> None:
    """Checks the arguments of nz_to_nd."""
    op = "nz_to_nd"
    require_dtype(op, "storage", storage, DTYPES)
    shape = list(shape)
    require(op, 2 <= len(shape) <= MAX_DIMS, f"shape must have 2 to {MAX_DIMS} axes, got {len(shape)}")
    require(op, all(size >= 0 for size in shape), f"shape must not be negative, got {shape}")
    got = list(storage.shape)
    require(op, len(got) == len(shape) + 2, f"storage must have two axes more than shape, {shape}, got {got}")
    require(op, got[-1] > 0, f"storage must have blocks of at least one column, got shape {got}")
    expected = _storage_shape(shape, got[-1])
    require(op, got == expected, f"storage must have shape {expected} for shape {shape}, got {got}")
    require(op, storage.is_contiguous(), f"storage should be contiguous, got strides {storage.stride()}")


def nd_to_nz_fake(x: torch.Tensor, c0: int | None = None) -> torch.Tensor:
    """Fake kernel of nd_to_nz."""
    return x.new_empty(storage_shape(x, c0))


def nz_to_nd_fake(storage: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Fake kernel of nz_to_nd."""
    check_storage(storage, shape)
    return storage.new_empty(shape)


def _matrix(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def nd_to_nz_samples() -> Iterator[Sample]:
    """Valid calls of nd_to_nz."""
    yield Sample("float", (_matrix(17, 33),))
    yield Sample("half batch", (_matrix(2, 3, 16, 40).half(),))
    yield Sample("bytes", (_matrix(33, 65).to(torch.int8),))
    yield Sample("c0", (_matrix(17, 33), 16))
    yield Sample("transposed", (_matrix(20, 30).t(),))
    yield Sample("threads", (_matrix(300, 400),))


def nz_to_nd_samples() -> Iterator[Sample]:
    """Valid calls of nz_to_nd."""
    yield Sample("float", (_matrix(5, 2, 16, 8), [17, 33]))
    yield Sample("batch", (_matrix(2, 3, 4, 1, 16, 16).half(), [2, 3, 16, 50]))
    yield Sample("threads", (_matrix(50, 19, 16, 8), [300, 400]))
