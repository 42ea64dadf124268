# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of weight_quant_matmul and weight_quant_prepack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import dtype_name, require, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu._strict import check_weight_quant_matmul_limits
from anynpu.ops.int4_pack.reference import int4_pack

MATMUL_SCHEMA = (
    "(Tensor x, Tensor weight, Tensor scale, Tensor? offset=None, Tensor? bias=None, Tensor? quant_scale=None, "
    "Tensor? quant_offset=None, SymInt group_size=0, int inner_precise=0, SymInt? n=None) -> Tensor"
)
PREPACK_SCHEMA = "(Tensor weight) -> Tensor"

MATMUL = "weight_quant_matmul"
PREPACK = "weight_quant_prepack"
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MATRIX_DTYPES = (torch.int8, torch.int32)
MAX_DIMS = 8
INT4_PER_WORD = 8

# Formats w4p32 and w8p32: 64 bytes of header, then cells of 32 columns by 4 k.
HEADER_BYTES = 64
CELL_COLUMNS = 32
CELL_K = 4


class Arguments(NamedTuple):
    """Of one call of weight_quant_matmul, in the order of ``MATMUL_SCHEMA``."""

    x: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    quant_scale: torch.Tensor | None = None
    quant_offset: torch.Tensor | None = None
    group_size: int = 0
    inner_precise: int = 0
    n: int | None = None


def is_prepacked(weight: torch.Tensor) -> bool:
    """``weight`` is a blob of weight_quant_prepack, not a matrix."""
    return weight.dtype == torch.uint8


def _fits_plain(weight: torch.Tensor) -> bool:
    return weight.shape[-1] <= 1 or weight.stride(-1) == 1


def _fits_transposed(weight: torch.Tensor) -> bool:
    return weight.shape[-2] <= 1 or weight.stride(-2) == 1


def is_transposed(weight: torch.Tensor, x_k: int | None = None) -> bool:
    """Whether a weight is a transposed view, so that the words of a packed one hold eight neighbours along K.

    The strides of the last two axes (R, C) decide: stride(-1) == 1 is a plain weight, stride(-2) == 1 a transposed one.
    An axis of size 1 fits both; then, for packed words,

    1. the K of x decides, where it is R or 8 R: (1, 1) with K = 8 is transposed, with K = 1 plain;
    2. else, as in weight_quant_prepack which has no x, the strides of ``torch.Tensor.t`` do: (R, 1) with strides (1, R)
       and (1, C) with strides (1, 1) are transposed, everything else is plain: (1, 1) is K = 1, N = 8.
    """
    plain, transposed = _fits_plain(weight), _fits_transposed(weight)
    if not (plain and transposed):
        return transposed
    rows, columns = weight.shape[-2:]
    if weight.dtype == torch.int32 and x_k is not None and x_k > 0:
        if rows == x_k:
            return False
        if rows * INT4_PER_WORD == x_k:
            return True
    row_stride, column_stride = weight.stride()[-2:]
    strictly_plain = column_stride == 1 and row_stride == columns
    return not strictly_plain and row_stride == 1 and column_stride == rows


def matrix_shape(op: str, weight: torch.Tensor, x_k: int | None = None, name: str = "weight") -> tuple[int, int]:
    """(K, N) of an int8 matrix or of packed int4 words, the argument ``name``, whose dtype and strides it checks."""
    if weight.dtype not in MATRIX_DTYPES:
        raise TypeError(f"{op}: {name} must be int8, int4 or int32 (eight packed int4), got {dtype_name(weight.dtype)}")
    require(
        op,
        _fits_plain(weight) or _fits_transposed(weight),
        f"{name} must have stride 1 along one of its last two axes, got shape {tuple(weight.shape)} "
        f"strides {weight.stride()}",
    )
    rows, columns = weight.shape[-2:]
    if weight.dtype == torch.int8:
        return rows, columns
    if is_transposed(weight, x_k):
        return rows * INT4_PER_WORD, columns
    return rows, columns * INT4_PER_WORD


def matmul_result(a: Arguments) -> tuple[list[int], torch.dtype]:
    """Checks all of a call that can be checked without data; returns the shape and dtype of the result."""
    _require_tensors(a)
    _check_ranks(a.x, a.weight)
    _check_packed(a)
    k, n = a.x.shape[-1], _columns(a)
    _check_attributes(a)
    _check_dtypes(a)
    check_weight_quant_matmul_limits(a.x, k, n, a.scale)
    for name, parameter in (("scale", a.scale), ("offset", a.offset)):
        if parameter is not None and a.group_size != 0:
            _check_groups(name, parameter, a.x, a.group_size, n)
        elif parameter is not None:
            _check_row(name, parameter, n)
    if a.bias is not None:
        _check_row("bias", a.bias, n, single=False)
    for name, parameter in (("quant_scale", a.quant_scale), ("quant_offset", a.quant_offset)):
        if parameter is not None:
            _check_row(name, parameter, n)
    return [*a.x.shape[:-1], n], a.x.dtype if a.quant_scale is None else torch.int8


def _require_tensors(a: Arguments) -> None:
    for name in ("x", "weight", "scale"):
        require_tensor(MATMUL, name, getattr(a, name))
    for name in ("offset", "bias", "quant_scale", "quant_offset"):
        if getattr(a, name) is not None:
            require_tensor(MATMUL, name, getattr(a, name))


def _check_ranks(x: torch.Tensor, weight: torch.Tensor) -> None:
    require(MATMUL, x.dim() >= 2, f"x shape do not support dim num less than 2, but it is {x.dim()}")
    require(MATMUL, x.dim() <= MAX_DIMS, f"x must have 0 to {MAX_DIMS} axes, got {x.dim()}")
    if is_prepacked(weight):
        require(
            MATMUL,
            weight.dim() == 1 and weight.is_contiguous(),
            f"a prepacked (uint8) weight must be contiguous with one axis, got shape {tuple(weight.shape)}",
        )
        return
    require(MATMUL, weight.dim() >= 2, f"weight shape do not support dim num less than 2, but it is {weight.dim()}")
    require(
        MATMUL,
        weight.dim() in (2, x.dim()),
        f"x dim is not the same as weight dim, got {x.dim()} and {weight.dim()}",
    )


def _check_packed(a: Arguments) -> None:
    """An int32 weight with one int4 in each element would else be an error about the shape of something else."""
    k = a.x.shape[-1]
    groups = (k + a.group_size - 1) // a.group_size if a.group_size > 0 else 1
    fits = a.scale.dim() == 1 or (a.scale.dim() == 2 and a.scale.shape[0] == groups)
    n, shape = a.scale.shape[-1] if fits else 0, tuple(a.weight.shape)
    require(
        MATMUL,
        a.weight.dtype != torch.int32 or k < 1 or n < 2 or shape[-2:] != (k, n),
        "an int32 weight must hold eight int4 in each element, as int4_pack makes it: "
        f"shape (K, N / 8), or (K / 8, N) packed along K, for K = {k} and N = {n}, got {shape}",
    )


def _columns(a: Arguments) -> int:
    """N, after checking the matrices against each other."""
    x, weight, k, n = a.x, a.weight, a.x.shape[-1], a.n
    if is_prepacked(weight):
        if n is None:
            raise ValueError(f"{MATMUL}: n must be the columns of the weight when the weight is prepacked, got None")
        _check_prepacked_size(weight, k, n)
        return n
    weight_k, weight_n = matrix_shape(MATMUL, weight, k)
    require(
        MATMUL,
        k == weight_k,
        f"The k of x and weight should be equal. but x_k_dim is {k}, weight_k_dim is {weight_k}",
    )
    require(
        MATMUL,
        weight.dim() == 2 or x.shape[:-2] == weight.shape[:-2],
        f"batch of x is diff from batch of weight, got {tuple(x.shape[:-2])} and {tuple(weight.shape[:-2])}",
    )
    require(MATMUL, n is None or n == weight_n, f"n must be the columns of weight, {weight_n}, got {n}")
    return weight_n


def _check_prepacked_size(weight: torch.Tensor, k: int, n: int) -> None:
    require(MATMUL, n >= 0, f"n must not be negative, got {n}")
    int4_bytes, int8_bytes = prepacked_bytes(4, k, n), prepacked_bytes(8, k, n)
    require(
        MATMUL,
        weight.shape[0] == int4_bytes or weight.shape[0] == int8_bytes,
        f"prepacked weight for K {k} and N {n} must have {int4_bytes} (w4p32) or {int8_bytes} (w8p32) bytes, "
        f"got {weight.shape[0]}",
    )


def _check_attributes(a: Arguments) -> None:
    k = a.x.shape[-1]
    require(
        MATMUL,
        a.group_size == 0 or (32 <= a.group_size <= k - 1 and a.group_size % 32 == 0),
        "antiquant_group_size can be either 0 or a multiple of 32 within the range 32 to weight_k_dim - 1. "
        f"Got {a.group_size} (weight_k_dim is {k})",
    )
    require(
        MATMUL,
        a.quant_offset is None or a.quant_scale is not None,
        "Quantization parameters are incorrectly set, quant_offset cannot exist in isolation from quant_scale",
    )
    require(
        MATMUL,
        a.quant_offset is None or a.quant_scale.dtype != torch.int64,
        "quant_offset must be absent when quant_scale is encoded in int64, whose bits 37 to 45 hold it",
    )
    require(MATMUL, a.inner_precise in (0, 1), f"inner_precise only support 0 or 1. but is:{a.inner_precise}")


def _check_dtypes(a: Arguments) -> None:
    require_dtype(MATMUL, "x", a.x, FLOAT_DTYPES)
    x, weight, scale = a.x.dtype, a.weight.dtype, a.scale.dtype
    encoded = scale == torch.int64
    if scale not in (x, torch.float32) and not (encoded and weight != torch.int32):
        raise TypeError(
            f"{MATMUL}: scale must be {dtype_name(x)} as x is, float32, or for int8 weights int64 of "
            f"trans_quant_param, got {dtype_name(scale)} with {dtype_name(weight)} weights"
        )
    if a.offset is not None and encoded:
        got = dtype_name(a.offset.dtype)
        raise TypeError(f"{MATMUL}: offset must be absent when scale is encoded in int64, got {got}")
    if a.offset is not None and a.offset.dtype != scale:
        raise TypeError(
            f"{MATMUL}: offset must have the dtype of scale, got {dtype_name(a.offset.dtype)} "
            f"with scale {dtype_name(scale)}"
        )
    if a.bias is not None:
        require_dtype(MATMUL, "bias", a.bias, FLOAT_DTYPES)
    if a.quant_scale is not None and a.quant_scale.dtype not in (torch.float32, torch.int64):
        got = dtype_name(a.quant_scale.dtype)
        raise TypeError(f"{MATMUL}: quant_scale must be float32, or int64 of trans_quant_param, got {got}")
    if a.quant_offset is not None:
        require_dtype(MATMUL, "quant_offset", a.quant_offset, (torch.float32,))


def _check_groups(name: str, parameter: torch.Tensor, x: torch.Tensor, group_size: int, n: int) -> None:
    k = x.shape[-1]
    groups = (k + group_size - 1) // group_size
    arithmetic = f"ceil({k} / {group_size}) = {groups}"
    require(
        MATMUL,
        parameter.dim() == 2 and parameter.shape[1] == n,
        f"{name} must have shape (ceil(K / group_size), N), {arithmetic} and N = {n}, got {tuple(parameter.shape)}",
    )
    require(
        MATMUL,
        parameter.shape[0] == groups,
        f"{name}.shape[0] must be ceil(K / group_size) = {arithmetic}, got {parameter.shape[0]} "
        f"(x is {tuple(x.shape)}, group_size {group_size})",
    )


def _check_row(name: str, parameter: torch.Tensor, n: int, single: bool = True) -> None:
    is_row = parameter.dim() == 1 or (parameter.dim() == 2 and parameter.shape[0] == 1)
    if is_row and (parameter.shape[-1] == n or (single and parameter.shape[-1] == 1)):
        return
    raise ValueError(
        f"{MATMUL}: {name} must have shape {'(1,), ' if single else ''}({n},) or (1, {n}) as N is {n}, "
        f"got {tuple(parameter.shape)}"
    )


@takes(Arguments)
def matmul_fake(a: Arguments) -> torch.Tensor:
    """Fake kernel of weight_quant_matmul."""
    shape, dtype = matmul_result(a)
    return a.x.new_empty(shape, dtype=dtype)


def prepacked_bytes(bits: int, k: int, n: int) -> int:
    """Size of a blob in format w4p32 or w8p32."""
    cells = ((n + CELL_COLUMNS - 1) // CELL_COLUMNS) * ((k + CELL_K - 1) // CELL_K)
    return HEADER_BYTES + cells * bits * 16


def prepacked_size(weight: torch.Tensor) -> int:
    """Checks the argument of weight_quant_prepack; returns the bytes of the result."""
    require_tensor(PREPACK, "weight", weight)
    require(PREPACK, weight.dim() == 2, f"weight must have two axes, got shape {tuple(weight.shape)}")
    k, n = matrix_shape(PREPACK, weight)
    return prepacked_bytes(8 if weight.dtype == torch.int8 else 4, k, n)


def prepack_fake(weight: torch.Tensor) -> torch.Tensor:
    """Fake kernel of weight_quant_prepack."""
    return weight.new_empty([prepacked_size(weight)], dtype=torch.uint8)


def _codes(bits: int, *shape: int) -> torch.Tensor:
    limit = 2 ** (bits - 1)
    values = torch.randint(-limit, limit, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(bits))
    return int4_pack(values) if bits == 4 else values.to(torch.int8)


def _reals(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def matmul_samples() -> Iterator[Sample]:
    """Valid calls of weight_quant_matmul."""
    half, bf16 = torch.float16, torch.bfloat16
    yield Sample("int4 per channel", (_reals(3, 64, dtype=half), _codes(4, 64, 72), _reals(72, dtype=half, seed=1)))
    ragged = Arguments(
        _reals(2, 3, 72, dtype=bf16),
        _codes(4, 17, 72).t(),
        _reals(3, 17, dtype=bf16, seed=1),
        offset=_reals(3, 17, dtype=bf16, seed=2),
        bias=_reals(17, seed=3),
        group_size=32,
    )
    yield Sample("int4 along K, ragged groups, offset, bias", ragged)
    yield Sample("int8 per tensor, batched", (_reals(2, 3, 33), _codes(8, 2, 33, 5), _reals(1, seed=1)))
    int8 = Arguments(
        _reals(5, 128, dtype=half),
        _codes(8, 40, 128).t(),
        _reals(1, 40, dtype=half, seed=1) / 100,
        bias=_reals(1, 40, dtype=half, seed=2),
        quant_scale=_reals(40, seed=3).abs() * 10,
        quant_offset=_reals(1, seed=4) * 50,
    )
    yield Sample("int8 result", int8)
    many = (_reals(33, 512, dtype=half), _codes(4, 512, 264), _reals(264, dtype=half))
    yield Sample("threads, inner_precise", Arguments(*many, inner_precise=1))


def prepack_samples() -> Iterator[Sample]:
    """Valid calls of weight_quant_prepack."""
    yield Sample("int4", (_codes(4, 37, 72),))
    yield Sample("int4 along K", (_codes(4, 33, 72).t(),))
    yield Sample("int8", (_codes(8, 66, 35),))
    yield Sample("int8 transposed", (_codes(8, 35, 66).t(),))
