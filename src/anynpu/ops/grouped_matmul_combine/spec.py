# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of grouped_matmul_combine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu._strict import check_grouped_matmul_combine_limits
from anynpu.ops.grouped_matmul_combine.weights import pack_scale
from anynpu.ops.int4_pack import int4_pack
from anynpu.ops.weight_quant_matmul.spec import matrix_shape

OP = "grouped_matmul_combine"
SCHEMA = (
    "(Tensor x, Tensor weight, Tensor scale, Tensor group_list, Tensor row_index, Tensor? bias=None, "
    "Tensor? offset=None, Tensor? pertoken_scale=None, Tensor? logit=None, Tensor? shared_input=None, "
    "float shared_input_weight=1.0, SymInt shared_input_offset=0, SymInt output_bs=0, int group_list_type=1) -> Tensor"
)
MOST_K = 131071  # int32 sums are exact up to here
CUMULATIVE, COUNTS = 0, 1
ROW_INDEX_DTYPES = (torch.int64, torch.int32, torch.float32)


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor
    group_list: torch.Tensor
    row_index: torch.Tensor
    bias: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    pertoken_scale: torch.Tensor | None = None
    logit: torch.Tensor | None = None
    shared_input: torch.Tensor | None = None
    shared_input_weight: float = 1.0
    shared_input_offset: int = 0
    output_bs: int = 0
    group_list_type: int = COUNTS


def _require_dtypes(a: Arguments) -> None:
    require_dtype(OP, "x", a.x, (torch.int8,))
    require_dtype(OP, "weight", a.weight, (torch.int8, torch.int32))
    if a.weight.dtype == torch.int8:
        require_dtype(OP, "scale of int8 weights", a.scale, (torch.float32, torch.bfloat16))
        for name in ("bias", "offset"):
            require(OP, getattr(a, name) is None, f"{name} must be absent with int8 weights")
    else:
        require_dtype(OP, "scale of int4 weights", a.scale, (torch.int64, torch.uint64))
    require_dtype(OP, "group_list", a.group_list, (torch.int64,))
    require_dtype(OP, "row_index", a.row_index, ROW_INDEX_DTYPES)
    for name in ("bias", "offset", "pertoken_scale", "logit"):
        if getattr(a, name) is not None:
            require_dtype(OP, name, getattr(a, name), (torch.float32,))
    if a.shared_input is not None:
        require_dtype(OP, "shared_input", a.shared_input, (torch.bfloat16,))


def _require_shape(name: str, tensor: torch.Tensor | None, shape: tuple, rule: str) -> None:
    if tensor is None:
        return
    fits = tensor.dim() == len(shape) and all(a == b for a, b in zip(tensor.shape, shape, strict=True))
    require(OP, fits, f"{name} must have shape {rule} = {shape}, got {tuple(tensor.shape)}")


def _require_contiguous(a: Arguments) -> None:
    for name in ("scale", "group_list", "row_index", "bias", "offset", "pertoken_scale", "logit"):
        tensor = getattr(a, name)
        if tensor is not None:
            require(OP, tensor.is_contiguous(), f"{name} must be contiguous, got strides {tensor.stride()}")


def _require_scale(scale: torch.Tensor, int4: bool, experts: int, k: int, n: int) -> None:
    if not int4:
        return _require_shape("scale", scale, (experts, n), "(E, N)")
    shape = tuple(scale.shape)
    fits = len(shape) == 3 and shape[0] == experts and shape[2] == n and shape[1] >= 1 and k % shape[1] == 0
    require(
        OP,
        fits,
        f"scale must have shape (E, G, N) = ({experts}, G, {n}) with G a divisor of K = {k}, got {shape}",
    )


def _require_shared_input(a: Arguments, batch: int, n: int) -> None:
    if a.shared_input is None:
        return
    shape, offset = tuple(a.shared_input.shape), a.shared_input_offset
    require(OP, len(shape) == 2 and shape[1] == n, f"shared_input must have shape (S, N) = (S, {n}), got {shape}")
    require(
        OP,
        offset >= 0 and offset + shape[0] <= batch,
        f"shared_input_offset must be in [0, {batch} - {shape[0]}] so that the rows of shared_input lie in y, "
        f"got {offset}",
    )


def output_shape(a: Arguments) -> list[int]:
    """Checks everything that does not need data; returns the shape of y."""
    x, weight = a.x, a.weight
    for name in ("x", "weight", "scale", "group_list", "row_index"):
        require_tensor(OP, name, getattr(a, name))
    _require_dtypes(a)
    _require_contiguous(a)
    require(OP, x.dim() == 2, f"x must have shape (M, K), got {tuple(x.shape)}")
    require(
        OP,
        weight.dim() == 3,
        f"weight must have shape (E, K, N), or (E, K, N / 8) of packed int4, got {tuple(weight.shape)}",
    )
    (m, k), experts = x.shape, weight.shape[0]
    weight_k, n = matrix_shape(OP, weight, k)
    require(
        OP,
        k == weight_k,
        f"K of x and weight must be equal, got {k} and {weight_k} (x is {tuple(x.shape)}, weight is "
        f"{tuple(weight.shape)})",
    )
    require(OP, k >= 1 and k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
    _require_scale(a.scale, weight.dtype == torch.int32, experts, k, n)
    _require_shape("group_list", a.group_list, (experts,), "(E,)")
    _require_shape("row_index", a.row_index, (m,), "(M,)")
    _require_shape("bias", a.bias, (experts, n), "(E, N)")
    _require_shape("offset", a.offset, (experts, 1, n), "(E, 1, N)")
    _require_shape("pertoken_scale", a.pertoken_scale, (m,), "(M,)")
    _require_shape("logit", a.logit, (m,), "(M,)")
    require(OP, a.output_bs >= 0, f"output_bs must not be negative, got {a.output_bs}")
    batch = m if a.output_bs == 0 else a.output_bs
    _require_shared_input(a, batch, n)
    require(
        OP,
        a.group_list_type in (CUMULATIVE, COUNTS),
        f"group_list_type must be 0 (running sums) or 1 (counts), got {a.group_list_type}",
    )
    check_grouped_matmul_combine_limits(x, weight.dtype == torch.int32, experts, n, batch, a.shared_input)
    return [batch, n]


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel."""
    return a.x.new_empty(output_shape(a), dtype=torch.float32)


def _int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def _int4(*shape: int) -> torch.Tensor:
    values = torch.randint(-8, 8, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    return int4_pack(values)


def _reals(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def _rows(m: int, batch: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, batch, (m,), generator=torch.Generator().manual_seed(seed))


def samples() -> Iterator[Sample]:
    """Valid calls."""
    counts = torch.tensor([3, 0, 5])
    yield Sample("W8A8", (_int8(9, 40), _int8(3, 40, 33, seed=1), _reals(3, 33), counts, _rows(9, 9)))
    everything = Arguments(
        _int8(9, 96),
        _int4(3, 96, 72),
        pack_scale(_reals(3, 3, 72)),
        torch.tensor([3, 3, 8]),
        _rows(9, 5).int(),
        bias=_reals(3, 72, seed=4),
        offset=_reals(3, 1, 72, seed=5),
        pertoken_scale=_reals(9, seed=6),
        logit=_reals(9, seed=7),
        shared_input=_reals(2, 72, seed=8).bfloat16(),
        shared_input_weight=0.5,
        shared_input_offset=3,
        output_bs=5,
        group_list_type=CUMULATIVE,
    )
    yield Sample("W4A8 with everything", everything)
