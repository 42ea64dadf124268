# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of quant_matmul."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import dtype_name, require, require_allowed, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu.ops.weight_quant_matmul.spec import is_prepacked, matrix_shape, prepacked_bytes

OP = "quant_matmul"
SCHEMA = (
    "(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, Tensor? bias=None, "
    "ScalarType? output_dtype=None, SymInt group_size=0, SymInt? n=None) -> Tensor"
)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OUTPUT_DTYPES = (torch.int8, *FLOAT_DTYPES, torch.int32)
MOST_K = 131071  # int32 sums are exact up to here


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x1: torch.Tensor
    x2: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    pertoken_scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    output_dtype: torch.dtype | None = None
    group_size: int = 0
    n: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of the result."""
        return self.output_dtype or torch.int8


def is_int4(a: Arguments) -> bool:
    """Whether x2 is words of eight int4, or prepacked ones, which tell their bits by their size."""
    if not is_prepacked(a.x2):
        return a.x2.dtype == torch.int32
    sized = a.n is not None and a.x1.dim() > 0 and a.x2.dim() == 1
    return not (sized and a.x2.shape[0] == prepacked_bytes(8, a.x1.shape[-1], a.n))


def require_int4_rules(a: Arguments) -> None:
    """What int4 operands and groups ask for beyond the rules of int8."""
    int4 = is_int4(a)
    if a.group_size and not (a.x1.dtype == torch.int8 and int4):
        raise NotImplementedError(
            f"{OP}: groups are implemented for int8 x1 and int4 (int32) x2, got {dtype_name(a.x1.dtype)} and "
            f"{dtype_name(a.x2.dtype)}; what is published of other groups contradicts itself"
        )
    require(
        OP,
        a.group_size >= 0 and a.group_size % 32 == 0,
        f"group_size must be 0 or a positive multiple of 32, got {a.group_size}",
    )
    if a.x1.dtype == torch.int32:
        require_dtype(OP, "x2", a.x2, (torch.int32,))
    if int4 and a.output_dtype not in FLOAT_DTYPES:
        expected, got = "float16, bfloat16 or float32", dtype_name(a.dtype)
        raise TypeError(f"{OP}: When input's dtype is int32, output_dtype must be {expected}, but it is {got}")


def _require_dtypes(a: Arguments) -> None:
    if a.x1.dtype == torch.int32:
        raise NotImplementedError(f"{OP}: torch.ops.anynpu.{OP} takes int8 x1, anynpu.{OP} unpacks int4 for it")
    require_dtype(OP, "x1", a.x1, (torch.int8,))
    require_dtype(OP, "x2", a.x2, (torch.int8, torch.int32, torch.uint8))
    require_dtype(OP, "scale", a.scale, (torch.int64, torch.uint64, torch.float32, torch.bfloat16))
    for name, tensor in (("offset", a.offset), ("pertoken_scale", a.pertoken_scale)):
        if tensor is not None:
            require_dtype(OP, name, tensor, (torch.float32,))
    require_allowed(OP, "y", a.dtype, OUTPUT_DTYPES)
    if a.bias is not None:
        _require_bias_dtype(a)
    if a.scale.dtype == torch.bfloat16 and a.dtype not in (torch.bfloat16, torch.int32):
        raise TypeError(
            f"{OP}: When scale's dtype is bfloat16, output_dtype must be bfloat16 or int32, "
            f"but output_dtype is {dtype_name(a.dtype)}"
        )


def _require_bias_dtype(a: Arguments) -> None:
    require_dtype(OP, "bias", a.bias, (torch.int32, torch.bfloat16, torch.float16, torch.float32))
    bias, dtype = a.bias.dtype, a.dtype
    if bias == torch.bfloat16 and dtype != torch.bfloat16:
        raise TypeError(
            f"{OP}: When bias dtype is bfloat16, output_dtype must be bfloat16, but it is {dtype_name(dtype)}"
        )
    if dtype == torch.int32 and bias != torch.int32:
        raise TypeError(
            f"{OP}: When output_dtype dtype is int32, bias_dtype must be int32, but it is {dtype_name(bias)}"
        )
    if bias == torch.float16 and a.pertoken_scale is None:
        raise TypeError(f"{OP}: Bias dtype cannot be float16 when pertoken not given.")


def _weight_shape(a: Arguments) -> tuple[int, int]:
    """K and N of x2."""
    x2, k, n = a.x2, a.x1.shape[-1], a.n
    if is_prepacked(x2):
        if n is None:
            raise ValueError(f"{OP}: n must be the columns of x2 when it is prepacked, got None")
        int4_bytes, int8_bytes = prepacked_bytes(4, k, n), prepacked_bytes(8, k, n)
        one_axis = x2.dim() == 1 and x2.is_contiguous()
        require(
            OP,
            one_axis and (x2.shape[0] == int4_bytes or x2.shape[0] == int8_bytes),
            f"a prepacked (uint8) x2 for K {k} and N {n} must be contiguous with one axis of {int4_bytes} (w4p32) or "
            f"{int8_bytes} (w8p32) bytes, got shape {tuple(x2.shape)}",
        )
        return k, n
    if x2.dtype == torch.int32:
        require(OP, x2.dim() == 2, f"an int4 x2 must have 2 axes, got {x2.dim()}")
        shape = matrix_shape(OP, x2, k, "x2")
    else:
        shape = x2.shape[-2], x2.shape[-1]
        strides = x2.stride()[-2:]
        require(
            OP,
            x2.numel() == 0 or 1 in strides or 1 in x2.shape[-2:],
            f"x2 must have stride 1 along one of its last two axes, got {strides}",
        )
    require(OP, n is None or n == shape[1], f"n must be the columns of x2, {shape[1]}, got {n}")
    return shape


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


def _require_scales(a: Arguments, m: int, k: int, n: int) -> None:
    if a.group_size:
        shape, expected = tuple(a.scale.shape), (-(-k // a.group_size), n)
        require(OP, shape == expected, f"scale must have shape (ceil(K / {a.group_size}), N) = {expected}, got {shape}")
    else:
        _require_columns("scale", a.scale, n)
    _require_columns("offset", a.offset, n)
    if a.offset is not None and not a.group_size:
        require(OP, a.dtype == torch.int8, f"offset needs an int8 output, got {dtype_name(a.dtype)}")
    if a.pertoken_scale is not None:
        shape = tuple(a.pertoken_scale.shape)
        require(
            OP,
            shape == (m,) or (a.group_size > 0 and shape == (m, 1)),
            f"the pertoken_scale dim num must be 1 and its shape (M,) = ({m},), got {shape}",
        )


def output_shape(a: Arguments) -> list[int]:
    """Checks everything that does not need data; returns the shape of y."""
    for name in ("x1", "x2", "scale"):
        require_tensor(OP, name, getattr(a, name))
    require_int4_rules(a)
    _require_dtypes(a)
    for name, tensor in (("x1", a.x1), ("x2", a.x2)):
        if is_prepacked(tensor):
            continue
        dims = tensor.dim()
        require(OP, 2 <= dims <= 6, f"{name} dim num should be 2 ~ 6, please check {name} dim num, got {dims}")
    m, k = a.x1.shape[-2:]
    weight_k, n = _weight_shape(a)
    require(
        OP,
        weight_k == k,
        "k dim of x1 and x2 need be same, please check k dim of x1 and x2: "
        f"x1 is {tuple(a.x1.shape)}, x2 is {tuple(a.x2.shape)}",
    )
    require(OP, k >= 1 and k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
    batch = _batch_shape(a.x1, a.x2)
    _require_scales(a, m, k, n)
    if a.bias is not None:
        if a.group_size and a.bias.dtype == torch.int32:
            raise TypeError(f"{OP}: an int32 bias must be absent with groups, whose sums are scaled apart")
        _require_bias_shape(a.bias, batch, n)
    return [*batch, m, n]


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel."""
    return a.x1.new_empty(output_shape(a), dtype=a.dtype)


def _int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def _float(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1e-3 + 1e-4


def samples() -> Iterator[Sample]:
    """Valid calls."""
    yield Sample("int8 output", (_int8(5, 72), _int8(72, 40, seed=2), _float(1)))
    yield Sample("transposed weight", (_int8(17, 130), _int8(70, 130, seed=2).t(), _float(70)))
    yield Sample("batches", (_int8(3, 4, 33), _int8(3, 33, 66, seed=2), _float(66)))
