# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of compressed_matmul."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_allowed, require_dtype
from anynpu._register import Sample
from anynpu._strict import check_compressed_matmul_chip

OP = "compressed_matmul"
SCHEMA = (
    "(Tensor x, Tensor stream, Tensor index, Tensor? bias, Tensor scale, *, SymInt? n=None, "
    "bool scale_19_bits=False, Tensor? pertoken_scale=None, ScalarType? output_dtype=None) -> Tensor"
)
OUTPUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_K = 131071  # int32 sums are exact up to here


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    stream: torch.Tensor
    index: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor
    n: int | None = None
    scale_19_bits: bool = False
    pertoken_scale: torch.Tensor | None = None
    output_dtype: torch.dtype = torch.float16


def _ceil_divide(value: int, by: int) -> int:
    return -(-value // by)


def _row_length(name: str, tensor: torch.Tensor) -> int:
    shape = tuple(tensor.shape)
    fits = tensor.dim() == 1 or (tensor.dim() == 2 and shape[0] == 1)
    require(OP, fits, f"{name} must have shape (N,) or (1, N), got {shape}")
    return shape[-1]


def _infer_n(bias: torch.Tensor | None, scale: torch.Tensor, n: int | None) -> int:
    scale_length = _row_length("scale", scale)
    if n is None and bias is not None:
        n = _row_length("bias", bias)
    if n is None:
        require(OP, scale_length != 1, "n must be given when there is no bias and scale is (1, 1)")
        n = scale_length
    require(
        OP,
        scale_length == 1 or scale_length == n,
        f"scale must have shape (1, 1) or (1, N) = (1, {n}), got {tuple(scale.shape)}",
    )
    if bias is not None:
        length = _row_length("bias", bias)
        require(OP, length == n, f"bias must have shape (N,) or (1, N) = (1, {n}), got {tuple(bias.shape)}")
    return n


def _require_dtypes(a: Arguments) -> None:
    require_dtype(OP, "x", a.x, (torch.int8,))
    require_dtype(OP, "stream", a.stream, (torch.int8, torch.uint8))
    require_dtype(OP, "index", a.index, (torch.int8, torch.uint8))
    require_dtype(OP, "scale", a.scale, (torch.int64, torch.uint64, torch.float32))
    if a.bias is not None:
        require_dtype(OP, "bias", a.bias, (torch.int32, torch.float32))
    if a.pertoken_scale is not None:
        require_dtype(OP, "pertoken_scale", a.pertoken_scale, (torch.float32,))
    require_allowed(OP, "y", a.output_dtype, OUTPUT_DTYPES)


def output_shape(a: Arguments) -> list[int]:
    """Checks everything that does not need data; returns (M, N)."""
    _require_dtypes(a)
    require(OP, a.x.dim() == 2, f"x must have shape (M, K), got {tuple(a.x.shape)}")
    for name, tensor in (("stream", a.stream), ("index", a.index)):
        flat = tensor.dim() == 1 and tensor.is_contiguous()
        require(OP, flat, f"{name} must have one axis and be contiguous, got shape {tuple(tensor.shape)}")
    n = _infer_n(a.bias, a.scale, a.n)
    m, k = a.x.shape
    if a.pertoken_scale is not None:
        shape = tuple(a.pertoken_scale.shape)
        require(OP, len(shape) == 1 and shape[0] == m, f"pertoken_scale must have shape (M,) = ({m},), got {shape}")
    require(OP, k >= 1 and k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
    require(OP, n >= 1, f"N must be at least 1, got {n}")
    expected, got = _ceil_divide(k, 256) * _ceil_divide(n, 128) * 8, a.index.shape[0]
    require(
        OP,
        got == expected,
        f"index must have ceil(K / 256) * ceil(N / 128) * 8 = {expected} bytes, got {got} (K {k}, N {n})",
    )
    most, got = _ceil_divide(n, 64) * 64 * _ceil_divide(k, 4) * 4, a.stream.shape[0]
    require(OP, got <= most, f"stream must have at most {most} bytes (K {k}, N {n}, padded), got {got}")
    check_compressed_matmul_chip()
    return [m, n]


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel."""
    return a.x.new_empty(output_shape(a), dtype=a.output_dtype)


def _sample_weight(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    from anynpu import _native

    weight = torch.arange(n * k).remainder(7).mul(40).sub(120).to(torch.int8).reshape(n, k)
    stream = torch.empty(_ceil_divide(n, 64) * 64 * _ceil_divide(k, 4) * 4, dtype=torch.int8)
    index = torch.empty(_ceil_divide(k, 256) * _ceil_divide(n, 128) * 8, dtype=torch.int8)
    used = torch.empty(1, dtype=torch.int64)
    _native.Call("weight_compress", tensors=4)(weight, stream, index, used)
    return stream[: int(used)].clone(), index


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    for m, k, n in ((3, 64, 8), (5, 300, 200)):
        x = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
        scale = (torch.rand(1, n, generator=generator) * 1e-3).view(torch.int32).long()
        bias = torch.randint(-9999, 9999, (1, n), generator=generator).int()
        yield Sample(f"{m} x {k} x {n}", (x, *_sample_weight(n, k), bias, scale))
