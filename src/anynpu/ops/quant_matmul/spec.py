# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of quant_matmul."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import dtype_name, require, require_dtype, require_tensor
from anynpu._register import Sample

OP = "quant_matmul"
SCHEMA = (
    "(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, Tensor? bias=None, "
    "ScalarType? output_dtype=None) -> Tensor"
)
OUTPUT_DTYPES = (torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.int32)
MOST_K = 131071  # int32 sums are exact up to here


def _require_dtypes(x1, x2, scale, offset, pertoken_scale, bias, dtype) -> None:
    if torch.int32 in (x1.dtype, x2.dtype):
        raise NotImplementedError(
            f"{OP}: torch.ops.anynpu.{OP} takes int8, anynpu.{OP} unpacks int4 (int32) for it; "
            f"x1 is {dtype_name(x1.dtype)}, x2 is {dtype_name(x2.dtype)}"
        )
    require_dtype(OP, "x1", x1, (torch.int8,))
    require_dtype(OP, "x2", x2, (torch.int8,))
    require_dtype(OP, "scale", scale, (torch.int64, torch.uint64, torch.float32, torch.bfloat16))
    for name, tensor in (("offset", offset), ("pertoken_scale", pertoken_scale)):
        if tensor is not None:
            require_dtype(OP, name, tensor, (torch.float32,))
    if dtype not in OUTPUT_DTYPES:
        raise TypeError(f"{OP}: y must be int8, float16, bfloat16, float32 or int32, got {dtype_name(dtype)}")
    if bias is not None:
        _require_bias_dtype(bias, pertoken_scale, dtype)
    if scale.dtype == torch.bfloat16 and dtype not in (torch.bfloat16, torch.int32):
        raise TypeError(
            f"{OP}: When scale's dtype is bfloat16, output_dtype must be bfloat16 or int32, "
            f"but output_dtype is {dtype_name(dtype)}"
        )


def _require_bias_dtype(bias, pertoken_scale, dtype) -> None:
    require_dtype(OP, "bias", bias, (torch.int32, torch.bfloat16, torch.float16, torch.float32))
    if bias.dtype == torch.bfloat16 and dtype != torch.bfloat16:
        raise TypeError(
            f"{OP}: When bias dtype is bfloat16, output_dtype must be bfloat16, but it is {dtype_name(dtype)}"
        )
    if dtype == torch.int32 and bias.dtype != torch.int32:
        raise TypeError(
            f"{OP}: When output_dtype dtype is int32, bias_dtype must be int32, but it is {dtype_name(bias.dtype)}"
        )
    if bias.dtype == torch.float16 and pertoken_scale is None:
        raise TypeError(f"{OP}: Bias dtype cannot be float16 when pertoken not given.")


def _batch_shape(x1: torch.Tensor, x2: torch.Tensor) -> list[int]:
    first, second = list(x1.shape[:-2]), list(x2.shape[:-2])
    axes = max(len(first), len(second))
    first, second = [1] * (axes - len(first)) + first, [1] * (axes - len(second)) + second
    fits = all(a == b or a == 1 or b == 1 for a, b in zip(first, second, strict=True))
    require(OP, fits, f"the batch shape cannot be broadcast: x1 is {tuple(x1.shape)}, x2 is {tuple(x2.shape)}")
    return [b if a == 1 else a for a, b in zip(first, second, strict=True)]


def _require_columns(name: str, tensor: torch.Tensor | None, n: int) -> None:
    if tensor is None:
        return
    shape = tuple(tensor.shape)
    require(OP, tensor.dim() == 1, f"the {name} dim num must be 1, please check {name} dim num, got shape {shape}")
    require(OP, shape[0] == 1 or shape[0] == n, f"{name} must have shape (1,) or (N,) = ({n},), got {shape}")


def _require_bias_shape(bias: torch.Tensor, batch: list[int], n: int) -> None:
    shape = tuple(bias.shape)
    if bias.dim() == 3:
        require(OP, len(batch) == 1, f"when bias dim is 3, out dim need to be 3, got {len(batch) + 2}")
    fits = (bias.dim() == 1 and shape[0] == n) or (bias.dim() == 3 and shape == (batch[0], 1, n))
    require(OP, fits, f"bias must have shape (N,) = ({n},), or (batch, 1, N) when y has 3 axes, got {shape}")


def output_shape(x1, x2, scale, offset=None, pertoken_scale=None, bias=None, output_dtype=None) -> list[int]:
    """Checks everything that does not need data; returns the shape of y."""
    for name, tensor in (("x1", x1), ("x2", x2), ("scale", scale)):
        require_tensor(OP, name, tensor)
    dtype = output_dtype or torch.int8
    _require_dtypes(x1, x2, scale, offset, pertoken_scale, bias, dtype)
    for name, tensor in (("x1", x1), ("x2", x2)):
        dims = tensor.dim()
        require(OP, 2 <= dims <= 6, f"{name} dim num should be 2 ~ 6, please check {name} dim num, got {dims}")
    m, k, n = x1.shape[-2], x1.shape[-1], x2.shape[-1]
    require(
        OP,
        x2.shape[-2] == k,
        "k dim of x1 and x2 need be same, please check k dim of x1 and x2: "
        f"x1 is {tuple(x1.shape)}, x2 is {tuple(x2.shape)}",
    )
    require(OP, k >= 1 and k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
    strides = x2.stride()[-2:]
    require(
        OP,
        x2.numel() == 0 or 1 in strides or 1 in x2.shape[-2:],
        f"x2 must have stride 1 along one of its last two axes, got {strides}",
    )
    batch = _batch_shape(x1, x2)
    _require_columns("scale", scale, n)
    _require_columns("offset", offset, n)
    if offset is not None:
        require(OP, dtype == torch.int8, f"offset needs an int8 output, got {dtype_name(dtype)}")
    if pertoken_scale is not None:
        shape = tuple(pertoken_scale.shape)
        require(
            OP,
            len(shape) == 1 and shape[0] == m,
            f"the pertoken_scale dim num must be 1 and its shape (M,) = ({m},), got {shape}",
        )
    if bias is not None:
        _require_bias_shape(bias, batch, n)
    return [*batch, m, n]


def fake(x1, x2, scale, *, offset=None, pertoken_scale=None, bias=None, output_dtype=None) -> torch.Tensor:
    """Fake kernel."""
    shape = output_shape(x1, x2, scale, offset, pertoken_scale, bias, output_dtype)
    return x1.new_empty(shape, dtype=output_dtype or torch.int8)


def _int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def _float(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1e-3 + 1e-4


def samples() -> Iterator[Sample]:
    """Valid calls."""
    yield Sample("int8 output", (_int8(5, 72), _int8(72, 40, seed=2), _float(1)))
    yield Sample("transposed weight", (_int8(17, 130), _int8(70, 130, seed=2).t(), _float(70)))
    yield Sample("batches", (_int8(3, 4, 33), _int8(3, 33, 66, seed=2), _float(66)))
